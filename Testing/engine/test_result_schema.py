"""result.json: the schema, the run-time check and the builders hold each other to one contract."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from weaktumour.result import (
    InputFile,
    RunResult,
    Truth,
    check_result,
    load_schema,
    orientation_code,
    read_result,
    sha256_of,
    write_result,
)
from weaktumour.volumes import Grid, Volume

sys.path.insert(0, str(Path(__file__).parent))
from report_case import grid_around, label_array, make_result

NAMES = {1: "Liver", 2: "Tumour 1", 3: "Tumour 2"}


@pytest.fixture(scope="module")
def run() -> RunResult:
    grid = grid_around(spacing=(6.0, 6.0, 6.0))
    return make_result(Volume(label_array(grid.points()), grid), NAMES)


@pytest.fixture
def good(run) -> dict:
    return copy.deepcopy(run.to_dict())


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _set(path, value):
    def change(result):
        *parents, last = path
        for key in parents:
            result = result[key]
        result[last] = value

    return change


def _drop(*path):
    def change(result):
        *parents, last = path
        for key in parents:
            result = result[key]
        del result[last]

    return change


# Broken in ways that both the schema and the run-time check have to see.
BROKEN = {
    "another schema number": _set(["schema"], 2),
    "a key that is not in the contract": _set(["patient"], "DOE^JOHN"),
    "no warnings list": _drop("warnings"),
    "a tumour without its volume": _drop("tumours", 0, "volume_mm3"),
    "a tumour with a field too many": _set(["tumours", 0, "volume_ml"], 1.0),
    "an unknown verdict": _set(["tumours", 0, "verdict"], "fine"),
    "a guess where nothing was assessed": _set(["tumours", 0, "p95_mm"], 4.0),
    "localised without an uncertainty": _set(["tumours", 0, "verdict"], "localised"),
    "more than all of it inside the CT": _set(["tumours", 0, "inside_ct_fraction"], 1.2),
    "a negative volume": _set(["tumours", 0, "volume_mm3"], -1.0),
    "a covariance that is no matrix": _set(["tumours", 0, "covariance_mm2"], [[1, 0, 0], [0, 1, 0]]),
    "a role that nobody knows": _set(["labels", "1", "role"], "spleen"),
    "a label that is not a number": _set(
        ["labels", "liver"], {"name": "x", "role": "other", "volume_mm3": 1, "components": []}
    ),
    "a folder in an input's name": _set(["inputs", "mr", "file"], "C:\\patients\\doe.nii"),
    "no CT": _set(["inputs", "ct"], None),
    "a short checksum": _set(["inputs", "ct", "sha256"], "abc"),
    "a run that is neither ok nor doubtful": _set(["run", "verdict"], "failed"),
    "doubt without a reason": _set(["run"], {"verdict": "check_alignment", "reasons": []}),
    "time that runs backwards": _set(["timings_s", "refine"], -0.1),
    "a similarity without direction": _set(["registration", "similarity", "better"], "more"),
}

# What a schema cannot express; the run-time check alone sees it.
INCONSISTENT = {
    "a tumour without a label": _drop("labels", "2"),
    "a tumour label without a tumour": _drop("tumours", 0),
    "a start that was not kept": _set(["registration", "start"], "as given"),
    "percentiles out of order": _set(["registration", "jacobian", "p01"], 1.3),
    "a volume without a centroid": _set(["tumours", 0, "centroid_lps_mm"], None),
    "NaN": _set(["metrics", "ncc"], float("nan")),
}


def test_a_good_result_satisfies_schema_and_check(good, validator):
    validator.validate(good)
    check_result(good)


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_broken_results_are_refused_by_schema_and_check(change, good, validator):
    change(good)
    assert not validator.is_valid(good)
    with pytest.raises(ValueError, match=r"result\.json"):
        check_result(good)


@pytest.mark.parametrize("change", INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_inconsistent_results_are_refused_by_the_check(change, good):
    change(good)
    with pytest.raises(ValueError, match=r"result\.json"):
        check_result(good)


@pytest.mark.parametrize("verdict", ["localised", "approximate", "cannot_be_localised", "outside_ct"])
def test_assessed_tumours_are_accepted(verdict, good, validator):
    good["tumours"][0].update(verdict=verdict, p50_mm=3.0, p95_mm=6.5, covariance_mm2=np.diag([4.0, 4.0, 9.0]).tolist())
    validator.validate(good)
    check_result(good)
    good["tumours"][0]["p50_mm"] = 7.0
    with pytest.raises(ValueError, match="above p95_mm"):
        check_result(good)


def test_a_tumour_outside_the_ct_needs_no_centroid(good, validator):
    good["tumours"][0].update(
        verdict="outside_ct", volume_mm3=0.0, centroid_lps_mm=None, diameter_mm=None, inside_ct_fraction=0.0
    )
    validator.validate(good)
    check_result(good)


def test_writing_and_reading_gives_the_same(run, tmp_path):
    written = write_result(tmp_path / "result.json", run)
    assert read_result(tmp_path / "result.json") == written == run.to_dict()
    (tmp_path / "result.json").read_bytes().decode("ascii")  # readable by anything


def test_an_invalid_result_is_not_written(good, tmp_path):
    good["tumours"][0]["verdict"] = "fine"
    with pytest.raises(ValueError, match="verdict"):
        write_result(tmp_path / "result.json", good)
    assert not list(tmp_path.iterdir())


def test_unknown_and_infinite_numbers_become_null(run, validator):
    figures = {"dice": np.float32(0.5), "hd95_mm": np.inf, "assd_mm": np.nan}
    changed = RunResult(
        **{**run.__dict__, "truth": Truth("simulated", {2: figures}), "metrics": {"ncc": np.float64("nan")}}
    )
    content = changed.to_dict()
    validator.validate(content)
    assert content["truth"]["labels"]["2"] == {"dice": 0.5, "hd95_mm": None, "assd_mm": None}
    assert content["metrics"] == {"ncc": None}
    json.dumps(content, allow_nan=False)


def test_total_time_is_the_sum_of_the_stages(run):
    stages = {name: value for name, value in run.to_dict()["timings_s"].items() if name != "total"}
    assert run.to_dict()["timings_s"]["total"] == pytest.approx(sum(stages.values()))


def test_input_file_holds_no_folder_and_the_right_checksum(tmp_path):
    folder = tmp_path / "DOE^JOHN"
    folder.mkdir()
    (folder / "ct.nii.gz").write_bytes(b"voxels")
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0), (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    item = InputFile.of(folder / "ct.nii.gz", grid)
    assert item == InputFile("ct.nii.gz", hashlib.sha256(b"voxels").hexdigest(), (4, 5, 6), (1.0, 2.0, 3.0), "RAS")
    # A DICOM folder: names of its files do not matter.
    before = sha256_of(folder)
    (folder / "ct.nii.gz").rename(folder / "renamed.nii.gz")
    assert sha256_of(folder) == before


def test_orientation_of_an_oblique_grid_is_the_nearest():
    angle = np.radians(30)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, -1)
    assert orientation_code(direction) == "LPI"


def test_truth_takes_what_the_evaluation_returns():
    grid = grid_around(spacing=(5.0, 5.0, 5.0))
    metrics = pytest.importorskip("weaktumour.evaluation.metrics")
    labels = Volume(label_array(grid.points()), grid)
    truth = Truth.of(metrics.evaluate_case(labels, labels))
    assert set(truth.labels) == {2, 3}
    assert truth.labels[2]["dice"] == truth.whole_liver["dice"] == 1.0
    assert "centroid_lps_mm" not in truth.labels[2]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's high-water mark")
def test_peak_memory_is_the_workers_and_not_that_of_what_started_it():
    """Slicer holds gigabytes when it starts the worker."""
    child = "from weaktumour.result import peak_memory_mb; held = bytearray(60_000_000); print(peak_memory_mb())"
    parent = (
        f"import subprocess, sys; held = bytes(b'1') * 600_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    )
    told = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 60 < float(told) < 400
