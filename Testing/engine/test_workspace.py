"""Results appear whole or not at all: at success, failure, concurrent runs, and after killed processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from weaktumour import workspace
from weaktumour.errors import Cancelled, InputError
from weaktumour.workspace import open_workspace, process_is_alive, remove_stale, update_workspace


def make_result(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_result_appears_at_the_end_only(tmp_path):
    out = tmp_path / "out"
    with open_workspace(out) as folder:
        assert re.fullmatch(r"out\.partial-\d+", folder.name)
        assert folder.parent == tmp_path
        assert int(folder.name.rpartition("-")[2]) == os.getpid()
        (folder / "result.json").write_text("new")
        assert not out.exists()
    assert (out / "result.json").read_text() == "new"
    assert names(out) == ["result.json"]
    assert names(tmp_path) == ["out"]


def fail(out: Path, error: BaseException, overwrite: bool = False) -> None:
    with open_workspace(out, overwrite) as folder:
        (folder / "result.json").write_text("new")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("boom"), Cancelled("stop"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    with pytest.raises(type(error)):
        fail(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_overwrite_keeps_the_old_result_until_the_new_one_is_complete(tmp_path):
    out = make_result(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        fail(out, RuntimeError("boom"), overwrite=True)
    assert (out / "result.json").read_text() == "old"
    with open_workspace(out, overwrite=True) as folder:
        (folder / "result.json").write_text("new")
        assert (out / "result.json").read_text() == "old"
    assert (out / "result.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with open_workspace(tmp_path / "out") as folder:
        (folder / "result.json").write_text("new")
    assert names(tmp_path / "out") == ["result.json"]


def test_a_link_is_followed(tmp_path):
    make_result(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with open_workspace(tmp_path / "link", overwrite=True) as folder:
        (folder / "result.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "result.json").read_text() == "new"


def refused(out: Path | str, overwrite: bool, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught, open_workspace(out, overwrite):
        raise AssertionError("must not start")
    assert "\n" not in str(caught.value)


def test_refusals(tmp_path, monkeypatch):
    result = make_result(tmp_path / "result", "old")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "wedding.jpg").write_text("dear")
    (tmp_path / "file").write_text("")
    before = names(tmp_path)
    refused(result, False, "not empty.*--overwrite")
    refused(foreign, True, "not a result of this program")
    refused(tmp_path / "file", True, "is a file")
    refused(tmp_path / "missing" / "out", False, "does not exist")
    refused(tmp_path / "file" / "out", False, "does not exist")
    refused("", False, "empty")
    refused("/", True, "top folder")
    refused("/proc/out", False, "cannot be written|not writable") if Path("/proc").is_dir() else None
    refused(tmp_path / ("n" * 250), False, "cannot be written")
    monkeypatch.chdir(result)
    refused(".", True, "current")
    assert names(tmp_path) == before
    assert (foreign / "wedding.jpg").read_text() == "dear"
    assert (result / "result.json").read_text() == "old"


def test_the_next_start_removes_what_dead_processes_left(tmp_path, dead_pid):
    for name in (
        f"out.partial-{dead_pid}",
        f"other.partial-{dead_pid}",
        f"out.partial-{os.getppid()}",
        "out.partial-x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    # Our own number, although we opened nothing: a dead process had it (always so in a container that restarts).
    (tmp_path / f"out.partial-{os.getpid()}").mkdir()
    with open_workspace(tmp_path / "out") as folder:
        (folder / "result.json").write_text("new")
    kept = ["other.partial-" + str(dead_pid), "out", f"out.partial-{os.getppid()}", "out.partial-x"]
    assert names(tmp_path) == sorted(kept)


def test_a_death_between_the_two_renames_loses_nothing(tmp_path, dead_pid):
    make_result(tmp_path / f"out.replaced-{dead_pid}", "old")
    make_result(tmp_path / f"out.partial-{dead_pid}", "new")
    remove_stale(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "result.json").read_text() == "old"
    # ... and after the second rename the old one is only rubbish.
    make_result(tmp_path / f"out.replaced-{dead_pid}", "older")
    remove_stale(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "result.json").read_text() == "old"


def test_two_runs_in_one_process_do_not_share_a_folder(tmp_path):
    with open_workspace(tmp_path / "out"):
        refused(tmp_path / "out", False, "another run")
    assert names(tmp_path) == ["out"]


def _concurrent_run(out: str, overwrite: bool, number: int, barrier, queue) -> None:
    barrier.wait()
    try:
        with open_workspace(out, overwrite) as folder:
            (folder / "result.json").write_text(str(number))
            barrier.wait()
            for piece in range(20):
                (folder / f"piece{piece}").write_text(str(number))
            barrier.wait()
    except InputError as error:
        queue.put((number, str(error)))
    else:
        queue.put((number, None))


@pytest.mark.parametrize("overwrite", [False, True])
def test_concurrent_runs_with_one_out(tmp_path, overwrite):
    out = tmp_path / "out"
    if overwrite:
        make_result(out, "old")
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_concurrent_run, args=(str(out), overwrite, number, barrier, queue))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    outcomes = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    winners = [number for number, error in outcomes.items() if error is None]
    assert len(winners) == (4 if overwrite else 1), outcomes
    assert all("not empty" in error for error in outcomes.values() if error)
    assert names(tmp_path) == ["out"]
    # Whole, and of one run.
    contents = {path.read_text() for path in out.iterdir()}
    assert len(names(out)) == 21
    assert len(contents) == 1
    assert int(contents.pop()) in winners


def test_temporary_files_live_in_the_partial_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = tempfile.gettempdir()
    with open_workspace(tmp_path / "out") as folder:
        place = Path(tempfile.mkdtemp())
        assert folder in place.parents
        assert folder in Path(os.environ["TMPDIR"]).parents
    assert tempfile.gettempdir() == before
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert names(tmp_path / "out") == []


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"disk .* is full"), open_workspace(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    # SimpleITK's exceptions do not carry the reason.
    monkeypatch.setattr(workspace, "_DISK_FULL_BYTES", 1 << 62)
    with pytest.raises(InputError, match=r"disk .* is full"), open_workspace(tmp_path / "out"):
        raise RuntimeError("could not write")
    assert names(tmp_path) == []


def test_process_is_alive(dead_pid):
    assert process_is_alive(os.getpid())
    assert process_is_alive(os.getppid())
    assert not process_is_alive(dead_pid)
    assert not process_is_alive(0)
    assert not process_is_alive(2**40)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process_is_alive(process.pid)
        process.kill()
        # Not waited for yet: a zombie, dead for every purpose.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) if hasattr(os, "waitid") else process.wait()
        if Path("/proc/self/stat").exists():
            assert not process_is_alive(process.pid)


def test_an_update_replaces_files_and_keeps_the_others(tmp_path):
    out = tmp_path / "out"
    with open_workspace(out) as folder:
        (folder / "result.json").write_text("old")
        (folder / "labels.txt").write_text("labels")
    with update_workspace(out, last="result.json") as folder:
        (folder / "result.json").write_text("new")
        (folder / "more.txt").write_text("more")
        assert (out / "result.json").read_text() == "old"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "result.json": "new",
        "labels.txt": "labels",
        "more.txt": "more",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_file_that_vouches_comes_last(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    moved = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (moved.append(self.name), replace(self, target))[1])
    with update_workspace(out, last="a.json") as folder:
        for name in ("a.json", "b.txt", "z.txt"):
            (folder / name).write_text(name)
    assert moved[-1] == "a.json"
    assert sorted(moved) == ["a.json", "b.txt", "z.txt"]


def update(out: Path, meanwhile) -> None:
    with update_workspace(out, last="result.json") as folder:
        (folder / "result.json").write_text("new")
        meanwhile()


def fail_with(error: BaseException) -> None:
    raise error


def test_an_update_that_raises_changes_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("old")
    with pytest.raises(Cancelled):
        update(out, lambda: fail_with(Cancelled("Cancelled.")))
    assert (out / "result.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_update_of_a_folder_that_is_gone_is_said(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        update(out, out.rmdir)
    assert list(tmp_path.iterdir()) == []
