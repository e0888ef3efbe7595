"""Vessels that MRI and CT have in common, whatever their contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from weaktumour.deformation import Affine
from weaktumour.progress import Monitor
from weaktumour.registration import vessels
from weaktumour.registration.preparation import Scan
from weaktumour.registration.refinement import RefinementSettings, refine
from weaktumour.registration.vessels import agreeing_sides, standing_out
from weaktumour.volumes import Grid

SHAPE, SPACING = (36, 40, 44), 3.0
GRID = Grid(SHAPE[::-1], (SPACING,) * 3, (0.0, 0.0, 0.0))


def tree(shift_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Share of vessel in each voxel of a liver: some tubes, moved along x, y, z."""
    x, y, z = np.moveaxis(GRID.points() - np.asarray(shift_mm), -1, 0)
    tubes = [
        np.hypot(y - 60 - 12 * np.sin(x / 20), z - 50),
        np.hypot(x - 60 - 10 * np.sin(z / 15), y - 75),
        np.hypot(x - 85, z - 60 - 9 * np.sin(y / 12)),
        np.hypot(y - 45 - 0.4 * (x - 60), z - 70 + 0.3 * (x - 60)),
    ]
    return np.clip((4.5 - np.minimum.reduce(tubes)) / SPACING, 0, 1)


def liver_distance() -> np.ndarray:
    return (np.linalg.norm((GRID.points() - [66.0, 60.0, 54.0]) / [60.0, 54.0, 48.0], axis=-1) - 1) * 50


def scan(contrast: float, noise: float, seed: int, shift_mm=(0.0, 0.0, 0.0), lesion: np.ndarray | None = None) -> Scan:
    distance = liver_distance()
    value = np.where(distance < 0, 0.5 + contrast * tree(shift_mm), 0.1)
    value = value + noise * np.random.default_rng(seed).standard_normal(SHAPE)
    ones = np.ones(SHAPE, np.float32)
    return Scan(GRID, value.astype(np.float32), ones, ones, distance.astype(np.float32), lesion)


def tensors(*found: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(image)[None] for image in found]


@pytest.mark.parametrize("of_ct", [0.2, -0.2])
@pytest.mark.parametrize("of_mr", [0.3, -0.3])
def test_the_side_that_shows_vessels_is_told(of_ct, of_mr):
    ct, mr = (standing_out(scan(c, 0.04, seed)) for seed, c in enumerate((of_ct, of_mr)))
    assert ct.shape == (2, *SHAPE)
    assert 0 <= ct.min() < ct.max() <= 1
    assert not ct[:, liver_distance() > -5].any()
    fixed, moving, agreement = agreeing_sides(*tensors(ct, mr), SPACING)
    assert (fixed, moving) == (int(of_ct < 0), int(of_mr < 0))
    assert agreement > 0.5
    vessels = tree() * (liver_distance() < -9)
    assert np.corrcoef(ct[fixed].ravel(), vessels.ravel())[0, 1] > 0.7


def test_what_is_not_in_both_is_not_compared():
    """A CT that shows no vessel, only its noise."""
    ct, mr = standing_out(scan(0.0, 0.04, 0)), standing_out(scan(-0.3, 0.04, 1))
    assert agreeing_sides(*tensors(ct, mr), SPACING) is None
    assert agreeing_sides(*tensors(0 * ct, mr), SPACING) is None


def test_a_rough_alignment_will_do():
    ct, mr = standing_out(scan(0.2, 0.04, 0)), standing_out(scan(-0.3, 0.04, 1, (4.0, -3.0, 3.0)))
    fixed, moving, agreement = agreeing_sides(*tensors(ct, mr), SPACING)
    assert (fixed, moving) == (0, 1)
    assert agreement > 0.4  # at the best shift


def test_lesions_do_not_stand_out():
    x = np.linalg.norm(GRID.points() - [66.0, 60.0, 54.0], axis=-1) - 12
    with_lesion = scan(0.2, 0.02, 0)
    bright = replace(with_lesion, value=np.where(x < 0, 0.9, with_lesion.value).astype(np.float32))
    assert standing_out(bright)[0][x < -3].mean() > 0.3
    told = standing_out(replace(bright, lesion_distance_mm=x.astype(np.float32)))
    assert not told[:, x < 2].any()


def test_only_the_livers_surroundings_are_smoothed(monkeypatch):
    """With the same result as if all of the image were: what a smoothing can see lies in the box."""
    livers = scan(0.2, 0.04, 0)
    # So small that the box ends inside the image.
    livers = replace(livers, liver_distance_mm=(livers.liver_distance_mm + 27.0).astype(np.float32))
    seen = []
    smooth = vessels._gauss
    monkeypatch.setattr(vessels, "_gauss", lambda array, sigma: seen.append(array.shape) or smooth(array, sigma))
    in_box = standing_out(livers)
    assert all(box < whole for box, whole in zip(seen[0], SHAPE, strict=True))
    monkeypatch.setattr(vessels, "_around", lambda mask, margin: (slice(None),) * 3)
    np.testing.assert_allclose(in_box, standing_out(livers), atol=1e-5)


def test_without_a_liver_there_is_nothing_to_say():
    whole = scan(0.2, 0.02, 0)
    assert standing_out(replace(whole, liver_distance_mm=None)) is None
    assert standing_out(replace(whole, liver_distance_mm=np.full(SHAPE, 9.0, np.float32))) is None
    assert standing_out(replace(whole, value=np.zeros(SHAPE, np.float32))) is None


def test_the_refinement_follows_vessels_that_noise_hides_from_mind():
    """The liver's surface stays, its vessels are 4 mm off; the CT is noisy, dark against bright."""
    shift = np.array([4.0, 0.0, 0.0])
    ct, mr = scan(0.12, 0.063, 0), scan(-0.3, 0.03, 1, shift)
    points = GRID.points()[(liver_distance() < -15) & (tree() > 0.5)]
    left = {}
    for weight in (0.0, RefinementSettings().vessels):
        found = refine(
            ct, mr, Affine.identity(), replace(RefinementSettings(), vessels=weight),
            device=torch.device("cpu"), monitor=Monitor(),
        )  # fmt: skip
        left[weight] = float(np.median(np.linalg.norm(found.field.transform_points(points) - points - shift, axis=1)))
    assert left[0.0] > 3.0  # of 4 mm: the surface holds the inside back
    assert left[RefinementSettings().vessels] < 0.75 * left[0.0]
