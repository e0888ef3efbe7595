"""`weaktumour analyse`: results of a known patient, sorted by what the CT shows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weaktumour.cli import main
from weaktumour.evaluation.analysis import Structure, page, result_folders
from weaktumour.volumes import read_volume


@pytest.fixture
def folders(simulated_case: Path, registered_result: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of results with one in it, and a cohort with its case."""
    results, cohort = tmp_path / "results", tmp_path / "cohort"
    for folder, link in ((results, registered_result), (cohort, simulated_case)):
        folder.mkdir()
        (folder / "patient-1").symlink_to(link, target_is_directory=True)
    return results, cohort


def test_structures_against_the_truth(folders, simulated_patient, tmp_path, capsys):
    results, cohort = folders
    assert main(["analyse", str(results), "--data", str(cohort), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [entry["group"] for entry in found] == ["liver"] + ["tumour, invisible in the CT"] * 2
    labels, truth = read_volume(results / "patient-1" / "ct_labels.nii.gz", "labels"), simulated_patient.ct_labels
    a, b = labels.array > 0, truth.array > 0
    assert found[0]["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-9)
    for entry, value in zip(found[1:], (2, 3), strict=True):
        centroids = [v.grid.index_to_world(np.argwhere(v.array == value)[:, ::-1].mean(0)) for v in (labels, truth)]
        assert entry["error_mm"] == pytest.approx(np.linalg.norm(centroids[0] - centroids[1]), abs=1e-4)
        assert abs(entry["cnr_true"]) < 1 < abs(entry["cnr_mr"])
        assert entry["case"] == "patient-1"
    said = capsys.readouterr().out
    assert "Feature absence: 100 %" in said
    assert "| tumour, invisible in the CT | 2 |" in said
    assert (tmp_path / "out" / "analysis.png").stat().st_size > 5000


def test_one_result_with_its_case(folders, simulated_case, registered_result, tmp_path, capsys):
    """The demo's own folders; a case says nothing of several results."""
    line = ["analyse", str(registered_result), "--data", str(simulated_case), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert all(entry["dice"] is not None for entry in found)
    (folders[0] / "patient-2").symlink_to(registered_result, target_is_directory=True)
    assert main(["analyse", str(folders[0]), *line[2:]]) == 2
    assert "is one case and RESULT holds 2 results" in capsys.readouterr().err


def test_results_of_other_cases_are_left_out_and_named(folders, registered_result, tmp_path):
    results, cohort = folders
    (results / "stale").symlink_to(registered_result, target_is_directory=True)
    assert main(["analyse", str(results), "--data", str(cohort), "--out", str(tmp_path)]) == 0
    assert {entry["case"] for entry in json.loads((tmp_path / "analysis.json").read_text())} == {"patient-1"}
    said = (tmp_path / "analysis.md").read_text()
    assert "1 results, 2 tumours" in said
    assert "Left out, since the data hold no case of that name: stale." in said


def test_without_a_truth_what_the_results_say_remains(registered_result, tmp_path):
    assert main(["analyse", str(registered_result), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert [entry["dice"] for entry in found] == [None] * 3
    assert found[1]["cnr_stated"] is not None
    assert not (tmp_path / "analysis.png").exists()


def test_results_may_lie_one_folder_deeper(folders, tmp_path):
    deeper = tmp_path / "all"
    (deeper / "site").mkdir(parents=True)
    (deeper / "site" / "patient-1").symlink_to(folders[0] / "patient-1", target_is_directory=True)
    assert result_folders(deeper) == [deeper / "site" / "patient-1"]


@pytest.mark.parametrize("what", ["no results", "another cohort", "a broken result"])
def test_what_cannot_be_analysed_is_said(folders, tmp_path, capsys, what):
    results, cohort = folders
    if what == "no results":
        results = cohort
    elif what == "another cohort":
        (cohort / "patient-1").rename(cohort / "somebody")
    else:
        broken = tmp_path / "broken" / "patient-1"
        broken.mkdir(parents=True)
        (broken / "result.json").write_text("{")
        results = broken.parent
    assert main(["analyse", str(results), "--data", str(cohort), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    words = {"no results": "holds no result folder", "another cohort": "named as a result is",
             "a broken result": "run that case again"}  # fmt: skip
    assert words[what] in said
    assert not (tmp_path / "out").exists()


def test_groups_and_coverage_by_hand():
    base = Structure("a", "tumour", "T", "localised", p95_mm=3.0, cnr_mr=4.0, cnr_stated=0.1, dice=0.5, error_mm=2.0)
    structures = [base, replace(base, error_mm=4.0), replace(base, cnr_true=-2.0), replace(base, cnr_stated=None)]
    assert [s.group for s in structures] == [
        "tumour, invisible in the CT",
        "tumour, invisible in the CT",
        "tumour, visible in the CT",
        "tumour, visibility unknown",
    ]
    lines = [line for line in page(structures, None).splitlines() if "invisible in the CT |" in line]
    assert [cell.strip() for cell in lines[0].split("|")[2:7]] == ["2", "0.500", "3.000", "3.000", "50.0"]
