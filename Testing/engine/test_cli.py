"""The command line as its users meet it: what it prints, what it leaves, how it is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from weaktumour import __version__, cli
from weaktumour.result import read_result

ROOT = str(Path(cli.__file__).resolve().parents[1])


def start(arguments: list[str], folder: Path, **popen) -> subprocess.Popen:
    (folder / "tmp").mkdir(exist_ok=True)
    environment = dict(os.environ, PYTHONPATH=ROOT, TMPDIR=str(folder / "tmp"), OMP_NUM_THREADS="1")
    environment["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    return subprocess.Popen([sys.executable, "-m", "weaktumour", *arguments], cwd=folder, env=environment, **popen)


def register_line(case: Path, out: Path) -> list[str]:
    files = ["--mr", case / "mr.nii.gz", "--ct", case / "ct.nii.gz", "--mr-labels", case / "mr_labels.nii.gz"]
    return ["register", *map(str, files), "--out", str(out), "--preset", "fast", "--device", "cpu"]


class Recorded:
    """Stands for the worker where only the command line is at stake: hands out folders that real runs made."""

    def __init__(self, case: Path, result: Path, fail: str | None = None) -> None:
        self.folders, self.fail, self.requests = {"simulate": case, "register": result}, fail, []

    def __call__(self, request, listener) -> int:
        self.requests.append(request)
        listener({"event": "progress", "stage": "read", "fraction": 0.5, "remaining_s": 130})
        if request.operation == self.fail:
            listener({"event": "error", "kind": "input", "message": "CT: no."})
            return 2
        if Path(request.out).exists():
            assert request.arguments["overwrite"]
            shutil.rmtree(request.out)
        shutil.copytree(self.folders[request.operation], request.out)
        listener({"event": "result", "folder": request.out})
        return 0


def test_version_and_help(capsys):
    for line, words in (["--version"], __version__), (["--help"], "register"), (["register", "--help"], "--mr-labels"):
        with pytest.raises(SystemExit) as caught:
            cli.main(line)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("module", ["weaktumour", "weaktumour.cli"])
def test_the_program_starts_without_the_heavy_libraries(tmp_path, module):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['weaktumour', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'SimpleITK', 'numpy', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=ROOT), capture_output=True)
    assert done.returncode == 0, done.stderr


def test_only_what_exists_is_offered(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    offered = "demo simulate register segment batch models dataset train evaluate benchmark analyse"
    assert all(f"\n    {word}" in text for word in offered.split())


def test_options_reach_the_worker(tmp_path, simulated_case, registered_result):
    run = Recorded(simulated_case, registered_result)
    values = {
        "mr": "m", "ct": "c", "mr_labels": "l", "mr_label_map": "1=liver", "ct_liver": "k", "initial_transform": "t",
        "preset": "thorough", "stages": "alignment", "uncertainty": "on", "verdict_mm": "4,8",
        "registration_model": "r", "segmentation_model": "none", "device": "cpu", "seed": 4,
    }  # fmt: skip
    line = [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert cli.main(["register", "--out", str(tmp_path / "out"), "--overwrite", *line], run=run) == 0
    assert run.requests[0].arguments == {**values, "overwrite": True}
    # Nothing given, nothing sent: the engine's defaults count.
    assert cli.main(["register", "--out", str(tmp_path / "o"), "--mr", "m", "--ct", "c"], run=run) == 0
    assert {k: v for k, v in run.requests[1].arguments.items() if v is not False} == {"mr": "m", "ct": "c"}


def test_register_tells_the_result(tmp_path, simulated_case, registered_result, capsys):
    out = tmp_path / "out"
    line = ["register", "--out", str(out), "--mr", "m", "--ct", "c"]
    assert cli.main(line, run=Recorded(simulated_case, registered_result)) == 0
    captured = capsys.readouterr()
    result = json.loads((out / "result.json").read_text())
    assert str(out) in captured.out
    assert str(out / "report.html") in captured.out
    assert f"Run: {result['run']['verdict'].replace('_', ' ')}" in captured.out
    for tumour in result["tumours"]:
        (row,) = [text for text in captured.out.splitlines() if text.strip().startswith(tumour["name"])]
        assert f"{tumour['volume_mm3'] / 1000:.1f}" in row
        assert f"{tumour['diameter_mm']:.1f}" in row
        assert f"{tumour['volume_ratio']:.2f}" in row
        assert tumour["verdict"].replace("_", " ") in row
    assert "not a medical device" in captured.out
    assert captured.err == " 50 %  read, about 2 min left\n"


def test_register_says_what_to_beware_of(tmp_path, simulated_case, registered_result, capsys):
    """The warnings of the run, and why a tumour with a small p95 is not localised all the same."""
    changed = tmp_path / "changed"
    shutil.copytree(registered_result, changed)
    result = json.loads((changed / "result.json").read_text())
    result["warnings"] = ["Nobody drew these tumours."]
    doubtful, sound = result["tumours"]
    doubtful |= {"p95_mm": 3.0, "verdict": "cannot_be_localised", "verdict_reason": "The vessels do not match."}
    sound |= {"verdict": "localised", "verdict_reason": "Localised: within 2 mm."}
    (changed / "result.json").write_text(json.dumps(result))
    assert cli.main(["register", "--out", str(tmp_path / "o"), "--mr", "m", "--ct", "c"],
                    run=Recorded(simulated_case, changed)) == 0  # fmt: skip
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert notes == ["Note: Nobody drew these tumours.", f"Note: {doubtful['name']}: The vessels do not match."]


def test_segment_tells_the_volumes(tmp_path, simulated_case, simulated_patient, capsys):
    def segmented(request, listener) -> int:
        shutil.copy(simulated_case / "mr_labels.nii.gz", request.out)
        listener({"event": "result", "folder": request.out})
        return 0

    assert cli.main(["segment", "m", "--out", str(tmp_path / "l.nii.gz")], run=segmented) == 0
    labels = simulated_patient.mr_labels
    ml = labels.grid.voxel_volume_mm3 / 1e3
    said = capsys.readouterr().out
    assert f"Whole liver: {(labels.array > 0).sum() * ml:.0f} ml" in said
    for value in (2, 3):
        assert f": {(labels.array == value).sum() * ml:.1f} ml" in said


def test_what_is_unknown_is_a_dash(tmp_path, capsys):
    folder = tmp_path / "result"
    folder.mkdir()
    tumour = {"label": 2, "name": None, "volume_mm3": None, "verdict": None}
    (folder / "result.json").write_text(json.dumps({"tumours": [tumour], "run": {"verdict": None, "reasons": []}}))
    line = ["register", "--out", str(tmp_path / "out"), "--mr", "m", "--ct", "c"]
    assert cli.main(line, run=Recorded(folder, folder)) == 0
    assert capsys.readouterr().out.splitlines()[3].split() == ["label", "2", "-", "-", "-", "-", "-"]


# -- demo -------------------------------------------------------------------------------------------------------
def test_demo_compares_with_the_truth_and_replaces_itself(tmp_path, simulated_case, registered_result, capsys):
    out = tmp_path / "demo"
    run = Recorded(simulated_case, registered_result)
    for attempt in range(2):
        assert cli.main(["demo", "--out", str(out), "--no-open", "--seed", "3"], run=run) == 0
        assert sorted(os.listdir(out)) == ["case", "result"]
        assert run.requests[2 * attempt].arguments["seed"] == 3
        text = capsys.readouterr().out
        (dice,) = [line for line in text.splitlines() if line.startswith("Liver Dice: ")]
        assert 0.8 < float(dice.split()[-1]) <= 1.0
        table = text[text.index(dice) :].splitlines()[1:]
        assert "centroid error mm" in table[0]
        assert "volume ratio" in table[0]
        rows = [line.split() for line in table[1:] if line.startswith("  ")]
        assert len(rows) == 2  # the patient's tumours
        for row in rows:
            true_diameter, centroid_error, volume_ratio = map(float, row[-4:-1])
            assert 15 < true_diameter < 35
            assert 0 <= centroid_error < 20
            assert 0.5 < volume_ratio < 1.5
        truth = read_result(out / "result" / "result.json")["truth"]
        assert truth["kind"] == "simulated"
        errors = [truth["labels"][value]["centroid_error_mm"] for value in ("2", "3")]
        assert [f"{error:.2f}" for error in errors] == [row[-3] for row in rows]
        report = (out / "result" / "report.html").read_text(encoding="utf-8")
        assert "Against the simulated truth" in report
        assert 'class="truth"' in report
        (out / "case" / "old").touch()
    assert [request.operation for request in run.requests] == ["simulate", "register"] * 2


@pytest.mark.parametrize("operation", ["simulate", "register"])
def test_a_demo_that_fails_leaves_nothing(tmp_path, simulated_case, registered_result, operation, capsys):
    run = Recorded(simulated_case, registered_result, fail=operation)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")], run=run) == 2
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().err.splitlines()[-1] == "weaktumour: CT: no."


def test_a_demo_touches_nothing_of_others(tmp_path, simulated_case, registered_result, capsys):
    mine = tmp_path / "demo" / "case"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("dear")
    run = Recorded(simulated_case, registered_result)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")], run=run) == 2
    assert (mine / "thesis.tex").exists()
    assert run.requests == []
    (error,) = capsys.readouterr().err.splitlines()
    assert "not a result of this program" in error
    assert cli.main(["demo", "--out", str(mine / "thesis.tex")], run=run) == 2
    assert cli.main(["demo", "--out", str(tmp_path / "a" / "b")], run=run) == 2


def test_the_report_opens_only_on_a_screen(tmp_path, simulated_case, registered_result, monkeypatch):
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    line = ["demo", "--out", str(tmp_path / "demo")]
    run = Recorded(simulated_case, registered_result)
    assert cli.main(line, run=run) == 0  # pytest's stdout is no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", "")
    assert cli.main(line, run=run) == 0
    monkeypatch.setenv("DISPLAY", ":1")
    assert cli.main([*line, "--no-open"], run=run) == 0
    assert opened == []
    assert cli.main(line, run=run) == 0
    assert opened == [(tmp_path / "demo" / "result" / "report.html").as_uri()]


# -- real processes ---------------------------------------------------------------------------------------------
def test_simulate_and_interrupt(tmp_path):
    """Ctrl-C while a patient is simulated: exit 3 within 2 s, one line, nothing left."""
    process = start(["simulate", "--out", "case"], tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert b"simulate" in process.stderr.readline()
        time.sleep(1.0)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        assert time.monotonic() - begun < 2.0
        last = process.stderr.read().splitlines()[-1]
        assert process.stdout.read() == b""
    assert code == 3
    assert last == b"weaktumour: cancelled; nothing was left behind."
    assert sorted(os.listdir(tmp_path)) == ["tmp"]
    assert os.listdir(tmp_path / "tmp") == []


def take_terminal() -> None:
    """In a new session, before the program starts: make stdin its controlling terminal, so that Ctrl-C is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(terminal: int, word: bytes, seconds: float = 120.0) -> bytes:
    """What a terminal shows until a word comes, or, without one, until it is closed."""
    shown, end = b"", time.monotonic() + seconds
    while not word or word not in shown:
        assert time.monotonic() < end, shown
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # closed
            assert not word, shown
            return shown
    return shown


def test_ctrl_c_on_a_terminal(tmp_path, simulated_case):
    """A progress bar on a terminal; Ctrl-C reaches all processes of the terminal and ends them."""
    controller, terminal = pty.openpty()
    (tmp_path / "work").mkdir()
    process = start(
        register_line(simulated_case, tmp_path / "work" / "out"),
        tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    try:
        shown = read_until(controller, b"alignment")
        time.sleep(1.0)
        begun = time.monotonic()
        os.write(controller, b"\x03")
        assert process.wait(30) == 3
        assert time.monotonic() - begun < 2.0
        shown += read_until(controller, b"")
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert b"%" in shown
    assert b"left" in shown
    assert b"cancelled; nothing was left behind" in shown
    assert b"Traceback" not in shown
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "tmp") == []
