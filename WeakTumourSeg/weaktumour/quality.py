"""Figures about a registration that need no truth: how far it moved things, whether it folds, when to doubt it."""

from __future__ import annotations

import numpy as np

from .deformation import DisplacementField
from .registration.alignment import Alignment
from .registration.preparation import Scan
from .result import Displacement, Jacobian, RunVerdict

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
