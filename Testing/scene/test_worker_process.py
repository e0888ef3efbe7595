"""The worker as a child: every way in which it can end leaves one clear outcome, no process and no folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weaktumour.workspace import process_is_alive
from WeakTumourSegLib import worker_process
from WeakTumourSegLib.worker_process import CANCELLED, DONE, FAILED, WorkerRun

HERE = Path(__file__).parent
SCRIPTED = HERE / "scripted_worker.py"
WORKER = [sys.executable, "-m", "weaktumour.worker"]


class Listener:
    """Keeps what a run reported."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.outcomes: list[worker_process.Outcome] = []

    @property
    def log(self) -> str:
        return "\n".join(str(event.get("message")) for event in self.events if event["event"] == "log")

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"(?:started|child|worker) (\d+)", self.log)]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """What must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def start(temporary: Path, listener: Listener, mode: str, **keywords) -> WorkerRun:
    folder = worker_process.makeTemporaryFolder(temporary)
    keywords.setdefault("command", [sys.executable, str(SCRIPTED), mode])
    return WorkerRun("simulate", {}, folder, listener.outcomes.append, listener.events.append, **keywords)


def pollUntil(run: WorkerRun, condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        run.poll()
        time.sleep(0.02)


def assertAllGone(temporary: Path, listener: Listener, within: float = 5) -> None:
    end = time.monotonic() + within
    while any(process_is_alive(pid) for pid in listener.pids()) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in listener.pids() if process_is_alive(pid)] == []
    assert list(temporary.iterdir()) == []


# -- endings --------------------------------------------------------------------------------------------------------
def test_a_result_is_there_until_it_was_taken(temporary, listener):
    run = start(temporary, listener, "done")
    run._onFinished = lambda outcome: listener.outcomes.append((outcome, outcome.folder.is_dir()))
    assert run.wait().state == DONE
    ((outcome, wasThere),) = listener.outcomes
    assert wasThere
    assert outcome.folder.name == "result"
    assert {"event": "progress", "stage": "refinement", "fraction": 0.5, "remaining_s": 1.0} in listener.events
    assertAllGone(temporary, listener)
    run.poll()
    run.cancel()
    assert len(listener.outcomes) == 1


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("killed", "most likely because memory ran out"),
        ("memory", "memory was not enough"),
        ("no torch", "PyTorch is not installed"),
        ("disk", "disk is full"),
        ("error", "MRI: it is upside down; turn it."),
        ("no result", "result is missing"),
        ("silent", "ended unexpectedly (exit code 0)"),
        ("orphan", "ended unexpectedly (exit code 1)"),
    ],
)
def test_each_failure_has_a_sentence(mode, sentence, temporary, listener):
    outcome = start(temporary, listener, mode).wait()
    assert outcome.state == FAILED
    assert sentence in outcome.message
    assert outcome.message.endswith(".")
    assert "\n" not in outcome.message
    assert listener.outcomes == [outcome]
    assertAllGone(temporary, listener)


def test_garbage_is_log_text(temporary, listener):
    assert start(temporary, listener, "garbage").wait().state == DONE
    assert "not text" in listener.log
    assert "[1, 2]" in listener.log
    assert '{"event": 5}' in listener.log
    assert {"event": "progress"} in listener.events


def test_a_chatty_worker_does_not_hold_up_the_application(temporary, listener):
    run = start(temporary, listener, "chatty")
    longest = 0.0
    while run.outcome is None:
        begun = time.monotonic()
        run.poll()
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.01)
    assert run.outcome.state == DONE
    assert longest < 0.5
    assert listener.log.endswith("29999")


def test_a_missing_program_is_said(temporary, listener):
    outcome = start(temporary, listener, "", command=["/nowhere/PythonSlicer"]).wait()
    assert "was not found" in outcome.message
    assertAllGone(temporary, listener)


def test_a_failing_callback_does_not_leave_the_folder(temporary, listener):
    run = start(temporary, listener, "done")

    def fail(outcome):
        raise RuntimeError("import failed")

    run._onFinished = fail
    with pytest.raises(RuntimeError, match="import failed"):
        run.wait()
    assert list(temporary.iterdir()) == []


# -- cancelling -----------------------------------------------------------------------------------------------------
def test_a_worker_that_does_not_listen_is_killed_with_its_children(temporary, listener):
    run = start(temporary, listener, "deaf")
    pollUntil(run, lambda: len(listener.pids()) == 2)
    begun = time.monotonic()
    run.cancel()
    assert run.wait().state == CANCELLED
    assert time.monotonic() - begun < 2
    assertAllGone(temporary, listener)


def test_closing_the_application_ends_the_worker_at_once(temporary, listener):
    run = start(temporary, listener, "deaf")
    pollUntil(run, lambda: len(listener.pids()) == 2)
    begun = time.monotonic()
    run.abort()
    assert time.monotonic() - begun < 1
    assertAllGone(temporary, listener)


def workerIsRunnable() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


needsTorch = pytest.mark.skipif(not workerIsRunnable(), reason="the real worker needs torch")


@needsTorch
@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
def test_the_real_worker_is_cancelled_at_any_moment(moment, temporary, listener):
    run = start(temporary, listener, "", command=WORKER)
    end = time.monotonic() + moment
    while time.monotonic() < end:
        run.poll()
        time.sleep(0.02)
    begun = time.monotonic()
    run.cancel()
    assert run.wait().state == CANCELLED
    assert time.monotonic() - begun < 2
    assertAllGone(temporary, listener)


def startRealWorker(temporary: Path, listener: Listener) -> tuple[WorkerRun, int]:
    """A simulation under way, and the pid of the process that works."""
    run = start(temporary, listener, "", command=WORKER)
    pollUntil(run, lambda: any(event["event"] == "progress" for event in listener.events), 60)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True, check=True)
    return run, int(children.stdout.split()[0])


@needsTorch
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes with Linux's ps")
@pytest.mark.parametrize("which", ["supervisor", "working process"])
def test_a_worker_killed_from_outside(which, temporary, listener):
    run, child = startRealWorker(temporary, listener)
    os.kill(run.pid if which == "supervisor" else child, signal.SIGKILL)
    outcome = run.wait()
    assert outcome.state == FAILED
    assert "memory ran out" in outcome.message
    assertAllGone(temporary, listener)
    assert not process_is_alive(child)


@needsTorch
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes with Linux's ps")
def test_the_worker_dies_with_the_application(temporary, listener, tmp_path):
    code = (
        "import sys, types, time; from pathlib import Path;"
        "i18n = types.ModuleType('slicer.i18n'); i18n.tr = str; sys.modules['slicer.i18n'] = i18n;"
        f"sys.path.insert(0, {str(worker_process.MODULE_FOLDER)!r});"
        "from WeakTumourSegLib import worker_process as w;"
        f"folder = w.makeTemporaryFolder(Path({str(temporary)!r}));"
        f"run = w.WorkerRun('simulate', {{}}, folder, print, lambda e: print(e, flush=True), {WORKER!r});"
        "run.wait()"
    )
    application = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = None
    for line in application.stdout:
        found = re.search(r"worker (\d+)", line)
        worker = worker or (int(found[1]) if found else None)
        if "'progress'" in line:
            break
    application.kill()
    application.wait()
    application.stdout.close()
    listed = subprocess.run(["ps", "-o", "pid=", "-g", str(worker)], capture_output=True, text=True, check=False)
    end = time.monotonic() + 5
    while listed.stdout.split() and time.monotonic() < end:
        time.sleep(0.1)
        listed = subprocess.run(["ps", "-o", "pid=", "-g", str(worker)], capture_output=True, text=True, check=False)
    assert listed.stdout.split() == []
    # Its folder is taken away by the next start.
    assert len(list(temporary.iterdir())) == 1
    worker_process.makeTemporaryFolder(temporary).rmdir()
    assert list(temporary.iterdir()) == []


@needsTorch
@pytest.mark.skipif(not (hasattr(os, "geteuid") and os.geteuid() == 0), reason="mounting a tmpfs needs root")
def test_a_full_disk(temporary, listener):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(temporary)], check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        outcome = start(temporary, listener, "", command=WORKER).wait()
        assert outcome.state == FAILED
        assert "full" in outcome.message
        assertAllGone(temporary, listener)
    finally:
        subprocess.run(["umount", str(temporary)], check=True)


# -- what it is started with ----------------------------------------------------------------------------------------
def test_the_request_is_what_the_worker_reads(temporary, listener):
    from weaktumour.worker import Request

    folder = worker_process.makeTemporaryFolder(temporary)
    run = WorkerRun(
        "register",
        {"mr": "a", "ct": "b", "ct_liver": None, "seed": 3},
        folder,
        listener.outcomes.append,
        command=[sys.executable, str(SCRIPTED), "silent"],
    )
    request = Request.read(folder / "request.json")
    assert request.arguments == {"mr": "a", "ct": "b", "seed": 3}
    assert request.parent_pid == os.getpid()
    assert Path(request.cancel_file).parent == folder
    assert json.loads((folder / "request.json").read_text())["out"] == str(folder / "result")
    run.wait()


def test_python_can_be_named(monkeypatch):
    monkeypatch.setenv(worker_process.PYTHON_VARIABLE, "/opt/python")
    assert worker_process.pythonExecutable() == "/opt/python"
    monkeypatch.delenv(worker_process.PYTHON_VARIABLE)
    monkeypatch.setenv("PATH", "")
    assert worker_process.pythonExecutable() == sys.executable


def test_folders_of_running_applications_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process.platform, "node", lambda: "ward-7.example")
    mine = worker_process.makeTemporaryFolder(tmp_path)
    (tmp_path / "WeakTumourSeg-notes").mkdir()
    (tmp_path / "WeakTumourSeg-ward_7.example-999999999-abc").mkdir()
    # Of another computer on a shared disk: nobody here can tell whether it runs.
    (tmp_path / "WeakTumourSeg-ward_8.example-999999999-abc").mkdir()
    other = worker_process.makeTemporaryFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        mine.name,
        other.name,
        "WeakTumourSeg-notes",
        "WeakTumourSeg-ward_8.example-999999999-abc",
    }
    assert oct(mine.stat().st_mode & 0o777) == "0o700" or os.name == "nt"
