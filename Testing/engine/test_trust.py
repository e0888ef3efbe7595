"""The trust benchmark's pairs and figures: spoiled pairs are spoiled, intervals are right."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from weaktumour.evaluation import trust
from weaktumour.evaluation.trust import SPOILINGS, Pair, simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark"))


@pytest.fixture
def from_fixture(monkeypatch, simulated_patient) -> list[dict]:
    """Every patient is the coarse one; what was asked for is kept."""
    asked: list[dict] = []

    def simulated(pair, seed, **options):
        asked.append({"seed": seed, "label_map": pair.label_map, **options})
        return simulated_patient

    monkeypatch.setattr(trust, "_simulated", simulated)
    return asked


def test_a_mirrored_mri_has_its_labels_with_it(from_fixture, simulated_patient):
    case = simulate(Pair("p", 3, spoiling="mirrored MRI"))
    x = int(np.abs(case.mr.grid.axes[0]).argmax())  # the array axis that runs left to right, of x, y, z
    assert np.array_equal(np.flip(case.mr.array, 2 - x), simulated_patient.mr.array)
    assert case.mr.grid.same_as(simulated_patient.mr.grid)
    for v in (1, 2, 3):  # what a label covers is the same tissue as before
        before = simulated_patient.mr.array[simulated_patient.mr_labels.array == v]
        assert np.array_equal(np.sort(case.mr.array[case.mr_labels.array == v]), np.sort(before))


@pytest.mark.parametrize("seed", range(6))
def test_half_a_liver_is_half(from_fixture, simulated_patient, seed):
    case = simulate(Pair("p", seed, spoiling="half a liver"))
    shares = []
    for name in ("ct", "mr"):
        labels, whole = getattr(case, f"{name}_labels"), getattr(simulated_patient, f"{name}_labels")
        image = getattr(case, name)
        assert image.grid.same_as(labels.grid)
        shares.append((labels.array > 0).sum() / (whole.array > 0).sum())
        # What is left lies where it was.
        index = np.argwhere(labels.array > 0)[::501]
        there = np.rint(whole.grid.world_to_index(labels.grid.index_to_world(index[:, ::-1]))).astype(int)
        assert (whole.array[tuple(there[:, ::-1].T)] == labels.array[tuple(index.T)]).all()
    assert max(shares) == 1
    assert 0.4 < min(shares) < 0.6


def test_other_patients_and_lost_alignments_are_asked_for(from_fixture):
    simulate(Pair("p", 3, spoiling="other patient's CT", other_seed=9))
    assert [entry["seed"] for entry in from_fixture] == [3, 9]
    simulate(Pair("p", 3, spoiling="lost alignment"))
    assert np.linalg.norm(from_fixture[-1]["world_offset_mm"]) == pytest.approx(300)
    assert from_fixture[-1]["tilt_degrees"] >= 60
    assert abs(from_fixture[-1]["breathing_mm"]) >= 50
    assert len(SPOILINGS) == 4


@pytest.mark.parametrize(("successes", "number"), [(95, 100), (0, 20), (400, 400), (7, 9)])
def test_wilson_against_scipy(successes, number):
    from trust import wilson

    known = binomtest(successes, number).proportion_ci(0.95, method="wilson")
    assert wilson(successes, number) == pytest.approx((known.low, known.high), abs=2e-4)


def test_rank_correlation_against_scipy():
    from trust import _spearman

    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert _spearman(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)


def test_the_parts_share_no_patient():
    content = json.loads((Path(__file__).parents[1] / "benchmark" / "splits.json").read_text())
    calibration, test = (content["trust"][part] for part in ("calibration", "test"))

    def seeds(part: dict) -> set[int]:
        listed = [entry["seed"] for name in ("label_maps", "real_ct") for entry in part[name]]
        drawn = [seed for d in part["spoiled"] for seed in range(d["first"], d["first"] + 2 * d["of_each"])]
        every = [*part["phantoms"], *listed, *drawn]
        assert len(every) == len(set(every))
        return set(every)

    assert not seeds(calibration) & seeds(test)
    known, unseen = ({entry["map"] for entry in part["label_maps"]} for part in (calibration, test))
    assert not known & unseen
    assert unseen <= set(content["label_maps"]["test"])
    assert not known & set(content["label_maps"]["train"])  # the networks know those
    images = ({entry["image"] for entry in part["real_ct"]} for part in (calibration, test))
    assert set.intersection(*images) == {"chaos_ct"}  # the only whole one
    # The 80 patients with 5 tumours each are new in their anatomy too: no real CT among them.
    assert len(test["phantoms"]) + len(test["label_maps"]) >= 80
    assert sum(drawn["of_each"] for drawn in test["spoiled"]) >= 20


def test_rows_of_other_code_are_made_anew(tmp_path):
    from trust import _code, _Kept, _key

    path = tmp_path / "test.jsonl"
    kept = _Kept(path, any_code=False)
    for name, code, key in (("mine", _code(), _key()), ("old", "0123", _key()), ("other networks", _code(), [1])):
        kept.add({"patient": name, "code": code, "key": key, "tumours": []})
    with path.open("a") as file:
        file.write('{"patient": "cut sho')  # killed while it wrote
    assert list(_Kept(path, any_code=False).rows) == ["mine"]
    lenient = _Kept(path, any_code=True)
    assert list(lenient.rows) == ["mine", "old"]
    lenient.tidy()
    assert [json.loads(line)["patient"] for line in path.read_text().splitlines()] == ["mine", "old"]


def test_the_kept_rows_are_those_of_the_calibration_part(shared_data):
    """Else the command that is to give the shipped calibration would first make hours of rows, and give another."""
    from trust import CALIBRATION, ROWS, Calibration, _fitted, _pairs

    text = (ROWS / "calibration.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted(row["patient"] for row in rows) == sorted(pair.name for pair in _pairs("calibration"))
    sound = [row for row in rows if row["spoiling"] is None]
    shipped = Calibration.read(CALIBRATION)
    assert f" of {len(sound)} simulated patients" in shipped.data
    # And the shipped one is what they give.
    again = _fitted(rows)
    assert again.data == shipped.data
    assert again.scores == pytest.approx(shipped.scores, rel=1e-6)
    assert again.doubtful == pytest.approx(shipped.doubtful, rel=1e-4)


def test_whose_liver_a_pair_shows():
    from trust import _anatomy, _calibrated, _named

    assert _anatomy("phantom-930001") != _anatomy("phantom-930002")
    assert (
        _anatomy("map-lits_lits-103-931001") == _anatomy("map-lits_lits-103-931101") != _anatomy("map-lits_lits-10-1")
    )
    assert _anatomy("ct-chaos_ct-933000") == _anatomy("ct-chaos_ct-933023")
    known = _calibrated()
    assert {_anatomy("ct-chaos_ct-953000"), _anatomy("map-lits_lits-103-1"), _anatomy("phantom-900000")} <= known
    assert not known & {f"phantom-{seed}" for seed in _named("test")["phantoms"]}


def test_rows_keep_five_digits():
    from trust import _shortened

    row = {"a": [1.23456789, None, "text"], "b": {"c": 123456.789, "d": 7, "e": True}}
    assert _shortened(row) == {"a": [1.2346, None, "text"], "b": {"c": 123460.0, "d": 7, "e": True}}


def test_the_page_says_what_became_of_each_verdict(tmp_path, capsys):
    """From the committed rows: a localised tumour that is put far off is counted, and nothing else changes."""
    import trust as script

    text = (script.ROWS / "calibration.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    remarks = tmp_path / "remarks.md"
    remarks.write_text("Known better since.\n")

    def page(name: str) -> dict[str, list[str]]:
        arguments = Namespace(
            split="calibration",
            page=tmp_path / name / "p.md",
            remarks=remarks,
            out=None,
            smoke=True,
            calibration=script.CALIBRATION,
        )
        script._evaluated(rows, arguments)
        written = arguments.page.read_text(encoding="utf-8")
        assert written.endswith("Known better since.\n")
        assert (arguments.page.parent / "p.png").stat().st_size > 10_000
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines() if "|" in line]
        return {line[0]: line[1:] for line in cells}

    before = page("before")
    verdicts = ("localised", "approximate", "cannot be localised")
    assert sum(int(before[verdict][0]) for verdict in verdicts) == int(before["all"][0])
    judged = [
        (script._judged(row, t, script.Calibration.read(script.CALIBRATION)), t) for row, t in script._sound(rows)
    ]
    next(t for j, t in judged if j["verdict"] == "localised" and j["error"] <= j["p95"])["error_mm"] = 30.0
    after = page("after")
    assert int(after["localised"][3]) == int(before["localised"][3]) + 1
    assert float(after["all"][1]) < float(before["all"][1])
    assert after["approximate"] == before["approximate"]
    capsys.readouterr()


def test_an_anatomy_that_the_calibration_knows_is_shown_apart(tmp_path, monkeypatch, capsys):
    """As in the test part, here with the real CT of the calibration's own rows."""
    import trust as script

    rows = [json.loads(line) for line in (script.ROWS / "calibration.jsonl").read_text(encoding="utf-8").splitlines()]
    monkeypatch.setattr(script, "_calibrated", lambda: {"ct-chaos_ct"})
    arguments = Namespace(split="test", page=None, remarks=None, out=None, smoke=True, calibration=script.CALIBRATION)
    script._evaluated(rows, arguments)
    told = capsys.readouterr().out
    lines = {cells[1].strip(): cells[2].strip() for line in told.splitlines() if len(cells := line.split("|")) > 3}
    sound = script._sound(rows)
    real = sum(row["patient"].startswith("ct-") for row, _ in sound)
    assert real > 0
    assert lines["not counted: real CT (CHAOS), an anatomy that calibration knows"] == str(real)
    assert lines["all"] == lines["all, but for the real CTs"] == str(len(sound) - real)
    assert f"{len(sound) - real} tumours of" in told
