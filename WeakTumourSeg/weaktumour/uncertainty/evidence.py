"""What the images themselves say about a tumour's place: do they agree here, and would they agree as well elsewhere?

Round each tumour the CT and the registered MRI are compared as they lie and with the MRI shifted by a few millimetres.
Where the cost has a sharp minimum at no shift, the surroundings hold the tumour in its place; where it is flat, or lies
better elsewhere, they do not. The same is asked of the vessels' correlation (`registration.vessels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from ..deformation import sample, trilinear
from ..labels import LabelMap
from ..registration.alignment import _moving_index
from ..registration.preparation import Scan, tensor
from ..registration.refinement import Composed
from ..registration.similarity import erode, mind_ssc
from ..registration.vessels import standing_out

_REACH_MM = 25.0  # sigma of the neighbourhood of a tumour's surface that is asked
_STEP_VOXELS = (-2, -1, 0, 1, 2)
_RIM_MM = 6.0  # of what surrounds a lesion, as in the refinement
_NEAR_LIVER_MM = 10.0
_SURFACE_MM = 6.0


@dataclass(frozen=True)
class Evidence:
    """Of one tumour; see the module. What cannot be known is nan.

    mind_cost: relative to unrelated tissue; mind_contrast: by how much a shift of two voxels raises it, relative;
    mind_offset_mm: from no shift to where it is lowest. vessel_*: likewise of the vessels' correlation, -1 to 1.
    vessels_ct, vessels_mr: how much of them there is. surface_gap_mm: mean distance between the livers' surfaces near
    by.
    """

    mind_cost: float
    mind_contrast: float
    mind_offset_mm: float
    vessel_correlation: float
    vessel_contrast: float
    vessel_offset_mm: float
    vessels_ct: float
    vessels_mr: float
    surface_gap_mm: float


@torch.no_grad()
def evidence(
    fixed: Scan, moving: Scan, transform: Composed, labels: LabelMap, unrelated: float
) -> tuple[list[Evidence], Evidence]:
    """Of each tumour, in the labels' order, and of the whole liver.

    fixed, moving: on one spacing; transform: fixed -> moving; labels: on the MRI, in the scans' frame. unrelated: the
    squared difference between features of unrelated tissue.
    """
    liver_points = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[::5, ::-1])
    box = transform.best_affine.inverse().transform_points(liver_points)
    grid, part = fixed.grid.crop_to(box, margin_mm=25.0)
    index = _moving_index(transform, grid, moving.grid)

    def moved(array: np.ndarray, padding: str = "border") -> torch.Tensor:
        return sample(tensor(array), index, padding=padding)

    fixed_mind = mind_ssc(tensor(fixed.value))[(..., *part)]
    features = mind_ssc(moved(moving.value))
    distance = moved(moving.liver_distance_mm)
    near = torch.sigmoid((_NEAR_LIVER_MM - distance) / 3.0)
    use = near * erode((tensor(fixed.inside)[(..., *part)] > 0.99).float(), 1)
    keep = erode((moved(moving.inside, "zeros") > 0.99).float(), 1)
    if moving.lesion_distance_mm is not None:
        keep = keep * (moved(moving.lesion_distance_mm) > _RIM_MM)
    weights = [use * weight for weight in _round_tumours(labels, index, moving, grid.spacing[0])]
    weights.append(use)

    sides = [standing_out(scan) for scan in (fixed, moving)]
    vessels = None
    if all(side is not None for side in sides):
        of_fixed = tensor(sides[0][0])[(..., *part)], tensor(sides[0][1])[(..., *part)]
        of_moving = moved(sides[1][0]), moved(sides[1][1])
        inside = use * keep * (distance < -5.0)
        pairs = [(f, m, float(_correlation(f, m, inside))) for f in of_fixed for m in of_moving]
        vessels = max(pairs, key=lambda pair: pair[2])[:2]

    shifts = list(product(_STEP_VOXELS, repeat=3))
    costs = np.full((len(shifts), len(weights)), np.nan)
    likeness = np.full((len(shifts), len(weights)), np.nan)
    for number, shift in enumerate(shifts):
        features_there, keep_there = _shifted(features, shift), _shifted(keep, shift)
        difference = (features_there - fixed_mind).square().mean(1, keepdim=True)
        for which, weight in enumerate(weights):
            seen = weight * keep_there
            total = float(seen.sum())
            if total > 10:
                costs[number, which] = float((seen * difference).sum()) / total / unrelated
                if vessels is not None:
                    there = _shifted(vessels[1], shift)
                    likeness[number, which] = _correlation(vessels[0], there, seen * (distance < -4.0))
    surface = None
    if fixed.liver_distance_mm is not None:
        known = tensor(fixed.liver_distance_mm)[(..., *part)]
        band = ((known.abs() < _SURFACE_MM) | (distance.abs() < _SURFACE_MM)).float()
        surface = (known - distance).abs(), band
    length = np.linalg.norm(shifts, axis=1)
    found = []
    for which, weight in enumerate(weights):
        inside = weight * (distance < -4.0)
        amount = [np.nan, np.nan]
        if vessels is not None:
            amount = [float((v * inside).sum() / inside.sum().clamp(min=1e-6)) for v in vessels]
        gap = np.nan
        if surface is not None:
            seen = weight * surface[1]
            gap = float((seen * surface[0]).sum() / seen.sum()) if float(seen.sum()) > 1 else np.nan
        found.append(
            Evidence(
                *_profile(costs[:, which], shifts, length, grid.spacing[0], relative=True),
                *_profile(-likeness[:, which], shifts, length, grid.spacing[0], relative=False),
                *amount,
                gap,
            )
        )
    return found[:-1], found[-1]


def _profile(cost: np.ndarray, shifts: list, length: np.ndarray, spacing: float, relative: bool) -> tuple:
    """Value at no shift (its sign turned where not relative), rise to the farthest shifts, offset of the minimum."""
    if not np.isfinite(cost).all():
        return np.nan, np.nan, np.nan
    here = float(cost[length == 0][0])
    rise = float(cost[length >= 2].mean()) - here
    # The minimum of a soft kind: shifts weighted by how much better they are than the farthest.
    scale = max(1e-9, 0.15 * float(cost[length >= 2].mean() - cost.min()))
    weight = np.exp(-(cost - cost.min()) / scale)
    offset = spacing * float(np.linalg.norm((weight[:, None] * np.asarray(shifts)).sum(0) / weight.sum()))
    return (here, rise / max(here, 1e-6), offset) if relative else (-here, rise, offset)


def _round_tumours(labels: LabelMap, index: torch.Tensor, moving: Scan, spacing: float) -> list[torch.Tensor]:
    """(1, 1, z, y, x) for each tumour: falling off from its surface, 0 in no place."""
    world = moving.grid.index_to_world_affine
    flat = index[0].reshape(3, -1).numpy().T.astype(float) @ world[:3, :3].T + world[:3, 3]
    result = []
    for label in labels.tumours:
        at = labels.volume.grid.index_to_world(np.argwhere(labels.volume.array == label.value)[:, ::-1])
        radius = (3 * len(at) * labels.volume.grid.voxel_volume_mm3 / (4 * np.pi)) ** (1 / 3)
        beyond = np.maximum(np.linalg.norm(flat - at.mean(0), axis=1) - radius, 0)
        weight = np.exp(-0.5 * (beyond / _REACH_MM) ** 2).astype(np.float32)
        result.append(torch.from_numpy(weight).reshape(1, 1, *index.shape[2:]))
    return result


def _shifted(image: torch.Tensor, shift: tuple[int, int, int]) -> torch.Tensor:
    """image(x + shift), zeros beyond."""
    result = torch.zeros_like(image)
    to, of = [], []
    for s, n in zip(shift, image.shape[2:], strict=True):
        to.append(slice(max(0, -s), n - max(0, s)))
        of.append(slice(max(0, s), n - max(0, -s)))
    result[(..., *to)] = image[(..., *of)]
    return result


def _correlation(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> float:
    total = weight.sum().clamp(min=1e-6)
    a, b = a - (weight * a).sum() / total, b - (weight * b).sum() / total
    norm = ((weight * a * a).sum() * (weight * b * b).sum()).sqrt()
    return float((weight * a * b).sum() / norm.clamp(min=1e-9))


@dataclass(frozen=True)
class Whole:
    """Of the whole liver: what two images of one patient hardly ask for. What cannot be known is nan.

    volumes: |log| of the ratio of the livers' volumes, as far as they are known. gap_p90_mm: 90th percentile of the
    distance between the livers' surfaces after registration. strain: standard deviation of log det J of the
    deformation. bending_mm: root mean square of the deformation, less its best affine part.
    """

    volumes: float
    gap_p90_mm: float
    strain: float
    bending_mm: float


def whole(fixed: Scan, moving: Scan, transform: Composed) -> Whole:
    """fixed, moving: on one spacing; transform: fixed -> moving."""
    inside = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < -2.0)[::11, ::-1])
    before = transform.alignment.inverse().transform_points(inside)
    points = transform.deformation.inverse_points(before, tolerance_mm=0.1)
    moved = before - points
    homogeneous = np.c_[points - points.mean(0), np.ones(len(points))]
    rest = moved - homogeneous @ np.linalg.lstsq(homogeneous, moved, rcond=None)[0]
    grid = transform.deformation.grid
    determinant = transform.deformation.jacobian_determinant()[..., None]
    local = trilinear(determinant, grid.world_to_index(points))[:, 0]
    volumes = gap = np.nan
    if fixed.liver_distance_mm is not None:
        known, own = float((fixed.liver_distance_mm < 0).sum()), float((moving.liver_distance_mm < 0).sum())
        volumes = abs(np.log(max(known, 1.0) / max(own, 1.0)))
        near = np.abs(moving.liver_distance_mm) < 1.05 * moving.grid.spacing[0]
        surface = moving.grid.index_to_world(np.argwhere(near)[::7, ::-1])
        before = transform.alignment.inverse().transform_points(surface)
        there = fixed.grid.world_to_index(transform.deformation.inverse_points(before, tolerance_mm=0.1))
        own = moving.liver_distance_mm[near][::7]
        gap = float(np.percentile(np.abs(trilinear(fixed.liver_distance_mm[..., None], there)[:, 0] - own), 90))
    return Whole(
        float(volumes),
        gap,
        float(np.log(np.maximum(local, 0.05)).std()),
        float(np.sqrt(np.mean(np.sum(rest**2, axis=1)))),
    )
