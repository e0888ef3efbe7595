"""Uncertainty: the calibration on numbers made up for it, its pieces on scenes with known answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from weaktumour.deformation import Affine, DisplacementField
from weaktumour.errors import ModelError
from weaktumour.labels import LIVER, TUMOUR, Label, LabelMap
from weaktumour.progress import Monitor
from weaktumour.registration.preparation import Scan
from weaktumour.registration.refinement import Composed
from weaktumour.uncertainty.calibration import (
    Calibration,
    Linear,
    Term,
    case_of,
    conformal_quantile,
    cross_fitted,
    fit,
    fit_middle,
)
from weaktumour.uncertainty.ensemble import VARIANTS, place_of, run_ensemble, tumour_points
from weaktumour.uncertainty.evidence import evidence, whole
from weaktumour.uncertainty.regions import covariance_mm2, probability
from weaktumour.volumes import Grid, Volume

NAMES = ("spread", "contrast")


# -- calibration ----------------------------------------------------------------------------------------------------
def made_up(patients: int, seed: int, tumours: int = 5) -> list[tuple[str, dict, float]]:
    """Errors of a three-dimensional normal distribution whose scale follows one feature and not the other."""
    rng = np.random.default_rng(seed)
    sound = []
    for patient in range(patients):
        for _ in range(tumours):
            spread, contrast = rng.normal(size=2)
            error = float(np.linalg.norm(rng.normal(size=3)) * np.exp(0.8 * spread))
            sound.append((f"p{patient}", {"spread": spread, "contrast": contrast}, error))
    return sound


def calibrated(seed: int = 0) -> Calibration:
    rng = np.random.default_rng(seed)
    spoiled = [(f"s{i}", {"spread": rng.normal(), "contrast": -8.0 + rng.normal()}) for i in range(40)]
    return fit(made_up(240, seed), spoiled, NAMES, models={"registration": "a"}, simulator=2, data="made up")


def test_p95_holds_the_error_of_new_patients_in_95_per_cent():
    calibration = calibrated()
    new = made_up(400, seed=1)
    radii = np.array([calibration.radius_mm(features) for _, features, _ in new])
    errors = np.array([error for *_, error in new])
    assert np.mean(errors <= radii[:, 1]) == pytest.approx(0.95, abs=0.02)
    assert np.mean(errors <= radii[:, 0]) == pytest.approx(0.5, abs=0.04)
    # And for those that are known well and badly alike, which one radius for all would not do.
    spread = np.array([features["spread"] for _, features, _ in new])
    for part in (spread < -0.7, spread > 0.7):
        assert np.mean(errors[part] <= radii[part, 1]) == pytest.approx(0.95, abs=0.04)
    assert radii[spread > 0.7, 1].mean() > 2.5 * radii[spread < -0.7, 1].mean()


def test_the_model_finds_what_the_error_follows():
    weights = {term.name: term.weight for term in calibrated().error.middle["neither"].terms}
    assert weights["spread"] == pytest.approx(0.8, abs=0.1)
    assert abs(weights["contrast"]) < 0.1


def test_spoiled_pairs_are_doubtful_and_sound_ones_are_not():
    calibration = calibrated()
    sound = [calibration.is_doubtful(features) for _, features, _ in made_up(100, seed=2)]
    assert np.mean(sound) < 0.03
    assert calibration.is_doubtful({"spread": 0.0, "contrast": -8.0})


def test_what_cannot_be_known_speaks_for_a_large_error():
    calibration = calibrated()
    unknown = calibration.radius_mm({"spread": np.nan, "contrast": 0.0})
    usual = calibration.radius_mm({"spread": 0.0, "contrast": 0.0})
    assert unknown[1] > 2 * usual[1]
    assert calibration.radius_mm({"contrast": 0.0}) == unknown


def test_features_beyond_those_seen_are_held_to_their_range():
    calibration = calibrated()
    assert calibration.radius_mm({"spread": 50.0, "contrast": 0.0}) == calibration.radius_mm(
        {"spread": 500.0, "contrast": 0.0}
    )


def test_conformal_quantile_by_hand():
    scores, patients = np.arange(1.0, 20.0), np.arange(19)  # one tumour each: with correction the 19th of 19
    assert conformal_quantile(scores, patients, 0.95) == 19.0
    assert conformal_quantile(scores, patients, 0.9) == 18.0
    assert conformal_quantile(scores, patients, 0.5) == 10.0
    assert conformal_quantile(np.array([3.0, 1.0]), np.arange(2), 0.95) == 3.0


def test_conformal_quantile_takes_patients_as_equals_however_many_tumours_they_have():
    # Three patients, a quarter each and a quarter beyond: two with one tumour, one with four.
    scores, patients = np.array([9.0, 7.0, 1.0, 2.0, 3.0, 4.0]), np.array([0, 1, 2, 2, 2, 2])
    assert conformal_quantile(scores, patients, 0.25) == 4.0
    assert conformal_quantile(scores, patients, 0.5) == 7.0
    assert conformal_quantile(scores, patients, 0.7) == 9.0


def test_each_case_has_its_own_model_that_leans_on_the_others():
    """Where the CT shows the tumour the error follows the contrast and not the spread; of the other cases, one is
    plentiful and one too rare to be told from all.
    """
    rng = np.random.default_rng(0)
    sound = []
    for i in range(600):
        spread, contrast = rng.normal(size=2)
        seen, vessels = float(i % 3 == 0), np.nan if i % 100 == 1 else 0.5
        log_error = (0.8 * contrast if seen else 0.8 * spread) + 0.2 * rng.normal() + 1.5 * (1 - seen)
        features = {"spread": spread, "contrast": contrast, "seen": seen, "vessels": vessels}
        sound.append((f"p{i}", features, float(np.exp(log_error))))
    models = fit_middle(sound, NAMES)
    weights = {case: {term.name: term.weight for term in model.terms} for case, model in models.items()}
    assert weights["seen"]["contrast"] > 0.5 > 0.3 > abs(weights["seen"]["spread"])
    assert weights["vessels"]["spread"] > 0.5 > 0.3 > abs(weights["vessels"]["contrast"])
    # Six tumours are no reason to differ from what all have in common.
    assert 0.2 < weights["neither"]["spread"] < weights["vessels"]["spread"]
    assert models["vessels"].constant - models["seen"].constant == pytest.approx(1.5, abs=0.2)


def test_where_errors_scatter_more_the_radius_grows_though_the_middle_does_not():
    rng = np.random.default_rng(0)
    sound = []
    for i in range(400):
        spread, contrast = rng.normal(size=2)
        error = float(np.exp(0.5 * np.exp(0.7 * contrast) * rng.normal()))
        sound.append((f"p{i // 2}", {"spread": spread, "contrast": contrast}, error))
    spoiled = [("s", {"spread": 0.0, "contrast": 9.0 + i % 2}) for i in range(4)]
    calibration = fit(sound, spoiled, NAMES, models={}, simulator=2, data="")
    (low50, low95), (high50, high95) = (calibration.radius_mm({"spread": 0.0, "contrast": c}) for c in (-1.5, 1.5))
    assert high50 == pytest.approx(low50, rel=0.2)
    assert high95 > 1.3 * low95


@pytest.mark.parametrize(
    ("features", "case"),
    [({"seen": 1.0, "vessels": np.nan}, "seen"), ({"seen": 0.0, "vessels": -0.1}, "vessels"),
     ({"seen": 0.0, "vessels": np.nan}, "neither"), ({}, "neither")],
)  # fmt: skip
def test_what_there_is_to_go_by(features, case):
    assert case_of(features) == case


def test_no_patient_is_judged_by_a_model_that_learnt_from_it():
    """One patient whose feature lies: with its own tumours in the fit the ratio would be below 10."""
    sound = [(f"p{i}", {"spread": 0.0 if i else 1.0, "contrast": 0.0}, 1.0 if i else 100.0) for i in range(12)]
    sound = [entry for entry in sound for _ in range(5)]
    found = cross_fitted(sound, NAMES, 12, 0)
    assert np.exp(found.log_error - found.middle)[found.patients == "p0"].min() > 50
    assert [str(patient) for patient in found.patients] == [patient for patient, *_ in sound]
    assert np.allclose(np.exp(found.log_error), [error for *_, error in sound])


def test_a_calibration_survives_its_file(tmp_path):
    calibration = calibrated()
    path = tmp_path / "uncertainty.json"
    path.write_text(calibration.to_json())
    read = Calibration.read(path)
    assert read == calibration
    assert read.sha256 == json.loads(path.read_text())["sha256"]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "schema"])
def test_a_damaged_calibration_is_refused_with_a_remedy(tmp_path, damage):
    path = tmp_path / "uncertainty.json"
    text = calibrated().to_json()
    content = json.loads(text)
    if damage == "changed":
        content["calibration"]["scores"][-1] *= 0.5
    elif damage == "schema":
        content["schema"] = 99
    if damage != "missing":
        path.write_text(text[: len(text) // 2] if damage == "cut" else json.dumps(content))
    with pytest.raises(ModelError, match=r"uncertainty\.json cannot be used .*--uncertainty off"):
        Calibration.read(path)


def test_too_little_to_fit_is_said():
    with pytest.raises(ValueError, match="10 patients"):
        fit(made_up(5, 0), [("s", {})], NAMES, models={}, simulator=2, data="")


def test_a_linear_model_by_hand():
    term = Term("spread", mean=1.0, sd=2.0, low=-1.0, high=5.0, missing=4.0, weight=3.0)
    model = Linear(0.5, (term,))
    assert model({"spread": 3.0}) == pytest.approx(3.5)
    assert model({"spread": 99.0}) == pytest.approx(6.5)
    assert model({}) == pytest.approx(5.0)


# -- regions --------------------------------------------------------------------------------------------------------
def test_covariance_has_the_ensembles_shape_and_the_calibrated_size():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(4000, 3)) * (1.0, 2.0, 4.0) + 70.0
    covariance = covariance_mm2(places, p95_mm=6.0)
    assert np.allclose(covariance, covariance.T)
    values = np.linalg.eigvalsh(covariance)
    assert values[0] > 0
    assert values[2] / values[0] > 4
    # The direction of the largest is the ensemble's, and the trace is that of a ball's distribution with this radius.
    assert abs(np.linalg.eigh(covariance)[1][2, 2]) > 0.99
    drawn = rng.normal(size=(200_000, 3)) * np.sqrt(np.trace(covariance) / 3)
    assert np.mean(np.linalg.norm(drawn, axis=1) <= 6.0) == pytest.approx(0.95, abs=0.003)


def test_an_ensemble_that_agrees_gives_a_ball():
    assert np.allclose(covariance_mm2(np.full((6, 3), 5.0), 2.7955), np.eye(3))


def oblique_grid() -> Grid:
    turn, tilt = np.deg2rad((25.0, 15.0))
    about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    axes = np.array(about_z) @ np.array(about_x)
    return Grid((40, 36, 30), (1.5, 1.5, 2.5), (10.0, -20.0, 5.0), tuple(axes.ravel()))


def test_probability_is_the_mask_at_every_likely_place():
    grid = oblique_grid()
    centre = grid.index_to_world(np.array([20.0, 17.0, 14.0]))
    mask = np.linalg.norm(grid.points() - centre, axis=-1) < 9.0
    covariance = np.array([[9.0, 3.0, 0.0], [3.0, 4.0, -1.0], [0.0, -1.0, 2.0]])
    found = np.zeros(grid.shape, dtype=np.float32)
    probability(found, mask, grid, covariance)
    # Brute force: the ball at places that are drawn.
    drawn = np.random.default_rng(0).multivariate_normal(centre, covariance, 1500)
    points = grid.points()
    expected = np.mean([np.linalg.norm(points - place, axis=-1) < 9.0 for place in drawn], axis=0)
    assert np.abs(found - expected).max() < 0.12  # of voxels, and of 1500 draws
    assert np.abs(found - expected).mean() < 0.005
    assert found.sum() == pytest.approx(mask.sum(), rel=0.02)


def test_two_tumours_add_up_to_a_chance_and_not_to_more():
    grid = Grid((20, 20, 20), (1.0,) * 3, (0.0,) * 3)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[5:15, 5:15, 5:15] = True
    total = np.zeros(grid.shape, dtype=np.float32)
    probability(total, mask, grid, 4 * np.eye(3))
    once = total.copy()
    probability(total, mask, grid, 4 * np.eye(3))
    assert np.allclose(total, 1 - (1 - once) ** 2, atol=1e-6)
    probability(total, np.zeros_like(mask), grid, np.eye(3))  # a tumour that is not there changes nothing
    assert total.max() <= 1


# -- evidence -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def scene() -> tuple[Scan, Scan, LabelMap, Composed]:
    """A ball of a liver with blobs in it that both images show with opposite contrast, and the label of a tumour."""
    grid = Grid((48, 48, 48), (4.0,) * 3, (0.0,) * 3)
    points = grid.points()
    rng = np.random.default_rng(3)
    centre = np.array([94.0, 94.0, 94.0])
    distance = np.linalg.norm(points - centre, axis=-1) - 70.0
    vessels = np.zeros(grid.shape)
    for place in centre + rng.uniform(-45, 45, (60, 3)):
        vessels = np.maximum(vessels, np.exp(-0.5 * (np.linalg.norm(points - place, axis=-1) / 5.0) ** 2))
    noise = rng.normal(0, 0.02, (2, *grid.shape))
    ones = np.ones(grid.shape, dtype=np.float32)
    shown = np.clip(distance, -30, 30).astype(np.float32)
    inside = 1 / (1 + np.exp(distance / 4.0))
    fixed = Scan(grid, (0.2 + inside * (0.4 + 0.3 * vessels) + noise[0]).astype(np.float32), ones, ones, shown, None)
    moving = Scan(grid, (0.8 - inside * (0.3 + 0.3 * vessels) + noise[1]).astype(np.float32), ones, ones, shown, None)
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[distance < 0] = 1
    array[np.linalg.norm(points - centre - (10.0, 0, 0), axis=-1) < 8.0] = 2
    labels = LabelMap(Volume(array, grid), [Label(1, "Liver", LIVER), Label(2, "Tumour", TUMOUR)])
    return fixed, moving, labels, Composed(Affine.identity(), DisplacementField.of(Affine.identity(), grid))


def shifted(total: Composed, by_mm) -> Composed:
    return replace(total, alignment=Affine.translation(np.asarray(by_mm, dtype=float)))


def test_evidence_tells_right_from_wrong(scene):
    fixed, moving, labels, total = scene
    (right,), liver = evidence(fixed, moving, total, labels, unrelated=0.2)
    (wrong,), _ = evidence(fixed, moving, shifted(total, (4.0, 0, 0)), labels, unrelated=0.2)
    assert right.mind_offset_mm < 0.5
    assert right.vessel_offset_mm < 0.5
    assert wrong.mind_offset_mm == pytest.approx(4.0, abs=1.0)
    assert wrong.vessel_offset_mm == pytest.approx(4.0, abs=1.0)
    assert right.mind_cost < wrong.mind_cost
    assert right.mind_contrast > 0.3
    assert right.vessel_correlation > 0.85
    assert right.vessel_correlation > wrong.vessel_correlation + 0.1
    assert right.surface_gap_mm < 0.3
    assert wrong.surface_gap_mm > 1.0
    assert liver.vessel_correlation > 0.6


def test_evidence_without_features_is_flat(scene):
    fixed, moving, labels, total = scene
    rng = np.random.default_rng(0)
    blind = replace(fixed, value=rng.normal(0.5, 0.1, fixed.value.shape).astype(np.float32))
    (near,), _ = evidence(blind, moving, total, labels, unrelated=0.2)
    (seeing,), _ = evidence(fixed, moving, total, labels, unrelated=0.2)
    assert abs(near.mind_contrast) < 0.1 < seeing.mind_contrast


def test_an_unknown_ct_liver_leaves_unknown_what_hangs_on_it(scene):
    fixed, moving, labels, total = scene
    unknown = replace(fixed, liver_distance_mm=None)
    (near,), _ = evidence(unknown, moving, total, labels, unrelated=0.2)
    assert np.isnan([near.vessel_correlation, near.surface_gap_mm]).all()
    assert np.isfinite(near.mind_cost)
    assert np.isnan(whole(unknown, moving, total).volumes)


def test_whole_liver_by_hand(scene):
    fixed, moving, _, total = scene
    calm = whole(fixed, moving, total)
    assert calm.volumes == 0
    assert calm.gap_p90_mm == pytest.approx(0, abs=1e-3)
    assert calm.bending_mm == pytest.approx(0, abs=0.02)
    grid = fixed.grid
    wave = np.zeros((*grid.shape, 3))
    wave[..., 0] = 5.0 * np.sin(grid.points()[..., 2] / 15.0)
    bent = whole(fixed, moving, replace(total, deformation=DisplacementField(grid, wave)))
    assert bent.bending_mm == pytest.approx(5.0 / np.sqrt(2), rel=0.25)
    smaller = replace(fixed, liver_distance_mm=fixed.liver_distance_mm + 10.0)
    assert whole(smaller, moving, total).volumes == pytest.approx(3 * np.log(70 / 60), rel=0.15)


# -- ensemble -------------------------------------------------------------------------------------------------------
def test_the_place_of_a_tumour_is_found_through_both_parts(scene):
    _, _, labels, total = scene
    points = tumour_points(labels, 2)
    grid = labels.volume.grid
    field = DisplacementField.of(Affine.translation(np.array([3.0, -2.0, 1.0])), grid)
    moved = Composed(Affine.translation(np.array([10.0, 0.0, 0.0])), field)
    assert place_of(moved, points) == pytest.approx(points.mean(0) - (13.0, -2.0, 1.0), abs=0.1)
    assert place_of(total, points) == pytest.approx(points.mean(0), abs=0.1)


def test_members_come_back_from_their_jitter_where_there_is_something_to_see(scene):
    fixed, moving, labels, _ = scene
    common = dict(seed=1, device=torch.device("cpu"), monitor=Monitor())
    variants = (VARIANTS[0], VARIANTS[3])
    found = run_ensemble(fixed, moving, Affine.identity(), None, labels, variants=variants, **common)
    points = tumour_points(labels, 2)
    assert found.places_mm.shape == (2, 1, 3)
    for member, place in zip(found.transforms, found.places_mm[:, 0], strict=True):
        jittered = member.alignment.inverse().transform_points(points).mean(0)
        assert np.linalg.norm(jittered - points.mean(0)) > 1.5  # there was something to undo
        assert np.linalg.norm(place - points.mean(0)) < 0.6 * np.linalg.norm(jittered - points.mean(0))
    again = run_ensemble(fixed, moving, Affine.identity(), None, labels, variants=variants, **common)
    assert np.abs(again.places_mm - found.places_mm).max() < 1e-3
