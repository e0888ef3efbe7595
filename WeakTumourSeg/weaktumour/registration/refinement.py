"""Refinement ("instance optimisation"): the smooth, invertible deformation that is left after alignment.

The transform is  fixed -> moving  =  alignment o exp(v),  with v a stationary velocity field (Arsigny et al. 2006;
Ashburner 2007) given by cubic B-spline coefficients on a coarse grid, then on finer ones. Adam minimises

    mean of (MIND-SSC fixed - MIND-SSC moving)^2          where both images have tissue and no lesion
  + distance between the livers' surfaces                 where both masks are known
  + |grad v|^2 and |second derivatives of v|^2            much stiffer in the lesion

A tumour that the CT does not show has no counterpart for its edge: compared all the same, the edge is squeezed away;
merely left out of the comparison, the surroundings squeeze the hole shut. So the lesion and a rim are left out of the
comparison *and* made nearly rigid, and move with the tissue around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..deformation import Affine, DisplacementField, integrate, jacobian_determinant, sample, warp
from ..progress import Monitor
from ..volumes import Grid
from .preparation import Scan, resample_affine, tensor
from .similarity import erode, mind_ssc


@dataclass(frozen=True)
class Level:
    """pooling: working voxels per voxel of this level's grid, along each axis. control_mm: B-spline knot distance."""

    pooling: int
    control_mm: float
    steps: int


@dataclass(frozen=True)
class RefinementSettings:
    """Weights are relative to the data term, whose value is about 0.05 to 0.15.

    gradient, bending: raise them where the field tears at noise, lower them where organs stay misaligned.
    """

    levels: tuple[Level, ...] = (Level(2, 32.0, 40), Level(2, 16.0, 50))
    learning_rate_mm: float = 0.6
    gradient: float = 0.03
    bending: float = 0.3
    lesion_stiffness: float = 30.0
    lesion_rim_mm: float = 6.0
    lesion_stiff_rim_mm: float = 4.0
    outside_liver: float = 0.5
    liver_region_mm: float = 25.0
    liver_distance: float = 0.05
    mind_dilation: int = 2
    mind_radius: int = 1


@dataclass(frozen=True)
class Refinement:
    """field: the deformation within fixed space (before alignment is applied), LPS mm, on the working grid.

    cost_before, cost_after: the label-free data term over the same voxels. min_jacobian: inside the body.
    """

    field: DisplacementField
    cost_before: float
    cost_after: float
    min_jacobian: float

    @property
    def improved(self) -> bool:
        return self.cost_after < self.cost_before


def working_grid(fixed: Scan, moving: Scan, alignment: Affine, margin_mm: float = 24.0) -> Grid:
    """Where CT and aligned MRI overlap, plus a margin in which the deformation fades out; sizes are even."""
    spacing = fixed.grid.spacing[0]
    body = moving.grid.index_to_world(np.argwhere(moving.body > 0.5)[::11, ::-1])
    placed = alignment.inverse().transform_points(body)
    low = np.maximum(placed.min(0), fixed.grid.corners(0).min(0))
    high = np.minimum(placed.max(0), fixed.grid.corners(0).max(0))
    grid = Grid.around(np.stack((low, high)), spacing, margin_mm)
    return grid.crop((0, 0, 0), tuple(n + n % 2 for n in grid.size))


def refine(
    fixed: Scan, moving: Scan, alignment: Affine, settings: RefinementSettings, *, device: torch.device, monitor: Monitor
) -> Refinement:
    """Deform on top of an alignment. fixed and moving share their spacing (isotropic, mm)."""
    problem = _Problem(fixed, moving, alignment, settings, device)
    velocity = torch.zeros((1, 3, *problem.grid.shape), device=device)  # mm, on the working grid
    total, done = sum(level.steps for level in settings.levels), 0
    for level in settings.levels:
        velocity = velocity + problem.optimise(level, velocity, lambda n, done=done: monitor.update((done + n) / total))
        done += level.steps
    displacement, min_jacobian = problem.diffeomorphic(velocity)
    before, after = problem.cost(torch.zeros_like(displacement)), problem.cost(displacement)
    monitor.update(1.0)
    field = (displacement * problem.spacing)[0].permute(1, 2, 3, 0).cpu().numpy()
    return Refinement(DisplacementField(problem.grid, field), before, after, min_jacobian)


class _Problem:
    """Everything that stays the same during one refinement, on the working grid."""

    def __init__(self, fixed: Scan, moving: Scan, alignment: Affine, settings: RefinementSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.grid = working_grid(fixed, moving, alignment)
        self.spacing = self.grid.spacing[0]

        def from_fixed(array: np.ndarray, outside: float | None = 0.0) -> torch.Tensor:
            return resample_affine(tensor(array, device), fixed.grid, self.grid, Affine.identity(), outside=outside)

        def from_moving(array: np.ndarray, outside: float | None = 0.0) -> torch.Tensor:
            return resample_affine(tensor(array, device), moving.grid, self.grid, alignment, outside=outside)

        mind = {"dilation": settings.mind_dilation, "radius": settings.mind_radius}
        reach = settings.mind_dilation + settings.mind_radius
        self.fixed_features = mind_ssc(from_fixed(fixed.value, None), **mind)
        self.moving_features = mind_ssc(from_moving(moving.value, None), **mind)
        self.body = from_fixed(fixed.body)
        fixed_valid = erode((from_fixed(fixed.inside) > 0.99).float(), 1)
        self.moving_valid = erode((from_moving(moving.inside) > 0.99).float(), min(reach, 2)) * from_moving(moving.body)
        distance = from_moving(moving.liver_distance_mm, None)
        near = torch.sigmoid((settings.liver_region_mm - distance) / 4.0)
        self.moving_weight = self.moving_valid * (settings.outside_liver + (1 - settings.outside_liver) * near)
        self.fixed_weight = fixed_valid * (0.1 + 0.9 * self.body)
        self.stiffness = torch.ones_like(self.body)
        if moving.lesion is not None:
            lesion = from_moving(moving.lesion)
            self.moving_weight = self.moving_weight * (1 - _dilate(lesion, settings.lesion_rim_mm / self.spacing))
            self.stiffness = 1 + settings.lesion_stiffness * _dilate(lesion, settings.lesion_stiff_rim_mm / self.spacing)
        self.distances = None
        if fixed.liver_distance_mm is not None:
            self.distances = (from_fixed(fixed.liver_distance_mm, None), distance)
        self.fade = _fade(self.grid.shape, max(3, round(12.0 / self.spacing)), device)

    def optimise(self, level: Level, start: torch.Tensor, report) -> torch.Tensor:
        """The velocity (mm, working grid) to be added to `start` after this level's steps."""
        s, pool = self.settings, level.pooling
        shape = tuple(n // pool for n in self.grid.shape)
        spacing = self.spacing * pool

        def pooled(image: torch.Tensor) -> torch.Tensor:
            return F.avg_pool3d(image, pool) if pool > 1 else image

        fixed_features, moving_features = pooled(self.fixed_features), pooled(self.moving_features)
        fixed_weight, moving_weight, fade = pooled(self.fixed_weight), pooled(self.moving_weight), pooled(self.fade)
        stiffness, base = pooled(self.stiffness), pooled(start)
        distances = None if self.distances is None else tuple(map(pooled, self.distances))
        bases = [_bspline_basis(n, spacing, level.control_mm, self.device) for n in shape]
        control = torch.zeros((1, 3, *(b.shape[1] for b in bases)), device=self.device, requires_grad=True)
        optimiser = _Adam(control)
        for step in range(level.steps):
            velocity = base + fade * _bspline(control, bases)
            displacement = integrate(velocity / spacing, steps=5)
            with torch.no_grad():
                seen = fixed_weight * warp(moving_weight, displacement, padding="zeros")
                stiff = warp(stiffness, displacement)
            difference = (warp(moving_features, displacement) - fixed_features).square().mean(1, keepdim=True)
            loss = (seen * difference).sum() / seen.sum().clamp(min=1.0)
            loss = loss + _roughness(velocity, spacing, stiff, s.gradient, s.bending)
            if distances is not None:
                known, moving = distances
                band = (known.abs() < 12).float()
                gap = F.smooth_l1_loss(warp(moving, displacement) / 5, known / 5, reduction="none", beta=0.5)
                loss = loss + s.liver_distance * (band * gap).sum() / band.sum().clamp(min=1.0)
            # The rate falls over the second half, so that the last steps settle.
            optimiser.step(loss, s.learning_rate_mm * min(1.0, 2.0 * (1 - step / level.steps) + 0.1))
            report(step + 1)
        with torch.no_grad():
            added = fade * _bspline(control, bases)
            return F.interpolate(added, size=self.grid.shape, mode="trilinear", align_corners=False) if pool > 1 else added

    @torch.no_grad()
    def diffeomorphic(self, velocity: torch.Tensor, floor: float = 0.05) -> tuple[torch.Tensor, float]:
        """Displacement in voxels whose Jacobian determinant is positive everywhere inside the body, and its minimum.

        exp(v) of a smooth v is invertible; its sampled form can still fold where v is steep, so v is smoothed until
        the smallest determinant exceeds the floor.
        """
        for _ in range(12):
            displacement = integrate(velocity / self.spacing, steps=7)
            determinant = jacobian_determinant(displacement)[0]
            smallest = float(determinant[self.body[0, 0] > 0.5].min())
            if smallest > floor:
                break
            velocity = _smooth(velocity)
        return displacement, smallest

    @torch.no_grad()
    def cost(self, displacement: torch.Tensor) -> float:
        """The data term on the working grid, over voxels that have a counterpart with and without the deformation."""
        keep = (self.moving_valid > 0.5).float()
        seen = self.fixed_weight * self.moving_weight * warp(self.moving_weight, displacement, padding="zeros")
        seen = seen * keep
        difference = (warp(self.moving_features, displacement) - self.fixed_features).square().mean(1, keepdim=True)
        return float((seen * difference).sum() / seen.sum().clamp(min=1.0))


class _Adam:
    """Kingma and Ba 2015, for one tensor. torch.optim pulls in torch's compiler, seconds that a clinician would wait."""

    def __init__(self, parameter: torch.Tensor, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.parameter, self.beta1, self.beta2, self.count = parameter, beta1, beta2, 0
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self, loss: torch.Tensor, rate: float) -> None:
        (gradient,) = torch.autograd.grad(loss, self.parameter)
        self.count += 1
        with torch.no_grad():
            self.mean.lerp_(gradient, 1 - self.beta1)
            self.square.lerp_(gradient.square(), 1 - self.beta2)
            denominator = (self.square / (1 - self.beta2**self.count)).sqrt_().add_(1e-8)
            self.parameter.addcdiv_(self.mean, denominator, value=-rate / (1 - self.beta1**self.count))


# -- pieces -------------------------------------------------------------------------------------------------------
def _bspline_basis(voxels: int, spacing: float, control_mm: float, device: torch.device) -> torch.Tensor:
    """(voxels, knots): cubic B-spline weights of each knot at each voxel centre of one axis."""
    position = torch.arange(voxels, dtype=torch.float32, device=device) * spacing / control_mm
    knots = int(np.ceil((voxels - 1) * spacing / control_mm)) + 3
    distance = (position[:, None] - (torch.arange(knots, device=device) - 1)[None]).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _bspline(control: torch.Tensor, bases: list[torch.Tensor]) -> torch.Tensor:
    """(1, 3, knots...) -> (1, 3, z, y, x), one axis after the other."""
    value = torch.einsum("bcijk,xk->bcijx", control, bases[2])
    value = torch.einsum("bcijx,yj->bciyx", value, bases[1])
    return torch.einsum("bciyx,zi->bczyx", value, bases[0])


def _roughness(velocity: torch.Tensor, spacing: float, weight: torch.Tensor, gradient: float, bending: float) -> torch.Tensor:
    """Weighted means of |grad v|^2 (mm/mm) and of the squared second derivatives, times 10 mm squared (unit free)."""
    total = velocity.new_zeros(())
    for axis in (2, 3, 4):
        first = torch.diff(velocity, dim=axis) / spacing
        local = weight.narrow(axis, 0, weight.shape[axis] - 1)
        total = total + gradient * (local * first.square().sum(1, keepdim=True)).mean()
        for other in range(axis, 5):
            second = torch.diff(first, dim=other) / spacing
            place = local.narrow(other, 0, second.shape[other])
            factor = 1.0 if other == axis else 2.0
            total = total + bending * factor * 100.0 * (place * second.square().sum(1, keepdim=True)).mean()
    return total


def _dilate(mask: torch.Tensor, voxels: float) -> torch.Tensor:
    """A soft mask grown by a ball of this radius (voxels, fractions allowed)."""
    reach = int(np.ceil(voxels))
    if reach < 1:
        return mask
    grown = mask
    offsets = range(-reach, reach + 1)
    padded = F.pad(mask, (reach,) * 6)
    z, y, x = mask.shape[2:]
    for dz in offsets:
        for dy in offsets:
            for dx in offsets:
                # A linear shoulder of one voxel makes the radius continuous.
                share = voxels + 0.5 - float(np.sqrt(dz * dz + dy * dy + dx * dx))
                if share > 0:
                    part = padded[:, :, reach + dz : reach + dz + z, reach + dy : reach + dy + y, reach + dx : reach + dx + x]
                    grown = torch.maximum(grown, part * min(1.0, share))
    return grown


def _smooth(velocity: torch.Tensor) -> torch.Tensor:
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 3, 1
        velocity = F.avg_pool3d(velocity, kernel, stride=1, padding=padding, count_include_pad=False)
    return velocity


def _fade(shape: tuple[int, int, int], width: int, device: torch.device) -> torch.Tensor:
    """1 inside, falling smoothly to 0 at the grid's faces over `width` voxels."""
    ramps = []
    for n in shape:
        position = torch.arange(n, dtype=torch.float32, device=device)
        depth = torch.minimum(position, n - 1 - position) / min(width, max(1, n // 2))
        ramps.append(0.5 - 0.5 * torch.cos(torch.pi * depth.clamp(0, 1)))
    return (ramps[0][:, None, None] * ramps[1][None, :, None] * ramps[2][None, None, :])[None, None]


def combine(alignment: Affine, refinement: DisplacementField | None, grid: Grid) -> DisplacementField:
    """alignment o refinement, sampled on a grid (float64): the whole transform, fixed -> moving."""
    if refinement is None:
        return DisplacementField.of(alignment, grid)
    displacement = np.empty((*grid.shape, 3))
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(refinement.displacement_mm, -1, 0), dtype=np.float32))[None]
    for z in range(0, grid.shape[0], 16):
        rows = slice(z, min(z + 16, grid.shape[0]))
        points = grid.crop((0, 0, z), (*grid.size[:2], rows.stop - z)).points()
        index = torch.from_numpy(np.moveaxis(refinement.grid.world_to_index(points), -1, 0).astype(np.float32))[None]
        moved = sample(field, index, padding="zeros")[0]
        displacement[rows] = alignment.transform_points(points + np.moveaxis(moved.numpy(), 0, -1).astype(np.float64)) - points
    return DisplacementField(grid, displacement)
