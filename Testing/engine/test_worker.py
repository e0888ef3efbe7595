"""The worker as another program sees it: lines on stdout, exit codes, and how it ends when it is told to."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weaktumour import worker
from weaktumour.errors import InputError
from weaktumour.worker import Request
from weaktumour.workspace import process_is_alive, remove_stale

FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
REAL = [sys.executable, "-m", "weaktumour.worker"]
ENDS_WITHIN_S = 2.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends processes with POSIX signals")


class Run:
    """A worker that was started, with everything it may touch in one folder of its own."""

    def __init__(self, folder: Path, command: list[str], request: object, **popen) -> None:
        self.folder = folder
        for name in ("tmp", "home", "work"):
            (folder / name).mkdir(exist_ok=True)
        path = folder / "request.json"
        path.write_text(request if isinstance(request, str) else json.dumps(request))
        root = str(Path(worker.__file__).resolve().parents[1])
        environment = dict(os.environ, TMPDIR=str(folder / "tmp"), PYTHONPATH=root, OMP_NUM_THREADS="1")
        environment["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
        self.process = subprocess.Popen(
            [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **popen
        )
        self.lines: list[bytes] = []

    def wait_for(self, word: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            line = self.process.stdout.readline()
            if not line:
                break
            self.lines.append(line)
            if word.encode() in line:
                return
        raise AssertionError(f"no {word!r} in {self.lines}, stderr {self.process.stderr.read()!r}")

    def finish(self, seconds: float = 120.0) -> int:
        out, self.stderr = self.process.communicate(timeout=seconds)
        self.lines += out.splitlines(keepends=True)
        return self.process.returncode

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []  # Linux only

    def left_behind(self) -> list[str]:
        work = [path for path in (self.folder / "work").iterdir() if path.name != "out"]
        return [str(path) for path in (*work, *(self.folder / "tmp").iterdir())]


@pytest.fixture
def start(tmp_path):
    runs: list[Run] = []

    def start(mode: str = "done", command=FAKE, request: dict | str | None = None, **extra) -> Run:
        popen = extra.pop("popen", {})
        if request is None:
            request = {"operation": "fake", "arguments": {"mode": mode}}
        if isinstance(request, dict):
            request = {"schema": 1, "out": str(tmp_path / "work" / "out"), **request, **extra}
        runs.append(Run(tmp_path, command, request, **popen))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        run.process.stdout.close()
        run.process.stderr.close()


# -- a result that a second stage adds to -----------------------------------------------------------------------
def _result(tmp_path) -> tuple[str, list[str]]:
    out = tmp_path / "work" / "out"
    return (out / "result.json").read_text(), sorted(path.name for path in out.iterdir())


def test_a_second_stage_adds_to_the_result(start, tmp_path):
    run = start("then done")
    assert run.finish() == 0
    folder = str(tmp_path / "work" / "out")
    results = [event for event in run.events if event["event"] == "result"]
    assert results == [
        {"event": "result", "folder": folder, "complete": False},
        {"event": "result", "folder": folder},
    ]
    assert _result(tmp_path) == ('{"more": true}', ["more.txt", "result.json"])
    assert run.left_behind() == []


def test_a_second_stage_that_is_cancelled_leaves_the_result(start, tmp_path):
    cancel = tmp_path / "cancel"
    run = start("then slow", cancel_file=str(cancel))
    run.wait_for('"complete": false')
    run.wait_for('"more"')
    cancel.touch()
    assert run.finish(10) == 3
    assert _result(tmp_path) == ("{}", ["result.json"])
    assert run.left_behind() == []


@pytest.mark.parametrize(("mode", "code", "kind"), [("then killed", 1, "device"), ("then internal", 1, "internal")])
def test_a_second_stage_that_fails_leaves_the_result(start, tmp_path, mode, code, kind):
    run = start(mode)
    assert run.finish() == code
    assert run.events[-1]["event"] == "error"
    assert run.events[-1]["kind"] == kind
    assert _result(tmp_path) == ("{}", ["result.json"])
    assert run.left_behind() == []


# -- the protocol -----------------------------------------------------------------------------------------------
def test_a_run_from_start_to_end(start, tmp_path):
    run = start("done")
    assert run.finish() == 0
    assert run.stderr == b""
    assert run.events[0]["event"] == "log"
    assert run.events[-1] == {"event": "result", "folder": str(tmp_path / "work" / "out")}
    progress = [event for event in run.events if event["event"] == "progress"]
    assert progress
    assert set(progress[0]) == {"event", "stage", "fraction", "remaining_s"}
    assert (tmp_path / "work" / "out" / "result.json").exists()
    assert run.left_behind() == []


def test_the_first_line_comes_within_5_s(start):
    begun = time.monotonic()
    run = start(command=REAL, request={"operation": "register", "arguments": {"mr": "absent.nii", "ct": "absent.nii"}})
    ready, _, _ = select.select([run.process.stdout], [], [], 5.0)
    assert ready
    assert json.loads(run.process.stdout.readline())["event"] in ("log", "progress")
    assert time.monotonic() - begun < 5.0


def test_lines_are_ascii_json_whatever_libraries_print(start):
    run = start("stray")
    assert run.finish() == 0
    assert all(line.isascii() and line.endswith(b"\n") for line in run.lines)
    assert {"event": "log", "message": "Grüße\nzweite Zeile"} in run.events
    assert {"event": "progress", "stage": "x", "fraction": None, "remaining_s": None} in run.events
    assert b"a library talks" in run.stderr
    assert b"without end of line" in run.stderr


@pytest.mark.parametrize(
    ("mode", "code", "kind", "words"),
    [
        ("internal", 1, "internal", "KeyError: 'liver'"),
        ("input", 2, "input", "MRI: x.nii does not exist; check the path."),
        ("device", 1, "device", "No GPU."),
        ("memory", 1, "device", "memory is not enough"),
        ("cuda memory", 1, "device", "memory is not enough"),
        ("itk memory", 1, "device", "memory is not enough"),
        ("disk", 2, "input", "is full"),
        ("killed", 1, "device", "memory ran out"),
        ("crash", 1, "internal", "ended unexpectedly (signal 11)"),
        ("exits", 1, "internal", "ended unexpectedly (exit code 0)"),
    ],
)
def test_errors(start, tmp_path, mode, code, kind, words):
    run = start(mode)
    assert run.finish() == code
    event = run.events[-1]
    assert (event["event"], event["kind"]) == ("error", kind)
    assert words in event["message"]
    assert "\n" not in event["message"]
    assert [e["event"] for e in run.events].count("error") == 1
    traceback = [e["message"] for e in run.events if e["event"] == "log" and "misbehave" in e["message"]]
    assert bool(traceback) == (mode == "internal")
    assert os.listdir(tmp_path / "work") == []
    assert run.left_behind() == []


def request_text(**changes) -> str:
    request = {"schema": 1, "operation": "register", "arguments": {"mr": "a", "ct": "b"}, "out": "c"}
    return json.dumps({key: value for key, value in (request | changes).items() if value is not ...})


def test_a_full_request_is_read():
    arguments = {
        "mr": "a", "ct": "b", "overwrite": True, "mr_labels": "l", "mr_label_map": "1=liver", "ct_liver": None,
        "initial_transform": "t", "preset": "fast", "stages": "alignment", "device": "cpu", "seed": 3,
    }  # fmt: skip
    request = Request.parse(request_text(arguments=arguments, cancel_file="stop", parent_pid=1))
    assert request.arguments == {name: value for name, value in arguments.items() if value is not None}
    assert (request.operation, request.out, request.cancel_file, request.parent_pid) == ("register", "c", "stop", 1)
    assert Request.parse(request.to_json()) == request


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("[]", "JSON object"),
        (request_text(schema=2), "schema 2 is not known"),
        (request_text(schema=...), "schema None is not known"),
        (request_text(schema=True), "schema True is not known"),
        (request_text(cancel="x"), "unknown key 'cancel'"),
        (request_text(operation="explode"), "'explode' is not known"),
        (request_text(operation=["register"]), "is not known"),
        (request_text(operation=...), "is not known"),
        (request_text(out=...), "out must be"),
        (request_text(out=""), "out must be"),
        (request_text(out=3), "out must be"),
        (request_text(parent_pid="3"), "parent_pid must be"),
        (request_text(parent_pid=-3), "parent_pid must be"),
        (request_text(cancel_file=7), "cancel_file must be"),
        (request_text(arguments=[]), "arguments must be"),
        (request_text(arguments={"ct": "b"}), "needs the argument 'mr'"),
        (request_text(arguments={"mr": None, "ct": "b"}), "needs the argument 'mr'"),
        (request_text(arguments={"mr": "a", "ct": 3}), "ct must be"),
        (request_text(arguments={"mr": "a", "ct": "b", "mr-labels": "x"}), "no argument 'mr-labels'"),
        (request_text(arguments={"mr": "a", "ct": "b", "certainty": "on"}), "no argument 'certainty'"),
        (request_text(arguments={"mr": "a", "ct": "b", "overwrite": 1}), "overwrite must be"),
        (request_text(arguments={"mr": "a", "ct": "b", "seed": True}), "seed must be"),
        (request_text(arguments={"mr": "a", "ct": "b", "seed": 1.5}), "seed must be"),
        (request_text(arguments={"mr": "a", "ct": "b", "seed": -1}), "seed must be"),
        (request_text(arguments={"mr": "a", "ct": "b", "preset": "best"}), "preset must be one of"),
        (request_text(arguments={"mr": "a", "ct": "b", "device": "tpu"}), "device must be one of"),
        (request_text(operation="simulate", arguments={"mr": "a"}), "no argument 'mr'"),
    ],
)
def test_bad_requests_are_named_in_a_sentence(text, words):
    with pytest.raises(InputError, match=r"^request: ") as caught:
        Request.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", None, "\udcff"])
def test_an_unreadable_request_is_an_input_error(tmp_path, capfd, content):
    path = tmp_path / "request.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", errors="surrogateescape"))
    assert worker.main([str(path)]) == 2
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[-1]["kind"] == "input"
    assert worker.main([]) == 2


def test_options_are_those_of_the_engine():
    from weaktumour.pipeline import RegisterArguments

    fields = {field.name: field for field in dataclasses.fields(RegisterArguments)}
    options = {option.name: option for option in worker.OPERATIONS["register"].options}
    assert set(fields) - {"out"} == set(options)
    for name, option in options.items():
        if option.required:
            assert fields[name].default is dataclasses.MISSING
        else:
            assert fields[name].default == (False if option.type is bool else option.default), name


def test_replacing_out_must_not_delete_an_input(tmp_path):
    case = tmp_path / "case"
    case.mkdir()
    (case / "case.json").write_text("{}")
    (case / "mr.nii.gz").write_text("")
    events: list[dict] = []
    arguments = {"mr": str(case / "mr.nii.gz"), "ct": "ct.nii.gz", "overwrite": True}
    assert worker.supervise(Request("register", arguments, str(case)), events.append) == 2
    assert "would be lost" in events[-1]["message"]
    assert (case / "mr.nii.gz").exists()


# -- the end ----------------------------------------------------------------------------------------------------
STUCK = ["slow", "python", "simpleitk", "ignores signals"]


def assert_ends(run: Run, begun: float, code: int = 3) -> None:
    assert run.process.wait(timeout=30) == code
    seconds = time.monotonic() - begun
    assert seconds < ENDS_WITHIN_S, f"{seconds:.1f} s"
    assert os.listdir(run.folder / "work") == []
    assert run.left_behind() == []


@pytest.mark.parametrize("mode", STUCK)
def test_ends_when_the_cancel_file_appears(start, tmp_path, mode):
    cancel = tmp_path / "cancel"
    run = start(mode, cancel_file=str(cancel))
    run.wait_for("fake")
    time.sleep(0.5)  # into the work itself
    child = run.children()
    begun = time.monotonic()
    cancel.touch()
    assert_ends(run, begun)
    assert not any(process_is_alive(pid) for pid in child)


def test_a_cancel_file_that_is_there_already_ends_it_too(start, tmp_path):
    (tmp_path / "cancel").touch()
    begun = time.monotonic()
    assert_ends(start("slow", cancel_file=str(tmp_path / "cancel")), begun)


@pytest.mark.parametrize("mode", STUCK)
def test_ends_when_its_parent_is_killed(start, mode):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as parent:
        run = start(mode, parent_pid=parent.pid)
        run.wait_for("fake")
        time.sleep(0.5)
        begun = time.monotonic()
        parent.kill()
        assert_ends(run, begun)


def test_ends_when_the_launcher_between_is_killed(tmp_path):
    """Slicer starts its Python through a launcher; killing it leaves its child without a parent."""
    (tmp_path / "work").mkdir()
    request = {"schema": 1, "operation": "fake", "arguments": {"mode": "slow"}, "out": str(tmp_path / "work" / "out")}
    (tmp_path / "request.json").write_text(json.dumps(request | {"parent_pid": os.getpid()}))
    code = "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(600)"
    root = str(Path(worker.__file__).resolve().parents[1])
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, *FAKE, str(tmp_path / "request.json")],
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=root),
    )
    with launcher:
        pid = int(launcher.stdout.readline())
        while b"fake" not in launcher.stdout.readline():
            pass
        launcher.kill()
        begun = time.monotonic()
        while process_is_alive(pid):
            assert time.monotonic() - begun < ENDS_WITHIN_S
            time.sleep(0.02)
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ends_when_asked_by_a_signal(start, number):
    run = start("slow")
    run.wait_for("fake")
    begun = time.monotonic()
    run.process.send_signal(number)
    assert_ends(run, begun)


@pytest.mark.parametrize("seconds", [0.01, 0.03, 0.06, 0.1, 1.0])
def test_ctrl_c_in_a_terminal_reaches_every_process_and_is_answered_by_one(start, seconds):
    run = start("slow", popen={"start_new_session": True})
    run.wait_for("WeakTumourSeg")
    time.sleep(seconds)  # also while the child is starting
    begun = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    assert_ends(run, begun)
    assert run.process.stderr.read() == b""


def test_ends_when_nobody_reads(start):
    run = start("slow")
    run.wait_for("fake")
    begun = time.monotonic()
    run.process.stdout.close()
    assert_ends(run, begun)


def test_can_be_cancelled_while_its_reader_is_stuck(start, tmp_path):
    run = start("chatty", cancel_file=str(tmp_path / "cancel"))
    time.sleep(1.5)  # nobody reads: every pipe is full
    begun = time.monotonic()
    (tmp_path / "cancel").touch()
    assert_ends(run, begun)


def real_request(case: Path, **arguments: str) -> dict:
    files = {"mr": "mr.nii.gz", "ct": "ct.nii.gz", "mr_labels": "mr_labels.nii.gz"}
    given = {name: str(case / file) for name, file in files.items()}
    return {"operation": "register", "arguments": given | {"preset": "fast", "device": "cpu"} | arguments}


@pytest.mark.parametrize("stage", ["alignment", "refinement"])
def test_a_real_registration_is_cancelled_inside_a_stage(start, tmp_path, simulated_case, stage):
    request = real_request(simulated_case, stages=stage)
    run = start(command=REAL, request=request, cancel_file=str(tmp_path / "cancel"))
    # Both stages are announced, one of them has work to do.
    run.wait_for(f'"stage": "{stage}"')
    time.sleep(1.0)
    begun = time.monotonic()
    (tmp_path / "cancel").touch()
    assert_ends(run, begun)


def test_a_real_registration_ends_with_its_parent(start, simulated_case):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as parent:
        run = start(command=REAL, request=real_request(simulated_case), parent_pid=parent.pid)
        run.wait_for('"stage": "alignment"')
        time.sleep(1.0)
        begun = time.monotonic()
        parent.kill()
        assert_ends(run, begun)


# -- killed -----------------------------------------------------------------------------------------------------
def kill_at(run: Run, seconds: float) -> None:
    """SIGKILL after a while, and wait until the child is gone, too."""
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        child = run.children()
        run.process.kill()
        run.process.wait()
        begun = time.monotonic()
        while any(process_is_alive(pid) for pid in child) and time.monotonic() - begun < ENDS_WITHIN_S:
            time.sleep(0.01)
        outlived = [pid for pid in child if process_is_alive(pid)]
        for pid in outlived:
            os.kill(pid, signal.SIGKILL)
        assert not outlived, "the child outlives the worker"


@pytest.mark.parametrize("mode", STUCK)
def test_the_child_dies_with_the_worker(start, tmp_path, mode):
    run = start(mode)
    run.wait_for("fake")
    kill_at(run, 0.3)
    remove_stale(tmp_path / "work" / "out")
    assert os.listdir(tmp_path / "work") == []


def test_killed_at_a_random_moment(start, tmp_path):
    rng = random.Random(5)
    for attempt in range(20):
        run = start("slow")
        kill_at(run, rng.uniform(0.0, 0.8))
        assert not (tmp_path / "work" / "out").exists(), f"attempt {attempt}"
        assert os.listdir(tmp_path / "tmp") == []
    # What may be left are partial folders, and the next start removes them.
    assert start("input").finish() == 2
    assert os.listdir(tmp_path / "work") == []
    remove_stale(tmp_path / "work" / "out")


def test_an_old_result_survives_being_killed(start, tmp_path):
    assert start("done").finish() == 0
    rng = random.Random(6)
    for _ in range(8):
        request = {"operation": "fake", "arguments": {"mode": "done", "overwrite": True}}
        kill_at(start(request=request), rng.uniform(0.0, 0.3))
        remove_stale(tmp_path / "work" / "out")
        assert os.listdir(tmp_path / "work") == ["out"]
        assert (tmp_path / "work" / "out" / "result.json").read_text() == "{}"


def test_a_real_registration_killed_at_a_random_moment(start, tmp_path, simulated_case):
    rng = random.Random(7)
    for _ in range(4):
        kill_at(start(command=REAL, request=real_request(simulated_case)), rng.uniform(0.5, 6.0))
        assert not (tmp_path / "work" / "out").exists()
        assert os.listdir(tmp_path / "tmp") == []
    arguments = {"mr": "absent.nii", "ct": "absent.nii"}
    assert start(command=REAL, request={"operation": "register", "arguments": arguments}).finish() == 2
    assert os.listdir(tmp_path / "work") == []
