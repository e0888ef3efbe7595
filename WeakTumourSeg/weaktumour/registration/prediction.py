"""What MSCGUNet predicts on top of an alignment: a velocity field that refinement can start from.

The network sees a cube about the liver, both images and both livers, as in training. Its field fades out towards the
faces of the cube and is defined everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..deformation import Affine, DisplacementField, integrate, jacobian_determinant
from ..devices import on_device
from ..errors import ModelError
from ..models import ModelEntry, load
from ..progress import Monitor
from ..volumes import Grid
from .preparation import DISTANCE_LIMIT_MM, Scan, resample_affine, tensor

_FADE_MM = 24.0


@dataclass(frozen=True)
class Predicted:
    """velocity_mm: (1, 3, z, y, x), components along the grid's axes x, y, z, zero at the faces; on the CPU.

    transform: fixed -> moving with the alignment left out (exp of the velocity), LPS mm. min_jacobian: its smallest.
    """

    grid: Grid
    velocity_mm: torch.Tensor
    transform: DisplacementField
    min_jacobian: float


def predict(
    fixed: Scan, moving: Scan, alignment: Affine, entry: ModelEntry, device: torch.device, monitor: Monitor
) -> Predicted:
    """MSCGUNet's deformation between a CT and an MRI that `alignment` brings together.

    Raises ModelError for a model of another make.
    """
    if entry.task != "registration":
        raise ModelError(f"Model {entry.id}: it is for {entry.task}; choose a registration model.")
    published = bool(entry.arguments.get("published"))
    spacing = float(entry.input.get("spacing_mm") or fixed.grid.spacing[0])
    grid = _cube(fixed, moving, alignment, spacing, tuple(entry.input.get("shape") or (64, 64, 64)))

    def run(device: torch.device) -> torch.Tensor:
        network = load(entry, device)
        channels = 1 if published else network.image_channels
        inputs = [_input(scan, grid, transform, channels, device)
                  for scan, transform in ((fixed, Affine.identity()), (moving, alignment))]  # fmt: skip
        with torch.no_grad():
            velocity = network(*inputs).velocity.float().cpu()
        if published:  # there it lies on the full grid, in its voxels
            return torch.nn.functional.avg_pool3d(velocity, 2) / 2
        return velocity

    velocity = on_device(run, device, monitor)
    half = _half_grid(grid, velocity.shape[2:])
    velocity = velocity * half.spacing[0] * _fade(half)
    voxels = integrate(velocity / half.spacing[0], steps=7)
    along_axes = (voxels * half.spacing[0])[0].permute(1, 2, 3, 0).numpy()
    field = DisplacementField(half, along_axes.astype(np.float64) @ half.axes.T)
    return Predicted(half, velocity, field, float(jacobian_determinant(voxels).min()))


def _cube(fixed: Scan, moving: Scan, alignment: Affine, spacing: float, shape: tuple[int, int, int]) -> Grid:
    """Of the trained shape (z, y, x), along the CT's axes, about the place where the alignment puts the MRI's liver.

    A liver larger than that gets a larger cube: networks take any grid.
    """
    liver = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[::3, ::-1])
    placed = alignment.inverse().transform_points(liver) @ fixed.grid.axes
    low, high = placed.min(0), placed.max(0)
    needed = np.ceil((high - low + 2 * _FADE_MM) / spacing).astype(int)
    size = np.maximum(np.asarray(shape[::-1]), 16 * np.ceil(needed / 16).astype(int))
    origin = fixed.grid.axes @ (0.5 * (low + high) - 0.5 * spacing * (size - 1))
    return Grid(tuple(int(n) for n in size), (spacing,) * 3, tuple(origin), fixed.grid.direction)


def _input(scan: Scan, grid: Grid, transform: Affine, channels: int, device: torch.device) -> torch.Tensor:
    """(1, channels, z, y, x): the image, then the liver's probability where the network takes it (0: unknown)."""
    parts = [resample_affine(tensor(scan.value * (scan.inside > 0.5)), scan.grid, grid, transform, outside=0.0)]
    if channels > 1:
        if scan.liver_distance_mm is None:
            parts.append(torch.zeros_like(parts[0]))
        else:
            distance = tensor(scan.liver_distance_mm)
            distance = resample_affine(distance, scan.grid, grid, transform, outside=DISTANCE_LIMIT_MM)
            parts.append(liver_channel(distance))
    return torch.cat(parts, 1).to(device)


def liver_channel(distance_mm: torch.Tensor) -> torch.Tensor:
    """The network's second channel: signed distance to the liver's surface, cut off at 20 mm, in units of 10 mm.

    Distances tell far from the surface how far it has to move; a mask tells only at its edge.
    """
    return distance_mm.clamp(-20.0, 20.0) / 10.0


def _half_grid(grid: Grid, shape: tuple[int, ...]) -> Grid:
    """The grid on which every voxel covers two of `grid` along each axis."""
    first = grid.index_to_world(np.array([0.5, 0.5, 0.5]))
    return Grid(tuple(shape[::-1]), tuple(2 * s for s in grid.spacing), tuple(first), grid.direction)


def _fade(grid: Grid) -> torch.Tensor:
    """(1, 1, z, y, x): 1 inside, falling to 0 at the faces."""
    ramps = []
    for n in grid.shape:
        position = torch.arange(n) * grid.spacing[0]
        depth = torch.minimum(position, (n - 1) * grid.spacing[0] - position) / _FADE_MM
        ramps.append(0.5 - 0.5 * torch.cos(torch.pi * depth.clamp(0, 1)))
    z, y, x = ramps
    return (z[:, None, None] * y[None, :, None] * x[None, None, :])[None, None]
