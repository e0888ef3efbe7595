"""What MSCGUNet predicts on top of an alignment: a velocity field that refinement can start from.

The network sees a cube about the liver, both images and both livers, as in training. Its field fades out towards the
faces of the cube and is defined everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..deformation import Affine, DisplacementField, compose, integrate, jacobian_determinant, warp
from ..devices import on_device
from ..errors import ModelError
from ..models import ModelEntry, load
from ..networks.mscgunet import Prediction
from ..progress import Monitor
from ..volumes import Grid
from .preparation import CT_WINDOW_HU, DISTANCE_LIMIT_MM, Scan, resample_affine, tensor
from .search import as_velocity
from .similarity import mind_ssc

_FADE_MM = 24.0
INPUT_CHANNELS = (1, 2, 5)  # for each image, see pair_inputs
# An image in [0, 1] and the distance to its liver's surface in mm, None where unknown: (1, 1, z, y, x) each.
Shown = tuple[torch.Tensor, torch.Tensor | None]


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
    fixed: Scan,
    moving: Scan,
    alignment: Affine,
    entry: ModelEntry,
    device: torch.device,
    monitor: Monitor,
    prepare: Callable[[nn.Module], object] = lambda network: None,
) -> Predicted:
    """MSCGUNet's deformation between a CT and an MRI that `alignment` brings together.

    prepare: called with the network before it is asked. Raises ModelError for a model of another make.
    """
    if entry.task != "registration":
        raise ModelError(f"Model {entry.id}: it is for {entry.task}; choose a registration model.")
    published = bool(entry.arguments.get("published"))
    spacing = float(entry.input.get("spacing_mm") or fixed.grid.spacing[0])
    passes = 1 if published else entry.input.get("passes", 1)
    if type(passes) is not int or passes < 1:
        raise ModelError(f'Model {entry.id}: its input says "passes": {passes!r}, not 1 or more; import it anew.')
    grid = cube_about_liver(fixed, moving, alignment, spacing, tuple(entry.input.get("shape") or (64, 64, 64)))

    def run(device: torch.device) -> torch.Tensor:
        network = load(entry, device)
        prepare(network)
        channels = 1 if published else network.image_channels
        seen = [
            _on_grid(scan, grid, transform, device)
            for scan, transform in ((fixed, Affine.identity()), (moving, alignment))
        ]
        if published:
            seen[0] = (_published_window(seen[0][0]), seen[0][1])
        with torch.no_grad():
            velocity = in_passes(network, *seen, spacing, channels, passes).velocity.float().cpu()
        if published:  # there it lies on the full grid, in its voxels
            return F.avg_pool3d(velocity, 2) / 2
        return velocity

    velocity = on_device(run, device, monitor)
    half = _half_grid(grid, velocity.shape[2:])
    velocity = velocity * half.spacing[0] * _fade(half)
    voxels = integrate(velocity / half.spacing[0], steps=7)
    along_axes = (voxels * half.spacing[0])[0].permute(1, 2, 3, 0).numpy()
    field = DisplacementField(half, along_axes.astype(np.float64) @ half.axes.T)
    return Predicted(half, velocity, field, float(jacobian_determinant(voxels).min()))


def cube_about_liver(fixed: Scan, moving: Scan, alignment: Affine, spacing: float, shape: tuple[int, int, int]) -> Grid:
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


def _on_grid(scan: Scan, grid: Grid, transform: Affine, device: torch.device) -> Shown:
    """An image as the transform brings it onto the cube."""
    value = resample_affine(tensor(scan.value * (scan.inside > 0.5)), scan.grid, grid, transform, outside=0.0)
    if scan.liver_distance_mm is None:
        return value.to(device), None
    # As in training: where the image ends, the liver is said to be far away.
    distance = tensor(np.where(scan.inside > 0.5, scan.liver_distance_mm, DISTANCE_LIMIT_MM))
    distance = resample_affine(distance, scan.grid, grid, transform, outside=DISTANCE_LIMIT_MM)
    return value.to(device), distance.to(device)


def _published_window(value: torch.Tensor) -> torch.Tensor:
    """The CT in our window -> in that of the published training, level 50 and width 350 HU."""
    low, high = CT_WINDOW_HU
    return ((low + (high - low) * value - (50 - 350 / 2)) / 350).clamp(0, 1)


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


# -- what the network is asked -----------------------------------------------------------------------------------
def in_passes(
    network: nn.Module, fixed: Shown, moving: Shown, spacing_mm: float, channels: int, passes: int
) -> Prediction:
    """Ask the network, move the moving image by its answer, ask about what is left, and so on; see `pair_inputs`.

    A network that learnt from many motions says too little of a large one at first (Zhao et al., recursive cascaded
    networks, ICCV 2019). Returns the last prediction with the velocity and displacement of all of them together.
    """
    velocity = total = prediction = None
    for _ in range(passes):
        shown = moving if prediction is None else moved(moving, prediction.displacement)
        prediction = network(*pair_inputs(fixed[0], shown[0], fixed[1], shown[1], spacing_mm, channels))
        if passes == 1:
            return prediction
        step = prediction.velocity.float()
        if velocity is None:
            velocity, total = step, integrate(step, steps=7)
        else:
            total = compose(total, integrate(step, steps=7))
            velocity = as_velocity(total, velocity + step)
        prediction = prediction._replace(velocity=velocity, displacement=prediction.exponential(velocity))
    return prediction


def moved(moving: Shown, displacement: torch.Tensor) -> Shown:
    """A moving image and its liver's distance through a displacement (1, 3, z, y, x), voxels."""
    image, distance = moving
    displacement = displacement.float()
    return warp(image, displacement), None if distance is None else warp(distance, displacement)


# -- what the network is shown ------------------------------------------------------------------------------------
def pair_inputs(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    fixed_distance: torch.Tensor | None,
    moving_distance: torch.Tensor | None,
    spacing_mm: float,
    channels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, channels, z, y, x) for each image. Images in [0, 1] and distances in mm: (1, 1, z, y, x), one grid.

    1 channel: the image. 2: and the signed distance to its liver's surface, cut off at 20 mm, in units of 10 mm (0
    where unknown): far from the surface it tells how far that has to move. 5: and a vector x, y, z that already points
    the way: with the fixed image the one that the livers' surfaces ask for, with the moving image the one that the
    neighbourhoods' self-similarity asks for. From these the network learns what to trust where, and how to fill in
    between, in a small part of the time that it takes to find them by itself.
    Raises ValueError for another number of channels.
    """
    if channels not in INPUT_CHANNELS:
        raise ValueError(f"a registration network has {INPUT_CHANNELS} input channels for each image, not {channels}")
    inputs = [[fixed], [moving]]
    if channels > 1:
        unknown = torch.zeros_like(fixed)
        for own, distance in zip(inputs, (fixed_distance, moving_distance), strict=True):
            own.append(unknown if distance is None else distance.clamp(-20.0, 20.0) / 10.0)
    if channels > 2:
        surface = torch.zeros_like(fixed).expand(-1, 3, -1, -1, -1)
        if fixed_distance is not None and moving_distance is not None:
            voxels = [distance.clamp(-20.0, 20.0) / spacing_mm for distance in (fixed_distance, moving_distance)]
            surface = _force(*voxels, radius=1, least=0.1)
        similarity = _force(*(mind_ssc(image) for image in (fixed, moving)), radius=2, least=0.02)
        inputs[0].append(surface)
        inputs[1].append(similarity)
    return torch.cat(inputs[0], 1), torch.cat(inputs[1], 1)


def images_in(shown: torch.Tensor) -> Shown:
    """What `pair_inputs` made its channels of; the distance is cut off at 20 mm."""
    if shown.shape[1] == 1 or not shown[:, 1].any():
        return shown[:, :1], None
    return shown[:, :1], 10.0 * shown[:, 1:2]


def _force(fixed: torch.Tensor, moving: torch.Tensor, radius: int, least: float) -> torch.Tensor:
    """(1, 3, z, y, x), x y z, in units of 2 voxels: a step of least squares for moving(x + u) = fixed(x).

    The normal equations' diagonal alone, summed over channels and over cubes of 2 * radius + 1 voxels, as in demons
    (Thirion 1998) and Lucas and Kanade (1981). least: a squared gradient that counts as none.
    """
    difference = fixed - moving
    mean = 0.5 * (fixed + moving)
    along = [torch.gradient(mean, dim=axis)[0] for axis in (4, 3, 2)]
    wanted = torch.cat([(difference * gradient).sum(1, keepdim=True) for gradient in along], 1)
    strength = sum(gradient.square().sum(1, keepdim=True) for gradient in along)
    wanted, strength = (
        F.avg_pool3d(x, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False) for x in (wanted, strength)
    )
    return (wanted / (strength + least)).clamp(-4.0, 4.0) / 2.0
