"""An ensemble of perturbed registrations: where would the tumours lie, had things been a little different?

Each member starts from the alignment moved by a known jitter, looks at a random part of the CT (blocks of it are left
out, a delete-half jackknife), and has one setting of the refinement changed. The jitter is part of the member's own
transform, so nothing of it is left where the images say where to go, and all of it where they do not. Members run on
the alignment's grid, coarser than the refinement's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..deformation import Affine
from ..labels import LabelMap
from ..progress import Monitor
from ..registration.prediction import Predicted
from ..registration.preparation import Scan
from ..registration.refinement import Composed, Level, RefinementSettings, refine

_JITTER_DEGREES, _JITTER_MM = 3.0, 4.0  # standard deviations about, and along, each axis
_BLOCK_MM = 24.0
_KEPT = 0.6  # of the blocks
_POINTS = 400  # of each tumour, whose mean is its place


@dataclass(frozen=True)
class Variant:
    """One member. changes: of RefinementSettings. predicted: begin with MSCGUNet's field. ct_liver: use the mask."""

    name: str
    changes: dict[str, object]
    predicted: bool = True
    ct_liver: bool = True


_BASE = RefinementSettings(levels=(Level(2, 16.0, 12), Level(1, 10.0, 10, every=4)))
# Of eight that were tried on development patients, those whose spread follows the error best.
VARIANTS = (
    Variant("as in the run", {}),
    Variant("without the CT's liver", {}, ct_liver=False),
    Variant("without vessels", {"vessels": 0.0}),
    Variant("stiffer", {"bending": 3 * _BASE.bending}),
    Variant("looser", {"bending": _BASE.bending / 3}),
    Variant("wider neighbourhoods, without the prediction", {"mind_dilation": 2}, predicted=False),
)


@dataclass(frozen=True)
class Ensemble:
    """transforms: of the members, fixed -> moving. places_mm: (members, tumours, 3) the tumours' centroids in the CT's
    frame, in the order of the labels' tumours.
    """

    transforms: tuple[Composed, ...]
    places_mm: np.ndarray


def run_ensemble(
    fixed: Scan,
    moving: Scan,
    alignment: Affine,
    predicted: Predicted | None,
    labels: LabelMap,
    *,
    variants: Sequence[Variant] = VARIANTS,
    seed: int,
    device: torch.device,
    monitor: Monitor,
) -> Ensemble:
    """fixed, moving: on one spacing. labels: on the MRI, in the frame of the scans. Raises Cancelled."""
    tumours = [tumour_points(labels, label.value) for label in labels.tumours]
    transforms, places = [], []
    for number, variant in enumerate(variants):
        rng = np.random.default_rng([seed, number])
        jitter = _jitter(moving, alignment, rng)
        seen = replace(
            fixed,
            inside=fixed.inside * _blocks(fixed, rng),
            liver_distance_mm=fixed.liver_distance_mm if variant.ct_liver else None,
        )
        settings = replace(_BASE, **variant.changes)
        share = _Share(monitor, number, len(variants))
        start = predicted if variant.predicted else None
        refinement = refine(seen, moving, alignment.after(jitter), settings, start=start, device=device, monitor=share)
        member = Composed(alignment.after(jitter), refinement.field)
        transforms.append(member)
        places.append([place_of(member, points) for points in tumours])
    return Ensemble(tuple(transforms), np.asarray(places, dtype=float).reshape(len(variants), len(tumours), 3))


def tumour_points(labels: LabelMap, value: int) -> np.ndarray:
    """(n, 3) LPS mm: an even part of a label's voxel centres."""
    index = np.argwhere(labels.volume.array == value)[:, ::-1]
    return labels.volume.grid.index_to_world(index[:: max(1, len(index) // _POINTS)])


def place_of(transform: Composed, points_mm: np.ndarray) -> np.ndarray:
    """(3,) mean of where moving points (n, 3) lie in fixed space."""
    before = transform.alignment.inverse().transform_points(points_mm)
    return transform.deformation.inverse_points(before, tolerance_mm=0.05).mean(0)


class _Share:
    """A monitor for one of several parts of a stage."""

    def __init__(self, monitor: Monitor, number: int, parts: int) -> None:
        self._monitor, self._number, self._parts = monitor, number, parts
        self.check: Callable[[], None] = monitor.check
        self.log: Callable[[str], None] = monitor.log

    def update(self, fraction: float, *, force: bool = False) -> None:
        self._monitor.update((self._number + fraction) / self._parts, force=force)


def _jitter(moving: Scan, alignment: Affine, rng: np.random.Generator) -> Affine:
    """Fixed -> fixed: a small rotation about the liver's place, and a shift."""
    liver = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[:, ::-1].mean(0))
    centre = alignment.inverse().transform_points(liver)
    angles = np.deg2rad(rng.normal(0, _JITTER_DEGREES, 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + rng.normal(0, _JITTER_MM, 3)
    return Affine(matrix)


def _blocks(fixed: Scan, rng: np.random.Generator) -> np.ndarray:
    """(z, y, x) float32: 0 in the blocks that are left out, 1 elsewhere."""
    edge = max(1, round(_BLOCK_MM / fixed.grid.spacing[0]))
    shape = fixed.inside.shape
    kept = rng.random([-(-n // edge) for n in shape]) < _KEPT
    for axis, size in enumerate(shape):
        kept = np.repeat(kept, edge, axis=axis).take(range(size), axis=axis)
    return kept.astype(np.float32)
