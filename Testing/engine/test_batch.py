"""`weaktumour batch`: what goes wrong with a case or a worker costs no other case anything."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk

from weaktumour import cli
from weaktumour.batch import command, running
from weaktumour.batch.table import BatchCase, read_cases
from weaktumour.cases import write_single
from weaktumour.errors import InputError
from weaktumour.evaluation.peers import child_environment
from weaktumour.volumes import read_volume

OPTIONS = ["--preset", "fast", "--stages", "alignment", "--segmentation-model", "none", "--device", "cpu"]


# -- the table ----------------------------------------------------------------------------------------------------
def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_names_files_beside_itself(tmp_path):
    text = '\ufeffid,mr,ct,mr_labels,mr_label_map\na,x/mr.nii.gz,/data/ct,,\nb,m,c,l,"5=liver,7=tumour"\n'
    first, second = read_cases(table(tmp_path / "cases.csv", text))
    assert first == BatchCase("a", {"mr": str(tmp_path / "x/mr.nii.gz"), "ct": "/data/ct"})
    assert second.inputs["mr_labels"] == str(tmp_path / "l")
    assert second.inputs["mr_label_map"] == "5=liver,7=tumour"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,mr\na,b\n", "has no column 'ct'"),
        ("id,mr,ct,labels\na,b,c,d\n", "unknown column 'labels'"),
        ("id,mr,ct\n", "holds no case"),
        ("id,mr,ct\na,b,\n", "line 2 .* lacks a cell"),
        ("id,mr,ct\na,b,c,d\n", "line 2 .* one too many"),
        ("id,mr,ct\na,b,c\na,d,e\n", "the id a is there twice"),
        ("id,mr,ct\n../a,b,c\n", 'the id "../a" cannot be a folder\'s name'),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, sentence):
    with pytest.raises(InputError, match=sentence):
        read_cases(table(tmp_path / "cases.csv", text))


def test_a_cohort_is_its_pairs(tmp_path, simulated_case):
    (tmp_path / "one").symlink_to(simulated_case, target_is_directory=True)
    ct = read_volume(simulated_case / "ct.nii.gz", "CT")
    write_single(tmp_path / "alone", "ct", ct, ct, {}, {"id": "alone", "kind": "clinical"})
    (case,) = read_cases(tmp_path)
    assert (case.id, set(case.inputs)) == ("one", {"mr", "ct", "mr_labels"})
    with pytest.raises(InputError, match="cannot be read"):
        read_cases(tmp_path / "absent.csv")


def test_only_what_a_fold_tests(tmp_path, runs, capsys):
    for name in "abcd":
        (tmp_path / "cohort" / name).mkdir(parents=True)
        pairing = "single" if name == "d" else "same_patient"
        content = json.dumps({"schema": 1, "id": name, "pairing": pairing})
        (tmp_path / "cohort" / name / "case.json").write_text(content)
        for file in ("mr", "ct", "mr_labels"):
            (tmp_path / "cohort" / name / f"{file}.nii.gz").write_text(file)
    folds = [{"train": ["b"], "test": ["a", "d"]}, {"train": ["a"], "test": ["b"]}, {"train": ["a"], "test": []}]
    (tmp_path / "splits.json").write_text(json.dumps({"schema": 1, "folds": folds}))
    line = ["batch", str(tmp_path / "cohort"), "--out", str(tmp_path / "out"), "--scheduler", "none", "--threads", "1"]
    splits = ["--splits", str(tmp_path / "splits.json")]
    assert cli.main([*line, *splits, "--fold", "0"]) == 0
    assert runs == ["a"]
    assert cli.main([*line, *splits]) == 0
    assert runs == ["a", "b"]
    for words, sentence in (
        (["--fold", "0"], "--fold: it counts the folds of --splits"),
        ([*splits, "--fold", "3"], "--splits has the folds 0 to 2"),
        ([*splits, "--fold", "2"], "tests no pair of MRI and CT in "),
    ):
        capsys.readouterr()
        assert cli.main([*line, *words]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "splits.json").write_text(json.dumps({"schema": 1, "folds": [{"train": ["b"], "test": ["x"]}]}))
    assert cli.main([*line, *splits]) == 2
    assert "the case x is not in" in capsys.readouterr().err


def test_what_goes_wrong_unexpectedly_is_one_case(tmp_path, monkeypatch, capsys):
    def register(batch, case, gpu):
        raise MemoryError if case.id == "a" else ValueError("odd")

    monkeypatch.setattr(running, "_register", register)
    for name in ("mr", "ct"):
        (tmp_path / name).write_text(name)
    path = table(tmp_path / "cases.csv", "id,mr,ct\na,mr,ct\nb,mr,ct\n")
    line = ["batch", str(path), "--out", str(tmp_path / "out"), "--scheduler", "none", "--threads", "1"]
    assert cli.main(line) == 1
    told = capsys.readouterr().out
    assert "it could not be done (MemoryError: )" in told
    assert "it could not be done (ValueError: odd)" in told
    assert "2 of 2 cases failed" in told
    assert "For research only." in (tmp_path / "out/summary.md").read_text()


def test_one_unreadable_case_stops_no_others(tmp_path, runs, capsys):
    for name, content in (("a", '{"schema": 1, "id": "a"}'), ("b", "{"), ("c", '{"schema": 99}')):
        (tmp_path / "cohort" / name).mkdir(parents=True)
        (tmp_path / "cohort" / name / "case.json").write_text(content)
        for file in ("mr", "ct", "mr_labels"):
            (tmp_path / "cohort" / name / f"{file}.nii.gz").write_text(file)
    line = ["batch", str(tmp_path / "cohort"), "--out", str(tmp_path / "out"), "--scheduler", "none", "--threads", "1"]
    assert cli.main(line) == 1
    assert runs == ["a"]
    told = capsys.readouterr().out
    assert "2 of 3 cases failed" in told
    assert "b: Case: " in told
    assert "is not valid JSON; restore the file." in told
    assert "has schema 99, newer than 1" in told


# -- keeping what is done -----------------------------------------------------------------------------------------
@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """In the place of registration: writes a result, fails for the case "bad"; lists what was run."""
    done: list[str] = []

    def register(batch, case, gpu):
        done.append(case.id)
        if case.id == "bad":
            return "CT: no | good."
        batch.result(case).mkdir(parents=True, exist_ok=True)
        tumours = [{"verdict": "not_assessed"}, {"verdict": "outside_ct"}]
        content = {"run": {"verdict": "ok", "reasons": []}, "tumours": tumours}
        (batch.result(case) / "result.json").write_text(json.dumps(content))
        return None

    monkeypatch.setattr(running, "_register", register)
    return done


def test_a_batch_goes_on_where_it_was(tmp_path, runs, capsys):
    for name in ("mr", "ct", "other"):
        (tmp_path / name).write_text(name)
    path = table(tmp_path / "cases.csv", "id,mr,ct\ngood,mr,ct\nbad,mr,ct\nlost,absent,ct\n")
    line = ["batch", str(path), "--out", str(tmp_path / "out"), "--scheduler", "none", "--threads", "1"]
    assert cli.main(line) == 1
    assert runs == ["good", "bad"]
    told = capsys.readouterr().out
    assert "3 of 3  lost: absent cannot be read (No such file or directory); check the path." in told
    assert "2 of 3 cases failed; the same command tries them again." in told
    runs.clear()
    assert cli.main(line) == 1
    assert runs == ["bad"]  # what failed is tried again, the rest is kept
    assert "good: kept from before" in capsys.readouterr().out
    with (tmp_path / "out/summary.csv").open(newline="") as file:
        good, bad, lost = csv.DictReader(file)
    assert good == {**good, "id": "good", "state": "done", "run": "ok", "tumours": "2", "error": "",
                    "verdicts": "not assessed, outside ct"}  # fmt: skip
    assert (bad["state"], bad["error"], lost["state"]) == ("failed", "CT: no / good.", "failed")
    assert "| bad | failed |  |  |  | 0.0 | CT: no / good. |" in (tmp_path / "out/summary.md").read_text()

    for change, again in (
        (lambda: (tmp_path / "mr").write_text("another image"), ["good", "bad"]),
        (lambda: (tmp_path / "out/results/good/result.json").unlink(), ["good", "bad"]),
        (lambda: line.extend(["--preset", "fast"]), ["good", "bad"]),
        (lambda: line.extend(["--threads", "2"]), ["good", "bad"]),
        (lambda: None, ["bad"]),
    ):
        change()
        runs.clear()
        cli.main(line)
        assert runs == again
    assert "results of other cases" not in capsys.readouterr().out
    (tmp_path / "out/results/former").mkdir()
    cli.main(line)
    assert "1 results of other cases are in" in capsys.readouterr().out


def test_a_model_that_was_replaced_makes_results_anew(tmp_path, runs, monkeypatch):
    (tmp_path / "mr").write_text("")
    weights = {"segmentation": "one", "registration": "two"}
    monkeypatch.setattr(running, "find", lambda name, task: type("Entry", (), {"sha256": f"{name} {weights[task]}"}))
    cases = (BatchCase("good", {"mr": str(tmp_path / "mr"), "ct": str(tmp_path / "mr")}),)
    for settings in ({"segmentation_model": "mine"}, {}):
        batch = running.Batch(cases, tmp_path / "out", settings, scheduler="none")
        for change, again in (
            ({}, True),
            ({}, False),
            ({"segmentation": "other"}, True),
            ({"registration": "x"}, True),
        ):
            weights |= change
            runs.clear()
            running.run_batch(batch, lambda text: None)
            assert bool(runs) == again
        weights |= {"segmentation": "one", "registration": "two"}


def test_a_task_is_sent_without_the_other_cases(tmp_path, monkeypatch):
    from dask import distributed

    sent = []

    class Client:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, do, batch, case, **_):
            sent.append((batch.cases, case.id))
            return type("Task", (), {"result": lambda self: running._row(case, seconds=1.0)})()

    monkeypatch.setattr(running, "_client", lambda batch, module: Client())
    monkeypatch.setattr(distributed, "as_completed", list)
    cases = tuple(BatchCase(name, {}) for name in "ab")
    running.run_batch(running.Batch(cases, tmp_path), lambda text: None)
    assert sent == [((), "a"), ((), "b")]


def test_a_case_that_fails_has_no_result_of_former_inputs(tmp_path, runs):
    (tmp_path / "mr").write_text("")
    stale = tmp_path / "out/results/bad"
    stale.mkdir(parents=True)
    (stale / "result.json").write_text("{}")
    cases = (BatchCase("bad", {"mr": str(tmp_path / "mr"), "ct": str(tmp_path / "mr")}),)
    (row,) = running.run_batch(running.Batch(cases, tmp_path / "out", scheduler="none"), lambda text: None)
    assert row["error"] == "CT: no | good."
    assert not stale.exists()


def test_each_local_worker_has_a_gpu_of_its_own(monkeypatch, tmp_path):
    from dask import distributed

    seen = []
    monkeypatch.setattr(running, "perform", lambda batch, case, gpu=None: seen.append(gpu))
    batch = running.Batch((), tmp_path, gpus=("2", "GPU-abc"))
    for name in (0, 1, 2, "tcp://10.0.0.1:4000"):
        monkeypatch.setattr(distributed, "get_worker", lambda name=name: type("Worker", (), {"name": name}))
        running.perform_on_worker(batch, None)
    assert seen == ["2", "GPU-abc", "2", None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert command.cuda_devices() == ("2", "GPU-abc")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert command.cuda_devices() == ()


def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys):
    path = table(tmp_path / "cases.csv", "id,mr,ct\na,b,c\n")
    line = ["batch", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*line, "--processes", "0"]) == 2
    assert cli.main([*line, "--scheduler", "tcp://"]) == 2
    assert "nothing answers at tcp://" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "dask", None)
    assert cli.main(line) == 2
    assert "pip install -e '.[cohort]'" in capsys.readouterr().err


# -- two workers --------------------------------------------------------------------------------------------------
def runs_below(process: psutil.Process) -> dict[str, psutil.Process]:
    """Case id -> the `python -m weaktumour.worker` that carries it out now, below a batch."""
    found = {}
    for below in process.children(recursive=True):
        try:
            words = below.cmdline()
            if "weaktumour.worker" in words and words[-1].endswith("request.json"):
                found[Path(json.loads(Path(words[-1]).read_text())["out"]).name] = below
        except (psutil.Error, OSError, ValueError):
            continue
    return found


def test_two_workers_of_which_one_is_killed(tmp_path, simulated_case):
    """The local example of Resources/cohorts.md: all results are those of single runs, the corrupt case is reported."""
    ct = sitk.ReadImage(str(simulated_case / "ct.nii.gz"))
    sitk.WriteImage(ct[:, :, 8:], str(tmp_path / "ct_short.nii.gz"))
    whole = (simulated_case / "ct.nii.gz").read_bytes()
    (tmp_path / "ct_broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    files = {"first": simulated_case / "ct.nii.gz", "second": tmp_path / "ct_short.nii.gz",
             "broken": tmp_path / "ct_broken.nii.gz"}  # fmt: skip
    mr = [str(simulated_case / f"{name}.nii.gz") for name in ("mr", "mr_labels")]
    lines = [f"{name},{mr[0]},{file},{mr[1]}" for name, file in files.items()]
    path = table(tmp_path / "cases.csv", "\n".join(["id,mr,ct,mr_labels", *lines]))
    program = [sys.executable, "-m", "weaktumour"]
    environment = {**os.environ, **child_environment(1)}

    batch = subprocess.Popen(
        [*program, "batch", str(path), "--out", str(tmp_path / "out"), "--processes", "2", "--threads", "1", *OPTIONS],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with batch:
        try:
            end, root = time.monotonic() + 120, psutil.Process(batch.pid)
            while not {"first", "second"} <= set(found := runs_below(root)) and batch.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.05)
            lost = found["second"]
            lost.parent().kill()  # the Dask worker
            assert psutil.wait_procs([lost], timeout=10)[1] == []  # what it had started ends with it
            told, complaints = batch.communicate(timeout=300)
        finally:
            batch.kill()
    assert batch.returncode == 1, complaints
    assert "broken: CT: ct_broken.nii.gz cannot be used" in told
    assert "1 of 3 cases failed" in told
    out = tmp_path / "out"
    assert sorted(os.listdir(out / "results")) == ["first", "second"]  # nothing half done is left
    with (out / "summary.csv").open(newline="") as file:
        assert [(row["id"], row["state"]) for row in csv.DictReader(file)] == [
            ("first", "done"), ("second", "done"), ("broken", "failed"),
        ]  # fmt: skip

    for name in ("first", "second"):
        alone = tmp_path / name
        words = ["--mr", mr[0], "--ct", str(files[name]), "--mr-labels", mr[1], "--out", str(alone), *OPTIONS]
        done = subprocess.run([*program, "register", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        one, other = (read_volume(f / "ct_labels.nii.gz", "labels") for f in (alone, out / "results" / name))
        assert np.array_equal(one.array, other.array)
        assert one.grid.same_as(other.grid)
        assert len(np.unique(one.array)) == 4  # background, liver and two tumours
