"""How well an image shows a tumour, and the verdict on its place."""

import numpy as np
import pytest
from scipy.stats import norm

from weaktumour.quality import Thresholds, judge_place, visibility
from weaktumour.result import RunVerdict
from weaktumour.volumes import Grid, Volume

OK, DOUBTFUL = RunVerdict(), RunVerdict("check_alignment", ["Little overlap."])


def image_of(contrast: float, diameter_mm: float = 16.0, noise: float = 10.0, seed: int = 0):
    """A tumour in a liver, with noise; a bright vessel runs through the ring."""
    grid = Grid((60, 60, 40), (1.2, 1.2, 2.0), (-30.0, 5.0, 60.0))
    points = grid.points()
    centre = grid.index_to_world(np.array([30.0, 30.0, 20.0]))
    tumour = np.linalg.norm(points - centre, axis=-1) < diameter_mm / 2
    liver = np.linalg.norm(points - centre, axis=-1) < 30.0
    array = np.random.default_rng(seed).normal(100.0, noise, grid.shape)
    array[tumour] += contrast
    array[np.linalg.norm((points - centre)[..., :2] - (11.0, 0.0), axis=-1) < 3.0] += 80.0
    return Volume(array.astype(np.float32), grid), tumour, liver & ~tumour


@pytest.mark.parametrize("cnr", [-3.0, -1.5, 2.0])
def test_contrast_to_noise_is_what_was_put_in(cnr):
    found = visibility(*image_of(10.0 * cnr))
    assert found.cnr == pytest.approx(cnr, abs=0.25)
    assert found.auc == pytest.approx(norm.cdf(cnr / np.sqrt(2)), abs=0.05)  # of two normal distributions
    assert found.contrast == pytest.approx(abs(2 * norm.cdf(cnr / np.sqrt(2)) - 1), abs=0.09)
    assert found.is_visible


def test_nothing_is_seen_where_there_is_nothing():
    seen = [visibility(*image_of(0.0, diameter, seed=seed)) for diameter in (12.0, 20.0) for seed in range(20)]
    assert not any(found.is_visible for found in seen)
    assert np.mean([found.contrast for found in seen]) < 0.15


def test_what_cannot_be_measured_is_none():
    image, tumour, liver = image_of(30.0)
    assert visibility(image, np.zeros_like(tumour), liver) is None
    assert visibility(image, tumour, np.zeros_like(liver)) is None
    assert visibility(Volume(np.full_like(image.array, 7.0), image.grid), tumour, liver) is None


def test_a_tumour_at_the_edge_of_the_image_is_measured():
    image, tumour, liver = image_of(-30.0)
    grid = image.grid.crop((0, 0, 0), (60, 60, 21))  # through the tumour's middle
    found = visibility(Volume(image.array[:21], grid), tumour[:21], liver[:21])
    assert found.cnr == pytest.approx(-3.0, abs=0.4)


@pytest.mark.parametrize(
    ("p95", "verdict"),
    [
        (1.0, "localised"),
        (5.0, "localised"),
        (5.1, "approximate"),
        (10.0, "approximate"),
        (10.1, "cannot_be_localised"),
    ],
)
def test_verdict_by_distance(p95, verdict):
    found, reason = judge_place(p95, False, True, OK)
    assert found == verdict
    assert f"{p95:.1f} mm" in reason


def test_no_place_is_stated_where_the_pair_is_doubtful():
    for run, doubtful in ((DOUBTFUL, False), (OK, True), (DOUBTFUL, True)):
        verdict, reason = judge_place(0.5, doubtful, True, run)
        assert verdict == "cannot_be_localised"
        assert reason


@pytest.mark.parametrize(
    ("p95", "verdict"), [(1.0, "approximate"), (7.0, "approximate"), (12.0, "cannot_be_localised")]
)
def test_without_matching_vessels_no_tumour_is_localised(p95, verdict):
    found, reason = judge_place(p95, False, False, OK)
    assert found == verdict
    assert ("vessels" in reason) == (p95 < 5)


def test_thresholds_are_settings():
    assert judge_place(7.0, False, True, OK, Thresholds(8.0, 9.0))[0] == "localised"
    assert judge_place(8.5, False, True, OK, Thresholds(8.0, 9.0))[0] == "approximate"
    assert judge_place(9.5, False, True, OK, Thresholds(8.0, 9.0))[0] == "cannot_be_localised"
