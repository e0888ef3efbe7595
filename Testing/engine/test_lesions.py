"""Tumours that the CT shows: found where they are, and nothing is found where there is nothing to see."""

from pathlib import Path

import numpy as np
import pytest

from weaktumour import pipeline
from weaktumour.cases import write_case
from weaktumour.deformation import DisplacementField
from weaktumour.evaluation.metrics import evaluate_case
from weaktumour.progress import Monitor
from weaktumour.registration.lesions import Seen, corrected, find_in_ct
from weaktumour.simulation import simulate_patient
from weaktumour.volumes import Grid, Volume, read_volume

GRID = Grid((60, 56, 52), (2.5, 2.5, 2.5), (-75.0, -70.0, -65.0))
RADIUS = 10.0


def scene(seed: int, contrast: float, shift=(0.0, 0.0, 0.0), vessels: bool = True):
    """(CT, labels): a liver with vessels and noise; the tumour lies `shift` mm from where the labels have it."""
    rng = np.random.default_rng(seed)
    points = GRID.points()
    liver = np.sum((points / [62, 56, 52]) ** 2, axis=-1) < 1
    image = np.where(liver, 105.0, -90.0)
    if vessels:
        for _ in range(14):
            start, way = rng.uniform(-45, 45, 3), rng.normal(size=3)
            way /= np.linalg.norm(way)
            off = points - start
            along = off @ way
            tube = np.linalg.norm(off - along[..., None] * way, axis=-1) < rng.uniform(1.5, 3.5)
            image[tube & liver & (np.abs(along) < 40)] = 155.0
    labelled = np.linalg.norm(points - [12.0, -8, 5], axis=-1) < RADIUS
    true = np.linalg.norm(points - (np.array([12.0, -8, 5]) + shift), axis=-1) < RADIUS
    image[true] = 105.0 + contrast
    image += rng.normal(0, 14, image.shape)
    return Volume(image.astype(np.float32), GRID), np.where(labelled, 2, liver.astype(np.uint8))


@pytest.mark.parametrize("contrast", [-45.0, 40.0])
@pytest.mark.parametrize("shift", [(4.0, -3.0, 2.0), (0.0, 0.0, -7.0)])
def test_a_tumour_that_shows_is_found_where_it_is(contrast, shift):
    for seed in range(2):
        ct, labels = scene(seed, contrast, shift)
        (seen,) = find_in_ct(ct, labels, GRID, 1)
        assert seen.number == 0
        assert np.linalg.norm(seen.shift_mm - shift) < 1.0
        assert np.sign(seen.contrast_hu) == np.sign(contrast)
        assert np.linalg.norm(seen.centre_mm - [12, -8, 5]) < 0.5
        assert seen.radius_mm == pytest.approx(RADIUS, rel=0.03)


@pytest.mark.parametrize("vessels", [False, True])
def test_nothing_is_found_where_there_is_nothing_to_see(vessels):
    assert not [seed for seed in range(6) if find_in_ct(*scene(seed, 0.0, vessels=vessels), GRID, 1)]


def test_the_farther_the_more_it_must_stand_out():
    """A faint tumour is believed near the place where it is looked for, and seldom far from it."""
    near, far = (
        [bool(find_in_ct(*scene(seed, -14.5, (0.0, 0.0, z)), GRID, 1)) for seed in range(4)] for z in (-1.0, -9.0)
    )
    assert all(near)
    assert sum(far) <= 1


def test_without_a_liver_or_with_a_tiny_tumour_nothing_is_found():
    ct, labels = scene(0, -45.0)
    assert find_in_ct(ct, np.zeros_like(labels), GRID, 1) == []
    assert find_in_ct(ct, np.where(labels == 2, 1, labels), GRID, 1) == []


def test_a_correction_moves_the_tumour_stiffly_and_folds_nothing():
    grid = Grid((60, 60, 60), (3.0, 3.0, 3.0), (-88.5, -88.5, -88.5))
    points = grid.points()
    before = DisplacementField(grid, 2.0 * np.sin(points[..., ::-1] / 40))
    seen = Seen(0, np.array([5.0, 0, -4]), 8.0, np.array([6.0, -5.0, 4.0]), -40.0, 9.0)
    after = corrected(before, seen)
    inside = seen.centre_mm + np.random.default_rng(0).uniform(-5, 5, (50, 3))
    moved = after.transform_points(inside + seen.shift_mm)
    assert np.abs(moved - before.transform_points(inside)).max() < 0.15  # the sampled field's own resolution
    assert after.jacobian_determinant().min() > 0.1
    far = np.linalg.norm(points - seen.centre_mm, axis=-1) > 50
    assert np.allclose(after.displacement_mm[far], before.displacement_mm[far], atol=1e-9)


def test_the_pipeline_follows_what_can_be_seen(tmp_path: Path, monkeypatch):
    """Tumours plain in the CT: closer with the correction than without, and the run says what it did."""
    case = simulate_patient(
        3, tumour_diameters_mm=(30.0, 22.0), ct_spacing_mm=2.5, mr_spacing_mm=(2.5, 2.5, 4.0), anatomy_spacing_mm=2.5,
        tumours_in_ct="visible", mr_protocol="T1 hepatobiliary", ct_phase="portal venous", breathing_mm=-18.0,
        ct_noise_hu=8.0, mr_noise=0.03, needle=False, mr_extent_mm=(320.0, 240.0, 200.0),
    )  # fmt: skip
    write_case(tmp_path / "case", case)
    files = {name: str(tmp_path / "case" / f"{name}.nii.gz") for name in ("mr", "ct", "mr_labels")}
    errors, said = {}, []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(pipeline, "find_in_ct", lambda *anything: [])
        arguments = pipeline.RegisterArguments(**files, out=str(tmp_path / name), preset="fast", device="cpu")
        monitor = Monitor(listener=lambda event: said.append(str(event.get("message", ""))))
        pipeline.register_and_propagate(arguments, monitor)
        found = evaluate_case(read_volume(tmp_path / name / "ct_labels.nii.gz", "labels"), case.ct_labels)
        errors[name] = [tumour["centroid_error_mm"] for tumour in found["tumours"]]
    assert np.mean(errors["with"]) < 0.7 * np.mean(errors["without"])
    assert max(errors["with"]) < 1.5
    assert sum("can be seen in the CT" in line for line in said) == 2
