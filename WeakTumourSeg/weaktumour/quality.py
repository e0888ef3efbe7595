"""Figures about a result that need no truth: how far the registration moved things, whether it folds, when to doubt it;
how well an image shows a tumour; and the verdict on a tumour's place, in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .deformation import DisplacementField
from .registration.alignment import Alignment
from .registration.preparation import Scan
from .result import Displacement, Jacobian, RunVerdict
from .volumes import Grid, Volume

# Of Scorer: similarity, with the distance between the livers where both are known; a match comes out well below.
DOUBTFUL_SCORE = 0.75
DOUBTFUL_OVERLAP = 0.6


def jacobian_in_body(transform: DisplacementField, fixed: Scan) -> Jacobian:
    """Range of the Jacobian determinant over the transform's voxels that lie inside the CT's body."""
    determinant = transform.jacobian_determinant()
    index = fixed.grid.world_to_index(transform.grid.points())
    nearest = np.round(index).astype(int)
    within = np.all((nearest >= 0) & (nearest < np.asarray(fixed.grid.size)), axis=-1)
    x, y, z = np.moveaxis(nearest[within], -1, 0)
    values = determinant[within][fixed.body[z, y, x] > 0.5]
    if values.size == 0:
        return Jacobian()
    p01, p50, p99 = np.percentile(values, (1, 50, 99))
    return Jacobian(
        float(values.min()), float(p01), float(p50), float(p99), float(values.max()), int((values <= 0).sum())
    )


def displacement_in_liver(transform: DisplacementField, moving: Scan) -> Displacement:
    """How far liver points travel from fixed to moving, misalignment of the world frames included."""
    points = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[::5, ::-1])
    length = np.linalg.norm(points - transform.inverse_points(points, tolerance_mm=0.1), axis=1)
    return Displacement(float(np.median(length)), float(length.max()))


def inverse_consistency_mm(transform: DisplacementField, moving: Scan) -> float:
    """Largest distance by which liver points miss themselves on the way to the CT and back; large where it folds."""
    points = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[::23, ::-1])
    there = transform.inverse_points(points, tolerance_mm=0.02)
    return float(np.linalg.norm(transform.transform_points(there) - points, axis=1).max())


def judge_run(alignment: Alignment, score: float) -> RunVerdict:
    """'check_alignment' with its reasons where the registration itself is doubtful."""
    reasons = []
    if score > DOUBTFUL_SCORE:
        reasons.append(
            "MRI and CT resemble each other little in and around the liver "
            f"(cost {score:.2f}, where a match stays below {DOUBTFUL_SCORE:.2f})."
        )
    if alignment.overlap < DOUBTFUL_OVERLAP:
        reasons.append(f"Only {100 * alignment.overlap:.0f} % of the MRI's liver lies inside the CT.")
    return RunVerdict("check_alignment" if reasons else "ok", reasons)


# -- visibility -----------------------------------------------------------------------------------------------------
VISIBLE_CNR = 1.0  # from here on a tumour counts as visible: half of what is plain to the eye (Rose)
_RING_MM = (2.0, 12.0)  # from the tumour's surface
_INNER_MM = 1.0  # of the tumour's rim is left out: partial volume
_FEWEST = 8


@dataclass(frozen=True)
class Visibility:
    """cnr: difference of the medians of tumour and ring, in standard deviations of the ring, signed; auc: chance that a
    voxel of the tumour is brighter than one of the ring.
    """

    cnr: float
    auc: float

    @property
    def contrast(self) -> float:
        """0 for none, 1 where a threshold parts the two: |2 AUC - 1|."""
        return abs(2 * self.auc - 1)

    @property
    def is_visible(self) -> bool:
        return abs(self.cnr) >= VISIBLE_CNR


def visibility(image: Volume, tumour: np.ndarray, liver: np.ndarray) -> Visibility | None:
    """How well an image shows a tumour. tumour, liver: bool (z, y, x) on the image's grid; liver: where the ring may
    lie, other tumours left out. None where tumour or ring have too few voxels.

    The spread is a robust one of the voxels of the ring, their noise and texture; vessels there hardly count.
    """
    index = np.argwhere(tumour)
    if not len(index):
        return None
    box = image.grid.index_to_world(np.stack((index.min(0), index.max(0)))[:, ::-1])
    grid, part = image.grid.crop_to(box, _RING_MM[1] + 2 * max(image.grid.spacing))
    distance = signed_distance_mm(tumour[part], grid)
    values = image.array[part]
    # The surface lies half a voxel beyond the outermost voxel centres, whose distance is 0.
    depth = 0.5 * min(image.grid.spacing) - distance
    inside = values[(depth > min(_INNER_MM, 0.5 * float(depth.max()))) & tumour[part]].astype(float)
    ring = values[(distance > _RING_MM[0]) & (distance < _RING_MM[1]) & liver[part] & ~tumour[part]].astype(float)
    if len(inside) < _FEWEST or len(ring) < _FEWEST:
        return None
    middle = np.median(ring)
    spread = 1.4826 * float(np.median(np.abs(ring - middle)))
    spread = spread if spread > 0 else float(ring.std())
    if spread <= 0:
        return None
    return Visibility(float((np.median(inside) - middle) / spread), _auc(inside, ring))


def _auc(inside: np.ndarray, ring: np.ndarray) -> float:
    """Mann and Whitney: the chance that a value of `inside` exceeds one of `ring`, ties counting half."""
    ordered = np.sort(ring)
    below = np.searchsorted(ordered, inside, side="left") + np.searchsorted(ordered, inside, side="right")
    return float(below.mean() / (2 * len(ordered)))


def signed_distance_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(z, y, x) mm to the mask's surface, negative inside; voxel centres, Euclidean. The mask is not empty."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(grid.spacing)
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))


# -- the verdict on a tumour's place --------------------------------------------------------------------------------
# Correlation of the livers' vessels (registration.vessels) from which on they are taken to be one patient's; another's,
# which branch alike, mostly stay below (of 30 pairs with another's CT, three reached 0.45 and two 0.5).
SAME_VESSELS = 0.5


def shows_same_vessels(correlation: float | None) -> bool:
    """correlation: None where the two images do not show the same vessels at all."""
    return correlation is not None and correlation >= SAME_VESSELS


@dataclass(frozen=True)
class Thresholds:
    """Of p95, mm: up to the first a tumour is localised, up to the second approximately."""

    localised_mm: float = 5.0
    approximate_mm: float = 10.0


def judge_place(
    p95_mm: float, doubtful: bool, same_vessels: bool, run: RunVerdict, thresholds: Thresholds = Thresholds()
) -> tuple[str, str]:
    """A tumour's verdict and the sentence that gives its reason.

    same_vessels: whether MRI and CT were seen to show the same vessels in the liver. Nothing else tells a patient from
    another with a liver of much the same shape, so without them no tumour is called localised.
    """
    if run.verdict != "ok":
        return "cannot_be_localised", "The registration itself is doubtful: check the alignment first."
    if doubtful:
        return (
            "cannot_be_localised",
            "MRI and CT agree less in this liver than those of one patient do in simulations: check that they belong "
            "together and show the liver in the same part.",
        )
    shown = f"in 95 of 100 simulated cases like this one the centre lies within {p95_mm:.1f} mm of the place shown"
    if p95_mm <= thresholds.localised_mm:
        if same_vessels:
            return "localised", f"Localised: {shown}."
        return (
            "approximate",
            f"Approximate: {shown}, but the liver's vessels could not be matched between MRI and CT, so nothing inside "
            "the liver bears it out; make sure that both are of this patient and look for other signs of the tumour.",
        )
    if p95_mm <= thresholds.approximate_mm:
        return "approximate", f"Approximate: {shown}; look for other signs of the tumour and mind the margin."
    return (
        "cannot_be_localised",
        f"What is seen near it does not tell its place: {shown}, more than {thresholds.approximate_mm:g} mm.",
    )
