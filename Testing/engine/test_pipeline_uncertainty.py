"""The second stage of `register` on the simulated patient: what it adds, and that it can be stopped."""

import json
import re
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from weaktumour import pipeline
from weaktumour.cases import Case
from weaktumour.errors import Cancelled, InputError, ModelError
from weaktumour.pipeline import RegisterArguments, register_and_propagate
from weaktumour.progress import Monitor
from weaktumour.result import load_schema
from weaktumour.uncertainty.calibration import FILE
from weaktumour.volumes import read_volume


def arguments(case: Path, out: Path, **options) -> RegisterArguments:
    files = {name: str(case / f"{name}.nii.gz") for name in ("mr", "ct", "mr_labels")}
    return RegisterArguments(out=str(out), device="cpu", **{**files, **options})


class Watched(Monitor):
    """Keeps the events, and what result.json said when the result was announced; stops at a stage where asked to."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.events: list[dict] = []
        self.first: dict = {}
        self._stop_in = stop_in
        super().__init__(self._hear, self._asked)

    def _hear(self, event) -> None:
        self.events.append(event)
        if event["event"] == "result":
            self.first = json.loads((Path(event["folder"]) / "result.json").read_text())

    def _asked(self) -> bool:
        return bool(self._stop_in) and any(e.get("stage") == self._stop_in for e in self.events)


@pytest.fixture(scope="module")
def computed() -> dict[str, object]:
    """What the longest steps of `assessed` gave, by name."""
    return {}


@pytest.fixture(scope="module")
def assessed(simulated_case: Path, computed, tmp_path_factory) -> tuple[Path, Watched]:
    out = tmp_path_factory.mktemp("assessed") / "result"
    monitor = Watched()

    def kept(name: str, real):
        return lambda *args, **how: computed.setdefault(name, real(*args, **how))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("register", "measure_uncertainty"):
            patch.setattr(pipeline, name, kept(name, getattr(pipeline, name)))
        register_and_propagate(arguments(simulated_case, out, uncertainty="on"), monitor)
    return out, monitor


def test_the_result_is_there_before_its_uncertainty(assessed):
    out, monitor = assessed
    assert [e["event"] for e in monitor.events].count("result") == 1
    announced = monitor.events.index({"event": "result", "folder": str(out), "complete": False})
    assert all(e.get("stage") == "uncertainty" for e in monitor.events[announced + 1 :] if e["event"] == "progress")
    assert [t["verdict"] for t in monitor.first["tumours"]] == ["not_assessed"] * 2
    assert "uncertainty" not in monitor.first["timings_s"]
    jsonschema.validate(monitor.first, load_schema())


def test_each_tumour_gets_a_radius_a_covariance_and_a_verdict(assessed):
    result = json.loads((assessed[0] / "result.json").read_text())
    jsonschema.validate(result, load_schema())
    assert result["timings_s"]["uncertainty"] > 0
    if sys.platform == "linux":
        assert 100 < result["peak_memory_mb"] < 50_000
    assert {"id": "uncertainty", "role": "uncertainty"}.items() <= result["models"][-1].items()
    assert result["models"][-1]["file"] == FILE
    for tumour in result["tumours"]:
        assert 0 < tumour["p50_mm"] < tumour["p95_mm"]
        assert np.linalg.eigvalsh(tumour["covariance_mm2"]).min() > 0
        assert tumour["verdict"] in ("localised", "approximate", "cannot_be_localised")
        assert tumour["verdict_reason"]
        assert abs(tumour["cnr_ct"]) < 1 < abs(tumour["cnr_mr"])  # this patient's tumours are invisible in the CT
        assert tumour["visibility_ct"] < 0.5 < tumour["visibility_mr"]
    assert 0 < result["metrics"]["liver_agreement_dice"] <= 1
    assert 0 < result["metrics"]["unlikeness"] < 1


def test_without_the_same_vessels_no_tumour_is_localised(assessed, computed, simulated_case, tmp_path, monkeypatch):
    with_vessels = json.loads((assessed[0] / "result.json").read_text())
    for name, found in computed.items():
        monkeypatch.setattr(pipeline, name, lambda *_, found=found, **__: found)
    asked = []
    monkeypatch.setattr(pipeline, "shows_same_vessels", lambda correlation: bool(asked.append(correlation)))
    register_and_propagate(arguments(simulated_case, tmp_path / "out", uncertainty="on"), Monitor())
    without = json.loads((tmp_path / "out" / "result.json").read_text())
    assert asked == [without["metrics"]["vessel_agreement"]] == [with_vessels["metrics"]["vessel_agreement"]]
    verdicts = [[tumour["verdict"] for tumour in result["tumours"]] for result in (with_vessels, without)]
    assert "localised" in verdicts[0]
    assert verdicts[1] == ["approximate" if verdict == "localised" else verdict for verdict in verdicts[0]]


def test_the_true_place_is_inside_what_is_stated(assessed, simulated_patient: Case):
    """Of two tumours, p95 may miss one in ten such pairs; twice p95 should not."""
    result = json.loads((assessed[0] / "result.json").read_text())
    labels = simulated_patient.ct_labels
    for tumour in result["tumours"]:
        true = labels.grid.index_to_world(np.argwhere(labels.array == tumour["label"])[:, ::-1].mean(0))
        assert np.linalg.norm(true - tumour["centroid_lps_mm"]) < 2 * tumour["p95_mm"]


def test_the_probability_lies_round_the_labels(assessed):
    out = assessed[0]
    likely, labels = read_volume(out / "tumour_probability.nii.gz", "p"), read_volume(out / "ct_labels.nii.gz", "l")
    assert likely.grid.same_as(labels.grid)
    assert 0 <= likely.array.min() < likely.array.max() <= 1
    tumours = labels.array > 1
    assert likely.array[tumours].mean() > 0.4
    assert likely.array.sum() == pytest.approx(tumours.sum(), rel=0.05)
    assert likely.array[~tumours].sum() > 0


def test_the_report_shows_it(assessed):
    page = (assessed[0] / "report.html").read_text(encoding="utf-8")
    assert "95 of 100" in page
    assert page.count('class="likely"') >= 2 * 3  # two tumours, three planes, at least one level each
    result = json.loads((assessed[0] / "result.json").read_text())
    for tumour in result["tumours"]:
        assert re.search(rf"{tumour['p50_mm']:.1f} / {tumour['p95_mm']:.1f}", page)


def test_stopped_in_the_second_stage_the_result_stays(simulated_case: Path, tmp_path, monkeypatch):
    _fast(monkeypatch)
    out, monitor = tmp_path / "result", Watched(stop_in="uncertainty")
    with pytest.raises(Cancelled):
        register_and_propagate(arguments(simulated_case, out, uncertainty="on"), monitor)
    result = json.loads((out / "result.json").read_text())
    assert result == monitor.first
    assert not (out / "tumour_probability.nii.gz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def _fast(monkeypatch) -> None:
    """The registration as short as it can be: only what comes after it is of interest."""
    monkeypatch.setitem(pipeline.PRESETS, "balanced", pipeline.PRESETS["fast"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "fast"}, "not calibrated for the preset fast"),
        ({"stages": "alignment"}, "leave --stages out"),
        ({"segmentation_model": "none"}, "another segmentation model"),
        ({"uncertainty": "perhaps"}, "choose one of auto, on, off"),
        ({"verdict_mm": "9,5"}, "two rising distances"),
        ({"verdict_mm": "five"}, "two rising distances"),
    ],
)
def test_what_cannot_be_assessed_is_said_before_anything_runs(simulated_case, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        register_and_propagate(arguments(simulated_case, tmp_path / "r", **{"uncertainty": "on", **options}), Monitor())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_without_a_calibration(simulated_case, tmp_path, monkeypatch, wanted):
    """Asked for, that is an error; otherwise the log says that no verdict is given."""
    monkeypatch.setattr(pipeline, "CALIBRATION_FILE", "none.json")
    given = arguments(simulated_case, tmp_path / "r", uncertainty=wanted)
    stages, networks = pipeline.STAGES, pipeline._choose_models(given, pipeline.STAGES, Monitor())
    if wanted == "on":
        with pytest.raises(ModelError, match=r"none\.json cannot be used"):
            pipeline._calibration(given, stages, networks)
    else:
        calibration, why_not = pipeline._calibration(given, stages, networks)
        assert calibration is None
        assert "none.json cannot be used" in why_not
