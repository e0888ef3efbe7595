"""The benchmark: who is in it, what its tables say of given figures, and that a stopped run goes on."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weaktumour.cases import Case, write_case
from weaktumour.deformation import DisplacementField
from weaktumour.errors import InputError, WeakTumourError
from weaktumour.evaluation import benchmark, cohort, methods, tables
from weaktumour.evaluation.command import run_benchmark_command
from weaktumour.volumes import Grid, Volume

SPLITS = Path(__file__).resolve().parents[1] / "benchmark" / "splits.json"


# -- patients -----------------------------------------------------------------------------------------------------
def test_the_test_part_is_forty_patients_that_training_never_saw(shared_data):
    patients = cohort.of_splits(SPLITS, "test", shared_data)
    kinds = [patient.kind for patient in patients]
    assert [kinds.count(kind) for kind in ("phantom", "label_map", "real_ct")] == [20, 14, 6]
    content = json.loads(SPLITS.read_text(encoding="utf-8"))
    trained = set(content["label_maps"]["train"]) | set(content["label_maps"]["development"])
    assert not any(Path(p.source).name.removesuffix(".nii.gz") in trained for p in patients if p.kind == "label_map")
    assert len({patient.name for patient in patients}) == 40
    tuned_on = cohort.of_splits(SPLITS, "development", shared_data)
    assert not {(p.kind, p.source, p.seed) for p in tuned_on} & {(p.kind, p.source, p.seed) for p in patients}
    assert not any(p.kind == "real_ct" for p in tuned_on)


def test_patients_that_cannot_be_had_are_refused(tmp_path, simulated_case):
    with pytest.raises(InputError, match="--shared-data"):
        cohort.of_splits(SPLITS, "test", None)
    with pytest.raises(InputError, match="is missing"):
        cohort.of_splits(SPLITS, "test", tmp_path)
    with pytest.raises(InputError, match="does not name"):
        cohort.of_splits(tmp_path / "absent.json", "test", None)
    with pytest.raises(InputError, match="no case folder"):
        cohort.of_folder(tmp_path)
    shutil.copytree(simulated_case, tmp_path / "a")
    assert [p.name for p in cohort.of_folder(tmp_path)] == ["a"]
    (tmp_path / "a" / "ct_labels.nii.gz").unlink()
    with pytest.raises(InputError, match="no ct_labels"):
        cohort.of_folder(tmp_path)
    with pytest.raises(InputError, match="1 to 40"):
        cohort.phantoms(41)


def test_motion_is_what_a_rigid_movement_leaves():
    rng = np.random.default_rng(0)
    ct = rng.normal(0, 40, (300, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    rigid = ct @ turn.T + [30.0, -20, 70]
    assert cohort.motion_mm(np.hstack((ct, rigid))) == pytest.approx(0, abs=1e-6)
    stretched = ct * [1, 1, 1.2]
    expected = np.sqrt(np.mean(((stretched - ct) - (stretched - ct).mean(0)) ** 2 @ np.ones(3)))
    assert cohort.motion_mm(np.hstack((ct, stretched @ turn.T))) == pytest.approx(expected, rel=0.02)
    assert cohort.motion_mm(None) is None


# -- tables -------------------------------------------------------------------------------------------------------
def row(patient: str, method: str, errors: list[float], liver: float = 0.96, **more) -> dict:
    found = [
        {"label": 2 + i, "diameter_mm": d, "centroid_error_mm": e, "volume_ratio": 1.0, "dice": 0.8,
         "coverage_5mm": 1.0, "in_ct": "invisible"}
        for i, (e, d) in enumerate(zip(errors, (10.0, 20.0, 30.0), strict=False))
    ]  # fmt: skip
    field = {"liver_folds": 0, "sd_log_jacobian": 0.2, "liver_sd_log_jacobian": 0.1}
    figures = {"liver": {"dice": liver, "hd95_mm": 3.0}, "tumours": found, "points": {"median_mm": 2.0}, "field": field}
    return {"patient": patient, "kind": "phantom", "method": method, "motion_mm": 7.0, "seconds": 10.0,
            "seconds_with_start": 14.0, "peak_mb": 900.0, "ct_voxels": 1e6, "figures": figures, **more}  # fmt: skip


def test_a_summary_by_hand():
    rows = [row("a", "ours", [1.0, 3.0]), row("b", "ours", [2.0, 9.0, 4.0], liver=0.7)]
    found = tables.summary(rows)
    assert (found["patients"], found["tumours"], found["failures"]) == (2, 5, 1)
    assert found["tumour error mm"] == 3.0
    assert found["tumour error p90 mm"] == pytest.approx(7.0)
    assert found["within 5 mm %"] == pytest.approx(80)
    assert found["liver Dice"] == pytest.approx(0.83)
    assert found["tumour Dice 15-25 mm"] == 0.8


def test_a_lost_tumour_counts_as_the_worst():
    rows = [row("a", "ours", [1.0, 3.0])]
    lost = rows[0]["figures"]["tumours"][1]
    lost.update(centroid_error_mm=None, volume_ratio=0.0, dice=0.0, coverage_5mm=0.0)  # JSON has no infinity
    found = tables.summary(rows)
    assert found["within 5 mm %"] == 50
    assert found["tumour error p90 mm"] == np.inf
    assert found["volume ratio p10"] == pytest.approx(0.1)


def test_methods_are_compared_on_the_patients_that_all_of_them_have():
    rows = [row("a", "ours", [1.0]), row("b", "ours", [2.0]), row("a", "syn", [3.0]),
            {"patient": "b", "kind": "phantom", "method": "syn", "error": "it fell over"}]  # fmt: skip
    assert {m: [r["patient"] for r in found] for m, found in tables.by_method(rows).items()} == {
        "ours": ["a"],
        "syn": ["a"],
    }
    text = tables.page(rows, title="T", notes=["N"], pictures=["p.png"])
    assert "it fell over" in text
    assert "| tumour error mm | 1.000 | 3.000 |" in text
    assert "![p](p.png)" in text


def test_strata_put_each_tumour_where_it_belongs():
    text = tables.strata({"ours": [row("a", "ours", [1.0, 2.0, 3.0])]})
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines()}
    assert lines["diameter < 15 mm"] == ["1", "1.0 (1.0)"]
    assert lines["diameter 15 to 25 mm"] == ["1", "2.0 (2.0)"]
    assert lines["diameter >= 25 mm"] == ["1", "3.0 (3.0)"]
    assert lines["motion 5 to 10 mm"][0] == lines["invisible in the CT"][0] == "3"
    assert "motion < 5 mm" not in lines


# -- running ------------------------------------------------------------------------------------------------------
@pytest.fixture
def cohort_folder(tmp_path: Path, simulated_patient: Case) -> Path:
    write_case(tmp_path / "cohort" / "one", simulated_patient)
    return tmp_path / "cohort"


def told(simulated_patient: Case, calls: list, fail: bool = False):
    """In the place of run_method: the truth, 1 mm off."""

    def run(method, case, folder, **more):
        calls.append((method, more["start"] is not None))
        if fail and method == "syn":
            raise WeakTumourError("syn: it fell over")
        grid = simulated_patient.truth.grid
        folder.mkdir(parents=True, exist_ok=True)
        field = DisplacementField(grid, simulated_patient.truth.displacement_mm + np.array([0.0, 1.0, 0.0]))
        field.write(folder / "transform.h5")
        return methods.Outcome(field, 1.0, 2.0, "3", {})

    return run


def test_a_run_goes_on_where_it_was_and_tries_again_what_failed(
    tmp_path, cohort_folder, simulated_patient, monkeypatch
):
    plan = benchmark.Plan(tuple(cohort.of_folder(cohort_folder)), ("ours", "syn"), tmp_path / "out")
    calls: list = []
    monkeypatch.setattr(benchmark, "run_method", told(simulated_patient, calls, fail=True))
    rows = benchmark.run_benchmark(plan, lambda text: None)
    # SyN starts from the affine alignment, which is run for it.
    assert calls == [("affine", False), ("ours", False), ("syn", True)]
    by_name = {r["method"]: r for r in rows}
    assert by_name["syn"]["error"] == "syn: it fell over"
    figures = by_name["ours"]["figures"]
    assert figures["points"]["median_mm"] == pytest.approx(1.0, abs=0.01)
    assert figures["liver"]["dice"] > 0.95
    assert all(tumour["centroid_error_mm"] < 1.6 for tumour in figures["tumours"])

    calls.clear()
    monkeypatch.setattr(benchmark, "run_method", told(simulated_patient, calls))
    again = {r["method"]: r for r in benchmark.run_benchmark(plan, lambda text: None)}
    assert calls == [("syn", True)]
    assert "error" not in again["syn"]
    assert again["ours"] == by_name["ours"]
    monkeypatch.setattr(benchmark, "VERSION", -1)  # another simulator: nothing of the former holds
    calls.clear()
    benchmark.run_benchmark(replace(plan, methods=("ours",)), lambda text: None)
    assert ("ours", False) in calls


def test_unknown_methods_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="astrology; choose from ours"):
        benchmark.Plan((), ("astrology",), tmp_path)
    (tmp_path / "file").write_text("")
    plan = benchmark.Plan(tuple(cohort.phantoms(1)), ("ours",), tmp_path / "file")
    with pytest.raises(InputError, match="cannot be made"):
        benchmark.run_benchmark(plan, lambda text: None)
    options = {"out": str(tmp_path / "out"), "methods": "ours", "processes": 1, "remarks": str(tmp_path / "no.md")}
    with pytest.raises(InputError, match=r"--remarks: .*no\.md cannot be read"):
        run_benchmark_command(options)


def test_a_missing_package_is_told_before_anything_is_run(tmp_path, monkeypatch):
    known = methods.metadata.version

    def version(package: str) -> str:
        if package == "antspyx":
            raise methods.metadata.PackageNotFoundError(package)
        return known(package)

    monkeypatch.setattr(methods.metadata, "version", version)
    options = {"out": str(tmp_path / "out"), "methods": "ours,syn", "processes": 1}
    with pytest.raises(InputError, match=r"syn: the package antspyx is not installed; .*\[benchmark\]"):
        run_benchmark_command(options)
    assert not (tmp_path / "out").exists()


def test_a_run_in_which_all_failed_leaves_no_page(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise InputError("CT: no.")

    monkeypatch.setattr(benchmark, "_measured", fails)
    assert run_benchmark_command({"out": str(tmp_path / "out"), "methods": "ours", "processes": 1, "cases": 2}) == 1
    assert "2 of 2 tasks failed" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("benchmark*"))


@pytest.mark.parametrize(
    ("how", "methods"), [(["--processes", "2"], "affine,ours-fast"), (["--scheduler", "local"], "affine")]
)
def test_the_command_on_a_cohort_of_ones_own(tmp_path, cohort_folder, how, methods):
    (tmp_path / "tried.md").write_text("## What was tried\n\nNothing.\n", encoding="utf-8")
    line = [sys.executable, "-m", "weaktumour", "benchmark", "--data", cohort_folder, "--out", tmp_path / "out",
            "--methods", methods, "--remarks", tmp_path / "tried.md", *how]  # fmt: skip
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "benchmark.json").read_text(encoding="utf-8"))
    summary = content["summary"]
    assert {name: found["patients"] for name, found in summary.items()} == dict.fromkeys(methods.split(","), 1)
    if "ours-fast" in summary:
        assert summary["ours-fast"]["target error mm"] < summary["affine"]["target error mm"]
    page = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert "1 cases of a cohort" in page
    assert "the seconds say little" in page
    assert page.endswith("\n\n## What was tried\n\nNothing.\n")
    for name in ("benchmark-error.png", "benchmark-cost.png"):
        assert f"({name})" in page
        assert (tmp_path / "out" / name).stat().st_size > 5000


def test_options_that_exclude_each_other(tmp_path):
    line = [sys.executable, "-m", "weaktumour", "benchmark", "--data", str(tmp_path), "--splits", str(SPLITS), "--out",
            str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_labels_are_carried_by_the_largest_share():
    grid = Grid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[5:15, 5:15, 5:10], array[5:15, 5:15, 10:15] = 1, 2
    shift = DisplacementField(grid, np.broadcast_to(np.array([2.0, 0, 0]), (*grid.shape, 3)).copy())
    carried = benchmark.carry_labels(Volume(array, grid), shift, grid)
    assert np.array_equal(carried[:, :, :18], array[:, :, 2:])


def test_goals_are_told_by_what_was_found():
    reached = {
        "tumour error mm": 1.0,
        "tumour error p90 mm": 5.0,
        "within 5 mm %": 96.0,
        "tumour Dice 15-25 mm": 0.8,
        "coverage +5 mm": 1.0,
        "volume ratio": 0.95,
        "volume ratio p10": 0.7,
        "liver Dice": 0.96,
        "liver HD95 mm": 3.0,
        "liver folds": 0,
        "SDlogJ": 0.3,
        "SDlogJ liver": 0.2,
        "failures": 0,
        "peak MB": 1500.0,
        "s": 10.0,
    }
    peers = {"convexadam": {**reached, "tumour error mm": 2.5, "s": 20.0, "SDlogJ": 0.6, "SDlogJ liver": 0.1},
             "syn": {**reached, "tumour error mm": 2.2}}  # fmt: skip
    told = {
        cells[1].strip(): (float(cells[2]), cells[4].strip())
        for cells in (line.split("|") for line in tables.bars({"ours": reached, **peers}).splitlines()[2:])
    }
    assert told["tumour error mm"] == (1.0, "met")
    assert told["tumour error p90 mm"] == (5.0, "**MISSED**")
    assert told["tumour error over that of syn"] == (pytest.approx(1 / 2.2, abs=1e-3), "met")
    assert told["volume ratio p10"] == (0.7, "**MISSED**")
    assert told["s over that of convexadam"] == (0.5, "met")
    assert told["SDlogJ over that of convexadam"] == (0.5, "met")
    assert told["SDlogJ in the liver over that of convexadam"] == (2.0, "**MISSED**")
    assert "s over" not in tables.bars({"ours": reached, **peers}, timed=False)
    assert tables.bars({"ours": reached}) == tables.bars(peers) == ""


def test_a_case_that_cannot_be_read_ends_its_own_tasks_alone(tmp_path, monkeypatch):
    def broken(patient, folder):
        if patient.seed == 1:
            raise OSError("the disk is gone")
        raise ValueError("what the method says")

    monkeypatch.setattr(benchmark, "prepared", broken)
    patients = (cohort.Patient("phantom-1", "phantom", 1), cohort.Patient("phantom-2", "phantom", 2))
    rows = benchmark.run_benchmark(benchmark.Plan(patients, ("affine",), tmp_path / "out"), report=lambda text: None)
    assert {row["patient"]: row["error"] for row in rows} == {
        "phantom-1": "the disk is gone", "phantom-2": "what the method says",
    }  # fmt: skip


def test_a_cohorts_rows_belong_to_its_files(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "ct_labels.nii.gz").write_bytes(b"before")
    patient = cohort.Patient("a", "case", source=str(tmp_path / "case"))
    plan = benchmark.Plan((patient,), ("affine",), tmp_path / "out")
    before = benchmark._key(plan, patient, "affine")
    assert benchmark._key(plan, patient, "affine") == before
    (tmp_path / "case" / "ct_labels.nii.gz").write_bytes(b"corrected")
    assert benchmark._key(plan, patient, "affine") != before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen on this system")
def test_processes_beside_each_other_get_cores_of_their_own():
    """Two folds that share a core take twice as long while the other one idles."""
    code = (
        "import os, sys; from common import use_cores; use_cores(1, int(sys.argv[1])); print(os.sched_getaffinity(0))"
    )
    folder = Path(__file__).parents[1] / "benchmark"
    kept = [
        subprocess.run(
            [sys.executable, "-c", code, str(number)], cwd=folder, capture_output=True, text=True, check=True
        )
        for number in range(2)
    ]
    assert len({process.stdout for process in kept}) == min(2, len(os.sched_getaffinity(0)))
