"""Case folders: what is written is read, and a reader of the plain files finds what DESIGN.md promises."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour import __version__
from weaktumour.cases import Case, read_case, read_case_info, write_case
from weaktumour.errors import InputError
from weaktumour.simulation import VERSION, simulate_patient
from weaktumour.volumes import Grid, Volume


@pytest.fixture(scope="module")
def case():
    return simulate_patient(
        2, ct_spacing_mm=5, mr_spacing_mm=(4, 4, 5), anatomy_spacing_mm=4, tumour_diameters_mm=[30.0]
    )


def clinical_case() -> Case:
    """The least that a case can hold, on an oblique grid."""
    grid = Grid((6, 5, 4), (1.5, 2.0, 3.0), (10.0, -20.0, 30.0), (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    ramp = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    return Case(
        mr=Volume(ramp, grid),
        ct=Volume(ramp - 60, grid),
        mr_labels=Volume((ramp > 50).astype(np.uint8) + (ramp > 100), grid),
        label_names={1: "Liver", 2: "Metastasis, segment VII"},
        info={"id": "clinical-0001", "kind": "clinical"},
    )


def test_a_simulated_case_survives_the_round_trip(case, tmp_path):
    write_case(tmp_path / "cohort" / "one", case)
    back = read_case(tmp_path / "cohort" / "one")
    for name in ("mr", "ct", "mr_labels", "ct_labels"):
        written, read = getattr(case, name), getattr(back, name)
        assert np.array_equal(written.array, read.array), name
        assert written.grid.same_as(read.grid), name
    assert back.label_names == case.label_names
    assert np.allclose(back.truth_points, case.truth_points, atol=1e-5)
    assert np.array_equal(back.truth.displacement_mm, case.truth.displacement_mm)
    assert np.allclose(back.truth.transform_points(back.truth_points[:, :3]), back.truth_points[:, 3:], atol=1e-4)
    assert {k: back.info[k] for k in case.info} == case.info
    assert back.info["software_version"] == __version__
    assert back.info["simulator_version"] == VERSION


def test_the_folder_holds_plain_files_as_documented(case, tmp_path):
    write_case(tmp_path, case)
    assert {p.name for p in tmp_path.iterdir()} == {
        "mr.nii.gz", "ct.nii.gz", "mr_labels.nii.gz", "ct_labels.nii.gz", "labels.json", "case.json",
        "truth_transform.h5", "truth_points.csv",
    }  # fmt: skip
    lines = (tmp_path / "truth_points.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "ct_x,ct_y,ct_z,mr_x,mr_y,mr_z"
    row = [float(v) for v in lines[1].split(",")]
    transform = sitk.ReadTransform(str(tmp_path / "truth_transform.h5"))
    assert transform.TransformPoint(row[:3]) == pytest.approx(row[3:], abs=1e-3)
    info = json.loads((tmp_path / "case.json").read_text(encoding="utf-8"))
    assert (info["schema"], info["kind"], info["ct_labels"]) == (1, "simulated", "truth")
    labels = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))["labels"]
    assert [(entry["value"], entry["name"]) for entry in labels] == [(1, "Liver"), (2, "Tumour 1")]
    assert labels[0]["terminology"]["type"]["value"] == "10200004"
    assert labels[1]["terminology"]["type"]["value"] == "4147007"


def test_a_case_without_truth_is_a_case(tmp_path):
    case = clinical_case()
    write_case(tmp_path, case)
    back = read_case(tmp_path)
    assert (back.ct_labels, back.truth, back.truth_points) == (None, None, None)
    assert back.label_names == case.label_names
    assert back.info["ct_labels"] is None
    assert back.info["simulator_version"] is None
    assert np.array_equal(back.mr.array, case.mr.array)


@pytest.mark.parametrize("info", [{}, {"id": "x", "kind": "imagined"}, {"kind": "clinical"}])
def test_a_case_needs_an_id_and_a_kind(info, tmp_path):
    with pytest.raises(ValueError, match="id and a kind"):
        write_case(tmp_path / "new", dataclasses.replace(clinical_case(), info=info))
    assert not (tmp_path / "new").exists()


def test_what_is_no_case_folder_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no case"):
        read_case(tmp_path)
    (tmp_path / "case.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        read_case_info(tmp_path)
    (tmp_path / "case.json").write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(InputError, match="newer than 1"):
        read_case_info(tmp_path)
    (tmp_path / "case.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="no schema"):
        read_case_info(tmp_path)
    write_case(tmp_path, clinical_case())
    (tmp_path / "truth_points.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="not a table"):
        read_case(tmp_path)
    (tmp_path / "mr.nii.gz").unlink()
    with pytest.raises(InputError, match=r"MRI: .* does not exist"):
        read_case(tmp_path)


def test_a_place_where_no_folder_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be made"):
        write_case(tmp_path / "file", clinical_case())


def test_cases_and_simulation_start_without_torch():
    code = "import sys, weaktumour.cases, weaktumour.simulation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
