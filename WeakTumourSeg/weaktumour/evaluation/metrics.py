"""How good labels and transforms are, against a known truth.

Masks are boolean arrays (z, y, x) that share one `Grid`; every distance is in mm and knows the voxel spacing.

The surface of a mask is the set of lattice corners (half a voxel off the voxel centres) whose eight voxels are not
all alike, each weighted by the area of surface that passes through it: voxel volume times the length of the mask's
gradient there. Distances between surfaces are Euclidean distances between such corners. So the surface lies between
the last voxel inside and the first one outside, one mask shifted by one slice of 4 mm is 4 mm away, and fine and
coarse axes count by area and not by how often they are sampled (the definition of S. Nikolov et al., JMIR 2021,
doi:10.2196/26151, with the area taken from the gradient instead of a marching-cubes table; the PyPI package
`surface-distance` gives the same to within a few per cent). A slanted surface is a staircase, so the mean distance of
two of them comes out up to half a voxel too small, as with that package. Beyond the array is background.

Empty masks: both empty, Dice, volume ratio and coverage 1, distances 0; one empty, Dice 0 and distances inf.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..volumes import Grid, Volume

if TYPE_CHECKING:  # the deformation room needs torch, the metrics do not
    from ..deformation import DisplacementField

COVERAGE_MARGIN_MM = 5.0  # the ablation margin that is aimed for (notes/registration.md)
_SMALLEST_JACOBIAN = 1e-9


# -- overlap ----------------------------------------------------------------------------------------------------
def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|). Both empty: 1."""
    _check_shapes(predicted, truth)
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(predicted & truth) / total if total else 1.0


def ravd(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Relative absolute volume difference (CHAOS), per cent: 100 |A - B| / B. Both empty: 0; the truth alone: inf."""
    return 100.0 * abs(volume_ratio(predicted, truth) - 1.0)


def volume_ratio(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Predicted volume / true volume. Both empty: 1; only the truth empty: inf."""
    _check_shapes(predicted, truth)
    of_prediction, of_truth = np.count_nonzero(predicted), np.count_nonzero(truth)
    if of_truth == 0:
        return 1.0 if of_prediction == 0 else float("inf")
    return of_prediction / of_truth


def coverage(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float], margin_mm: float = COVERAGE_MARGIN_MM
) -> float:
    """Share of the true tumour that lies inside the predicted tumour dilated by a margin.

    A true voxel counts when its centre is at most margin_mm (Euclidean) from the centre of a predicted voxel. This is
    what an ablation of the predicted tumour plus the margin would have reached. spacing_mm: (x, y, z).
    Truth empty: 1 (nothing is missed) if the prediction is empty too, else nan (nothing to cover).
    Prediction empty: 0.
    """
    _check_shapes(predicted, truth)
    if not truth.any():
        return float("nan") if predicted.any() else 1.0
    if not predicted.any():
        return 0.0
    box = _bounding_box(predicted | truth)
    predicted, truth = predicted[box], truth[box]
    distance = _distance_to(predicted, np.asarray(tuple(spacing_mm)))
    return float(np.mean(distance[truth] <= margin_mm + 1e-4))


# -- place ------------------------------------------------------------------------------------------------------
def centroid_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(3,) LPS mm: mean of the voxel centres. Empty: nan."""
    if not mask.any():
        return np.full(3, np.nan)
    total = np.count_nonzero(mask)
    index = [  # (x, y, z): from the counts of the slices across each axis
        np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) @ np.arange(mask.shape[axis]) / total
        for axis in (2, 1, 0)
    ]
    return grid.index_to_world(index)


def centroid_error_mm(predicted: np.ndarray, truth: np.ndarray, grid: Grid) -> float:
    """Distance between the two centroids. Both empty: 0; one empty: inf."""
    _check_shapes(predicted, truth)
    present = bool(predicted.any()), bool(truth.any())
    if not all(present):
        return float("inf") if any(present) else 0.0
    return float(np.linalg.norm(centroid_mm(predicted, grid) - centroid_mm(truth, grid)))


def equivalent_diameter_mm(mask: np.ndarray, grid: Grid) -> float:
    """Diameter of the sphere with the mask's volume; the size by which tumours are put in strata."""
    return float((6.0 * np.count_nonzero(mask) * grid.voxel_volume_mm3 / np.pi) ** (1 / 3))


# -- surfaces ---------------------------------------------------------------------------------------------------
def surface_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Distances from each surface to the other, with the area each stands for.

    spacing_mm: (x, y, z). Returns ((mm, mm2) from predicted to truth, (mm, mm2) from truth to predicted).
    Raises ValueError when a mask is empty: it has no surface.
    """
    _check_shapes(predicted, truth)
    if not predicted.any() or not truth.any():
        raise ValueError("an empty mask has no surface")
    spacing = np.asarray(tuple(spacing_mm), dtype=float)
    box = _bounding_box(predicted | truth)
    corners_predicted, area_predicted = _surface(predicted[box], spacing)
    corners_truth, area_truth = _surface(truth[box], spacing)
    to_truth = _distance_to(corners_truth, spacing)[corners_predicted]
    to_predicted = _distance_to(corners_predicted, spacing)[corners_truth]
    return (to_truth, area_predicted), (to_predicted, area_truth)


def assd(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]) -> float:
    """Average symmetric surface distance, mm: the mean over both surfaces by area. Both empty: 0; one empty: inf."""
    return surface_metrics(predicted, truth, spacing_mm)["assd_mm"]


def hd95(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]) -> float:
    """95 % Hausdorff distance, mm: the larger of the two directed 95th percentiles, by area.

    Both empty: 0; one empty: inf.
    """
    return surface_metrics(predicted, truth, spacing_mm)["hd95_mm"]


def surface_metrics(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Iterable[float]) -> dict[str, float]:
    """`assd` and `hd95`, and mssd_mm: the largest symmetric surface distance (Hausdorff), for the price of one."""
    present = bool(predicted.any()), bool(truth.any())
    if not all(present):
        distance = float("inf") if any(present) else 0.0
        return {"assd_mm": distance, "hd95_mm": distance, "mssd_mm": distance}
    forth, back = surface_distances(predicted, truth, spacing_mm)
    mean = (forth[0] @ forth[1] + back[0] @ back[1]) / (forth[1].sum() + back[1].sum())
    return {
        "assd_mm": float(mean),
        "hd95_mm": max(_weighted_percentile(*forth, 95), _weighted_percentile(*back, 95)),
        "mssd_mm": float(max(forth[0].max(), back[0].max())),
    }


def _surface(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corner lattice (shape + 1) of a mask: which corners are surface, and the area (n,) mm2 of each of them."""
    padded = np.pad(mask, 1).astype(np.int8)
    # Sums over the two voxels on either side of a corner, axis by axis; a difference takes the place of one sum.
    sums, differences = [padded], []
    for axis in range(3):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        differences = [d[low] + d[high] for d in differences] + [sums[-1][high] - sums[-1][low]]
        sums.append(sums[-1][low] + sums[-1][high])
    is_surface = (sums[-1] > 0) & (sums[-1] < 8)
    # Each difference is summed over four edges of the dual voxel: gradient = difference / 4 / spacing.
    gradient = np.stack([d[is_surface] / 4.0 for d in differences]) / spacing[::-1, None]
    return is_surface, np.linalg.norm(gradient, axis=0) * float(np.prod(spacing))


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, percent: float) -> float:
    """The smallest value that at least `percent` of the weight does not exceed."""
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    position = np.searchsorted(share, percent / 100 * share[-1] * (1 - 1e-9))
    return float(values[order][min(position, len(values) - 1)])


def _distance_to(seeds: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(z, y, x) mm from every lattice point to the nearest seed; exact (Maurer, PAMI 2003)."""
    image = sitk.GetImageFromArray(seeds.astype(np.uint8))
    image.SetSpacing(tuple(float(s) for s in spacing))
    # Seeds that other seeds surround get a negative distance to the rim of their cluster; a seed's distance is 0.
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(distance), 0.0)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """Slices (z, y, x) of the smallest box that holds a mask that is not empty."""
    box = []
    for axis in range(3):
        index = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(index[0]), int(index[-1]) + 1))
    return tuple(box)


def _check_shapes(predicted: np.ndarray, truth: np.ndarray) -> None:
    if predicted.shape != truth.shape or predicted.dtype != bool or truth.dtype != bool:
        raise ValueError(
            "two boolean masks of one shape are wanted, "
            f"got {predicted.dtype} {predicted.shape} and {truth.dtype} {truth.shape}"
        )


# -- transforms -------------------------------------------------------------------------------------------------
def target_registration_error(field: DisplacementField, truth_points: np.ndarray) -> np.ndarray:
    """(n,) mm: how far the field's image of each fixed point is from its true moving point.

    truth_points: (n, 6) LPS mm, CT x, y, z and MR x, y, z (truth_points.csv of a case folder).
    The error is measured in the moving space (MRI), where the truth is given.
    """
    points = np.asarray(truth_points, dtype=float).reshape(-1, 6)
    return np.linalg.norm(field.transform_points(points[:, :3]) - points[:, 3:], axis=1)


def folds(jacobian: np.ndarray, mask: np.ndarray | None = None) -> tuple[int, float]:
    """Number and share of the voxels whose Jacobian determinant is not positive (within a mask)."""
    values = jacobian if mask is None else jacobian[mask]
    number = int(np.count_nonzero(~(values > 0)))  # a NaN is a fold too
    return number, number / values.size if values.size else 0.0


def sd_log_jacobian(jacobian: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Standard deviation of the logarithm of the Jacobian determinant, clipped at 1e-9 (SDlogJ of Learn2Reg)."""
    values = jacobian if mask is None else jacobian[mask]
    return float(np.std(np.log(np.maximum(values, _SMALLEST_JACOBIAN)))) if values.size else 0.0


# -- a whole case -----------------------------------------------------------------------------------------------
def evaluate_case(
    predicted_labels: Volume,
    truth_labels: Volume,
    field: DisplacementField | None = None,
    truth_points: np.ndarray | None = None,
    *,
    liver_value: int = 1,
    tumour_values: Iterable[int] | None = None,
) -> dict:
    """Everything that is reported of one case, as plain numbers.

    Both label maps lie on the CT grid: liver parenchyma `liver_value`, one value per tumour; by default every value
    from 2 that either map holds. Whole liver means the parenchyma and all tumours.
    Returns {"liver": {dice, hd95_mm, assd_mm, mssd_mm, centroid_error_mm, volume_ratio, ravd_percent},
             "tumours": [{label, diameter_mm (of a sphere of the true volume), the same as of the liver, coverage_5mm,
                          centroid_lps_mm}],
             "field": {folds, folds_share, sd_log_jacobian, max_displacement_mm}      inside the CT's box, or None,
                      {liver_folds, liver_sd_log_jacobian}                            inside the true liver
             "points": {number, mean_mm, median_mm, p95_mm, max_mm}  target registration error, or None}
    Raises ValueError when the grids differ.
    """
    if not predicted_labels.grid.same_as(truth_labels.grid, tolerance_mm=1e-2):
        raise ValueError("predicted and true labels lie on different grids; resample one first")
    grid = truth_labels.grid
    occupied = (predicted_labels.array != 0) | (truth_labels.array != 0)
    if occupied.any():  # a CT is mostly background: everything below works in the box that holds the labels
        box = _bounding_box(occupied)
        predicted, truth = predicted_labels.array[box], truth_labels.array[box]
        grid = grid.crop(tuple(side.start for side in box[::-1]), predicted.shape[::-1])
    else:
        predicted, truth = (labels.array[:1, :1, :1] for labels in (predicted_labels, truth_labels))
        grid = grid.crop((0, 0, 0), (1, 1, 1))
    if tumour_values is None:
        tumour_values = [int(v) for v in np.union1d(np.unique(predicted), np.unique(truth)) if v >= 2]
    tumour_values = list(tumour_values)
    whole_liver = [np.isin(labels, [liver_value, *tumour_values]) for labels in (predicted, truth)]
    result: dict = {
        "liver": _mask_metrics(*whole_liver, grid),
        "tumours": [
            {"label": value, **_tumour_metrics(predicted == value, truth == value, grid)} for value in tumour_values
        ],
        "field": None,
        "points": None,
    }
    if field is not None:
        result["field"] = field_metrics(field, truth_labels.grid, whole_liver[1], grid)
    if field is not None and truth_points is not None and len(truth_points):
        result["points"] = summary_of_points(target_registration_error(field, truth_points))
    return result


def _mask_metrics(predicted: np.ndarray, truth: np.ndarray, grid: Grid) -> dict[str, float]:
    return {
        "dice": dice(predicted, truth),
        **surface_metrics(predicted, truth, grid.spacing),
        "centroid_error_mm": centroid_error_mm(predicted, truth, grid),
        "volume_ratio": volume_ratio(predicted, truth),
        "ravd_percent": ravd(predicted, truth),
    }


def _tumour_metrics(predicted: np.ndarray, truth: np.ndarray, grid: Grid) -> dict:
    return {
        "diameter_mm": equivalent_diameter_mm(truth, grid),
        **_mask_metrics(predicted, truth, grid),
        "coverage_5mm": coverage(predicted, truth, grid.spacing),
        "centroid_lps_mm": [float(c) for c in centroid_mm(predicted, grid)],
    }


def field_metrics(field: DisplacementField, fixed_grid: Grid, liver: np.ndarray, liver_grid: Grid) -> dict[str, float]:
    """Folds, SDlogJ and the largest displacement over the field's voxels that lie inside the fixed image; folds and
    SDlogJ inside the liver, a mask on `liver_grid`."""
    points = field.grid.points()
    inside = fixed_grid.contains(points)
    jacobian = field.jacobian_determinant()
    number, share = folds(jacobian, inside)
    length = np.linalg.norm(field.displacement_mm[inside], axis=-1)
    in_liver = liver_grid.contains(points)
    x, y, z = np.round(liver_grid.world_to_index(points[in_liver])).astype(int).T
    in_liver[in_liver] = liver[
        z.clip(0, liver.shape[0] - 1), y.clip(0, liver.shape[1] - 1), x.clip(0, liver.shape[2] - 1)
    ]
    return {
        "folds": number,
        "folds_share": share,
        "sd_log_jacobian": sd_log_jacobian(jacobian, inside),
        "liver_folds": folds(jacobian, in_liver)[0],
        "liver_sd_log_jacobian": sd_log_jacobian(jacobian, in_liver),
        "max_displacement_mm": float(length.max()) if length.size else 0.0,
    }


def summary_of_points(errors_mm: np.ndarray) -> dict[str, float]:
    """Number, mean, median, 95th percentile and largest of a set of target registration errors."""
    return {
        "number": len(errors_mm),
        "mean_mm": float(np.mean(errors_mm)),
        "median_mm": float(np.median(errors_mm)),
        "p95_mm": float(np.percentile(errors_mm, 95)),
        "max_mm": float(np.max(errors_mm)),
    }
