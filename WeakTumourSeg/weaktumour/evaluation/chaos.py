"""The four metrics of the CHAOS challenge and its score, as the organisers define them.

A. E. Kavur et al., "CHAOS Metrics and Evaluation Method" (2019), and their code, emrekavur/CHAOS-evaluation. Figures
that are to stand beside published ones have to be measured as those were, and our own `metrics` are not: there the
surface lies between voxels and counts by area, so that neither slice thickness nor the choice of axes changes a mean
distance. The challenge takes the border *voxels* of a mask (the mask without its erosion by the six neighbours), each
counting once, and the distances between their centres: on slanted surfaces and thick slices another figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import SimpleITK as sitk

from .metrics import dice, ravd

METRICS = ("dice", "ravd_percent", "assd_mm", "mssd_mm")
# Beyond these a metric scores 0 (table 1 of the organisers' document).
DICE_THRESHOLD, RAVD_THRESHOLD, ASSD_THRESHOLD_MM, MSSD_THRESHOLD_MM = 0.8, 5.0, 15.0, 60.0


def chaos_metrics(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]) -> dict[str, float]:
    """{dice, ravd_percent, assd_mm, mssd_mm, score} of two boolean masks (z, y, x) on one grid; spacing is (x, y, z).

    An empty prediction has Dice 0, RAVD 100 %, score 0 and, as in the organisers' code, the largest distance there can
    be: the diagonal of the image. Raises ValueError where the truth is empty: there is nothing to compare with.
    """
    if not truth.any():
        raise ValueError("the truth is empty; the challenge's metrics are not defined")
    spacing = np.asarray(tuple(spacing_mm), dtype=float)
    if predicted.any():
        average, largest = symmetric_surface_distances(predicted, truth, spacing)
    else:
        average = largest = float(np.linalg.norm(np.asarray(truth.shape[::-1]) * spacing))
    figures = {
        "dice": float(dice(predicted, truth)),
        "ravd_percent": float(ravd(predicted, truth)),
        "assd_mm": average,
        "mssd_mm": largest,
    }
    return {**figures, "score": score(figures) if predicted.any() else 0.0}


def symmetric_surface_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]
) -> tuple[float, float]:
    """(ASSD, MSSD) in mm: mean and largest of all distances from a border voxel of one mask to the other's nearest.

    Raises ValueError where a mask is empty.
    """
    if not predicted.any() or not truth.any():
        raise ValueError("an empty mask has no surface")
    box = _box_with_rim(predicted | truth)
    borders = [border_voxels(mask[box]) for mask in (predicted, truth)]
    spacing = np.asarray(tuple(spacing_mm), dtype=float)
    to_truth = _distance_to(borders[1], spacing)[borders[0]]
    to_predicted = _distance_to(borders[0], spacing)[borders[1]]
    both = np.concatenate((to_truth, to_predicted)).astype(np.float64)
    return float(both.mean()), float(both.max())


def border_voxels(mask: np.ndarray) -> np.ndarray:
    """The mask without its erosion by the six neighbours. Beyond the image is inside, as in the organisers' code: where
    the image cuts an organ off there is no surface."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    eroded = sitk.BinaryErode(image, [1, 1, 1], sitk.sitkCross, 0.0, 1.0, True)
    return mask & (sitk.GetArrayFromImage(eroded) == 0)


def score(figures: Mapping[str, float]) -> float:
    """0 to 100: the mean of the four metrics' scores."""
    return float(np.mean(list(metric_scores(figures).values())))


def metric_scores(figures: Mapping[str, float]) -> dict[str, float]:
    """Each metric as 0 to 100 (equations 6 to 9): linear up to its threshold and 0 beyond; Dice counts 100 times."""
    s = figures
    return {
        "dice": 100.0 * s["dice"] if s["dice"] >= DICE_THRESHOLD else 0.0,
        "ravd_percent": _falling(s["ravd_percent"], RAVD_THRESHOLD),
        "assd_mm": _falling(s["assd_mm"], ASSD_THRESHOLD_MM),
        "mssd_mm": _falling(s["mssd_mm"], MSSD_THRESHOLD_MM),
    }


def _falling(value: float, threshold: float) -> float:
    return 100.0 * (1.0 - value / threshold) if value <= threshold else 0.0


def _box_with_rim(mask: np.ndarray) -> tuple[slice, ...]:
    """Slices (z, y, x) of the mask's box and one voxel more where the image has one: the erosion looks that far."""
    box = []
    for axis in range(3):
        index = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(index[0]) - 1), int(index[-1]) + 2))
    return tuple(box)


def _distance_to(seeds: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(z, y, x) mm from every voxel centre to the nearest seed; exact (Maurer, PAMI 2003)."""
    image = sitk.GetImageFromArray(seeds.astype(np.uint8))
    image.SetSpacing(tuple(float(s) for s in spacing_mm))
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(distance), 0.0)  # seeds among seeds come out negative
