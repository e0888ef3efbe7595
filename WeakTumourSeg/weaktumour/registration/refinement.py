"""Refinement ("instance optimisation"): the smooth, invertible deformation that is left after alignment.

The transform is  fixed -> moving  =  alignment o exp(v),  with v a stationary velocity field (Arsigny et al. 2006;
Ashburner 2007): what MSCGUNet predicted, with a search over whole shifts (`search`) round the liver, or everywhere
where nothing was predicted; then cubic B-splines on a coarse grid and on finer ones. For these Adam minimises

    (MIND-SSC fixed - MIND-SSC moving)^2      where both images have tissue and no lesion
  + (vessels fixed - vessels moving)^2        in the liver, see `vessels`
  + distance between the livers' surfaces     where both masks are known; else
    the MRI's liver on CT tissue unlike liver
  + |grad v|^2, |second derivatives of v|^2   much stiffer in the lesion
  + (div v)^2                                 in the liver, which hardly changes its volume

A tumour that the CT does not show has no counterpart for its edge: compared all the same, the edge is squeezed away;
merely left out of the comparison, the surroundings squeeze the hole shut. So the lesion and a rim are left out of the
comparison *and* made nearly rigid, and move with the tissue around them.

Three lattices share one corner: the working grid holds the images; a pooled version of it, or itself, is where they are
compared, at chosen points; every second of its nodes carry v during optimisation, which is smooth enough for that. The
result is integrated on the working grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..deformation import Affine, DisplacementField, Sampler, compose, integrate, jacobian_determinant, sample, warp
from ..progress import Monitor
from ..volumes import Grid
from .prediction import Predicted
from .preparation import Scan, resample_affine, surface_known, tensor, unlike_liver
from .search import as_velocity, shift_costs, smooth_shifts
from .similarity import erode, mind_ssc
from .vessels import agreeing_sides, standing_out

_FADE_MM = 15.0  # over this distance the deformation falls to zero at the working grid's faces
_INTEGRATION_STEPS = 4  # while optimising
_STEP_VOXELS = 0.25  # of the result's integration, at most
_LESION_ROUNDS = 4  # of smoothing what the search finds in lesions: nodes of its lattice that the rim reaches in
_FINE_SEARCH_MM = 15.0  # what the coarse search misses; it costs a hundred times as much for as many millimetres
_VESSELS_MM = 5.0  # the lattice on which the images are asked whether they show the same vessels
_SPARSE = 4  # far from the liver one in so many points is compared


@dataclass(frozen=True)
class Level:
    """pooling: working voxels per compared voxel along each axis. control_mm: B-spline knot distance.

    every: one in so many of the voxels near the liver is compared; neighbours say much the same.
    """

    pooling: int
    control_mm: float
    steps: int
    every: int = 1


@dataclass(frozen=True)
class RefinementSettings:
    """All weights are relative to the data term, whose value is about 0.05 to 0.15 for each compared voxel.

    gradient, bending: raise them where the field tears at noise, lower them where organs stay misaligned.
    incompressibility: raise it where the liver shrinks or swells. outside_liver: weight of what is further than
    liver_region_mm from the liver; liver_stiffness: how much stiffer the liver is than what surrounds it, so that it
    follows its own features rather than the spine and ribs that it slides along.
    vessels: weight of the liver's vessels; 0 leaves them to MIND. liver_tissue, liver_pull: see
    `preparation.unlike_liver`. mind_*: see `mind_ssc`.
    search_mm: shifts of up to about so much are tried where nothing was predicted: round the liver, or, without
    MSCGUNet's field, everywhere; 0 for none.
    """

    levels: tuple[Level, ...] = (Level(2, 16.0, 30), Level(1, 10.0, 20))
    learning_rate_mm: float = 1.0
    gradient: float = 0.0005
    bending: float = 0.007
    incompressibility: float = 3.0
    liver_stiffness: float = 9.0
    lesion_stiffness: float = 30.0
    lesion_rim_mm: float = 6.0
    lesion_stiff_rim_mm: float = 4.0
    outside_liver: float = 1.5
    liver_region_mm: float = 12.0
    liver_distance: float = 0.04
    vessels: float = 40.0
    liver_tissue: float = 0.4
    liver_pull: float = 1.0
    mind_dilation: int = 1
    mind_radius: int = 1
    search_mm: float = 20.0


@dataclass(frozen=True)
class Refinement:
    """field: the deformation within fixed space (before alignment is applied), LPS mm, on the working grid.

    min_jacobian: the smallest determinant inside the body. vessels: correlation of the livers' vessels before it; None
    where the images do not show the same ones.
    """

    field: DisplacementField
    min_jacobian: float
    vessels: float | None = None


def refine(
    fixed: Scan,
    moving: Scan,
    alignment: Affine,
    settings: RefinementSettings,
    *,
    start: Predicted | None = None,
    device: torch.device,
    monitor: Monitor,
) -> Refinement:
    """Deform on top of an alignment. fixed and moving share their spacing (isotropic, mm).

    start: a velocity to begin with; it stays part of what the regularisation weighs.
    """
    problem = _Problem(fixed, moving, alignment, settings, device)
    velocity = _Velocity(problem.grid, device)
    if start is not None:
        velocity.begin_with(start)
    vessels = problem.compare_vessels(velocity)
    problem.search(velocity)
    total, done = sum(level.steps for level in settings.levels), 0
    for level in settings.levels:
        problem.optimise(velocity, level, lambda step, done=done: monitor.update((done + step) / total))
        done += level.steps
    displacement, min_jacobian = problem.diffeomorphic(velocity)
    monitor.update(1.0)
    along_axes = (displacement * problem.spacing)[0].permute(1, 2, 3, 0).cpu().numpy()
    field = along_axes @ problem.grid.axes.T.astype(np.float32)  # LPS
    return Refinement(DisplacementField(problem.grid, field), min_jacobian, vessels)


def working_grid(fixed: Scan, moving: Scan, alignment: Affine, multiple: int, margin_mm: float = 24.0) -> Grid:
    """Where CT and aligned MRI overlap, plus a margin in which the deformation fades out.

    Sizes are multiples of `multiple`.
    """
    spacing = fixed.grid.spacing[0]
    body = moving.grid.index_to_world(np.argwhere(moving.body > 0.5)[::11, ::-1])
    placed = fixed.grid.world_to_index(alignment.inverse().transform_points(body))
    last = np.asarray(fixed.grid.size) - 1
    box = fixed.grid.index_to_world(np.clip(np.stack((placed.min(0), placed.max(0))), 0, last))
    grid = Grid.around(box, spacing, margin_mm, like=fixed.grid)
    return grid.crop((0, 0, 0), tuple(-(-n // multiple) * multiple for n in grid.size))


class _Velocity:
    """v in mm as a sum of B-spline layers, to be evaluated on any lattice along the working grid's axes."""

    def __init__(self, grid: Grid, device: torch.device) -> None:
        self.grid, self.spacing, self.device = grid, grid.spacing[0], device
        self.given: tuple[torch.Tensor, list[float], float] | None = None
        self.extent_mm = [(n - 1) * self.spacing for n in grid.shape]  # z, y, x
        self.layers: list[tuple[torch.Tensor, float]] = []

    def new_control(self, control_mm: float) -> torch.Tensor:
        """(1, 3, knots z, y, x) zeros, to be optimised and added with `add`."""
        knots = [int(np.ceil(extent / control_mm)) + 3 for extent in self.extent_mm]
        return torch.zeros((1, 3, *knots), device=self.device)

    def begin_with(self, start: Predicted) -> None:
        """A velocity on a lattice of its own along the same axes."""
        first = (np.asarray(start.grid.origin) - np.asarray(self.grid.origin)) @ self.grid.axes  # x, y, z, mm
        self.put(start.velocity_mm.to(self.device), first[::-1].tolist(), start.grid.spacing[0])

    def put(self, velocity_mm: torch.Tensor, first_mm: list[float], spacing: float) -> None:
        """In place of a former one: linear between its nodes, zero beyond them. first_mm: z, y, x of the first node."""
        self.given = (velocity_mm, first_mm, spacing)

    def add(self, control: torch.Tensor, control_mm: float) -> None:
        self.layers.append((control, control_mm))

    def bases(self, positions: list[torch.Tensor], control_mm: float) -> list[torch.Tensor]:
        """For each axis (nodes, knots): cubic B-spline weights, faded to zero at the grid's faces."""
        result = []
        for position, extent in zip(positions, self.extent_mm, strict=True):
            knots = int(np.ceil(extent / control_mm)) + 3
            distance = (position[:, None] / control_mm - (torch.arange(knots, device=self.device) - 1)[None]).abs()
            near = 2 / 3 - distance**2 + distance**3 / 2
            far = (2 - distance).clamp(min=0) ** 3 / 6
            result.append(_fade(position, extent)[:, None] * torch.where(distance < 1, near, far))
        return result

    def on(self, positions: list[torch.Tensor]) -> torch.Tensor:
        """(1, 3, z, y, x) mm on the lattice with these node positions (mm from the grid's first voxel centre)."""
        total = torch.zeros((1, 3, *(len(p) for p in positions)), device=self.device)
        for control, control_mm in self.layers:
            total = total + _separable(control, self.bases(positions, control_mm))
        if self.given is not None:
            values, first, spacing = self.given
            matrices = []
            for axis, (position, extent) in enumerate(zip(positions, self.extent_mm, strict=True)):
                nodes = first[axis] + spacing * torch.arange(values.shape[2 + axis], device=self.device)
                hats = (1 - (position[:, None] - nodes[None]).abs() / spacing).clamp(min=0)
                matrices.append(_fade(position, extent)[:, None] * hats)
            total = total + _separable(values, matrices)
        return total


def _fade(position: torch.Tensor, extent: float) -> torch.Tensor:
    """1 inside the working grid, falling to 0 at its faces. position: mm from the first voxel centre."""
    depth = torch.minimum(position, extent - position) / min(_FADE_MM, max(extent / 2, 1e-3))
    return 0.5 - 0.5 * torch.cos(torch.pi * depth.clamp(0, 1))


def _separable(values: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    """(1, c, k, j, i) with one (new, old) matrix for each of z, y, x -> (1, c, z, y, x)."""
    values = torch.einsum("bckji,xi->bckjx", values, matrices[2])
    values = torch.einsum("bckjx,yj->bckyx", values, matrices[1])
    return torch.einsum("bckyx,zk->bczyx", values, matrices[0])


class _Problem:
    """Everything that stays the same during one refinement, on the working grid."""

    def __init__(
        self, fixed: Scan, moving: Scan, alignment: Affine, settings: RefinementSettings, device: torch.device
    ) -> None:
        self.settings, self.device = settings, device
        self.grid = working_grid(fixed, moving, alignment, 2 * max(level.pooling for level in settings.levels))
        self.spacing = self.grid.spacing[0]

        def from_fixed(array: np.ndarray, outside: float | None = 0.0) -> torch.Tensor:
            return resample_affine(tensor(array, device), fixed.grid, self.grid, Affine.identity(), outside=outside)

        def from_moving(array: np.ndarray, outside: float | None = 0.0) -> torch.Tensor:
            return resample_affine(tensor(array, device), moving.grid, self.grid, alignment, outside=outside)

        mind = {"dilation": settings.mind_dilation, "radius": settings.mind_radius}
        fixed_value = from_fixed(fixed.value, None)
        self.fixed_features = mind_ssc(fixed_value, **mind)
        self.moving_features = mind_ssc(from_moving(moving.value, None), **mind)
        self.body = from_fixed(fixed.body)
        self.fixed_weight = erode((from_fixed(fixed.inside) > 0.99).float(), 1) * (0.1 + 0.9 * self.body)

        distance = from_moving(moving.liver_distance_mm, None)
        self.liver = torch.sigmoid(-distance / 2.0)
        self.near_liver = (distance < settings.liver_region_mm + 15.0).float()
        self.region = torch.sigmoid((settings.liver_region_mm - distance) / 4.0)
        valid = erode((from_moving(moving.inside) > 0.99).float(), 2)
        self.moving_weight = valid * (settings.outside_liver + (1 - settings.outside_liver) * self.region)
        self.stiffness = 1 + settings.liver_stiffness * torch.sigmoid((3.0 - distance) / 2.0)
        self.lesion = torch.zeros_like(distance)
        if moving.lesion_distance_mm is not None:
            lesion = from_moving(moving.lesion_distance_mm, None)
            self.moving_weight = self.moving_weight * torch.sigmoid((lesion - settings.lesion_rim_mm) / 0.7)
            self.lesion = torch.sigmoid((settings.lesion_stiff_rim_mm - lesion) / 0.7)
            self.stiffness = self.stiffness * (1 + settings.lesion_stiffness * self.lesion)

        # What is known of the livers: their surfaces, and what cannot be liver.
        self.liver_known = valid * from_moving(surface_known(moving).astype(np.float32))
        self.surface = None
        if fixed.liver_distance_mm is not None:
            self.surface = (from_fixed(fixed.liver_distance_mm, None), distance)
            self.surface_known = from_fixed(surface_known(fixed).astype(np.float32))
        self.standing_out = None
        found = [standing_out(scan) for scan in (fixed, moving)] if settings.vessels else []
        if found and all(image is not None for image in found):
            put = zip((from_fixed, from_moving), found, strict=True)
            self.standing_out = [torch.cat([onto(side) for side in image], 1) for onto, image in put]
        self.unlike = unlike_liver(fixed_value, (distance < -8.0) & (self.moving_weight > 0.9), settings.liver_pull)

    def _lattice(self, pool: int) -> list[torch.Tensor]:
        """Node positions z, y, x of the grid pooled by so much, mm from its first voxel centre."""
        return [
            (torch.arange(n // pool, device=self.device) + 0.5) * pool * self.spacing - 0.5 * self.spacing
            for n in self.grid.shape
        ]

    @torch.no_grad()
    def compare_vessels(self, velocity: _Velocity) -> float | None:
        """Let the liver's vessels count among the features, where the images, moved so far, show the same ones.

        Returns their correlation; None where they do not.
        """
        if self.standing_out is None:
            return None
        pool = max(1, round(_VESSELS_MM / self.spacing))
        fixed, moving = (F.avg_pool3d(image, pool) for image in self.standing_out)
        if velocity.given is not None:
            start, to_compared = self._start(velocity, pool)
            moving = warp(moving, _separable(2 * start, to_compared))
        sides = agreeing_sides(fixed, moving, pool * self.spacing)
        if sides is None:
            return None
        of_fixed, of_moving, agreement = sides
        weight = self.settings.vessels * agreement
        fixed, moving = self.standing_out
        self.fixed_features = _joined(self.fixed_features, fixed[:, of_fixed : of_fixed + 1], weight)
        self.moving_features = _joined(self.moving_features, moving[:, of_moving : of_moving + 1], weight)
        return agreement

    def _start(self, velocity: _Velocity, pool: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The displacement so far on the lattice pooled by 2 * pool, in its voxels; matrices from there to `pool`."""
        carried = self._lattice(2 * pool)
        displacement = integrate(velocity.on(carried) / (2 * pool * self.spacing), steps=_INTEGRATION_STEPS)
        return displacement, [_linear_matrix(c, a) for c, a in zip(carried, self._lattice(pool), strict=True)]

    @torch.no_grad()
    def search(self, velocity: _Velocity) -> None:
        """Put a velocity in the place of what is given that also holds the shifts the images ask for.

        First over all of search_mm in coarse steps, then in fine ones round what that found.
        """
        predicted, pool = velocity.given is not None, self.settings.levels[0].pooling
        for step in (2 * pool, pool):
            reach = self.settings.search_mm if step > pool else min(self.settings.search_mm, _FINE_SEARCH_MM)
            self._search(velocity, step, round(reach / (step * self.spacing)), keep_liver=predicted)

    def _search(self, velocity: _Velocity, pool: int, reach: int, *, keep_liver: bool) -> None:
        """Shifts of up to `reach` voxels of the lattice pooled by so much, told apart on the one that carries v."""
        if reach == 0:
            return
        carrying = 2 * self.settings.levels[0].pooling
        block, step = carrying // pool, carrying * self.spacing
        carried = self._lattice(carrying)
        known = velocity.on(carried) / step
        start = integrate(known, steps=_INTEGRATION_STEPS)
        images = F.avg_pool3d(torch.cat((self.moving_features, self.moving_weight), 1), pool)
        if velocity.given is not None:
            to_compared = [_linear_matrix(c, a) for c, a in zip(carried, self._lattice(pool), strict=True)]
            images = warp(images, _separable(block * start, to_compared))
        weight = F.avg_pool3d(self.fixed_weight, pool)
        # Only where there is something to compare, in whole blocks; beyond it the field goes on as at its border.
        box = _even_box(weight[0, 0] > 0.05)
        channels = self.fixed_features.shape[1]
        part = (slice(None), slice(None), *box)
        wide = (slice(None), slice(None), *(slice(span.start, span.stop + 2 * reach) for span in box))
        costs, shifts = shift_costs(
            F.avg_pool3d(self.fixed_features, pool)[part],
            F.pad(images[:, :channels], (reach,) * 6, mode="replicate")[wide],
            weight[part],
            F.pad(images[:, channels:], (reach,) * 6)[wide],
            reach,
            block=block,
        )
        border = [side for span, n in zip(box[::-1], weight.shape[:1:-1], strict=True)
                  for side in (span.start // block, (n - span.stop) // block)]  # fmt: skip
        found = F.pad(smooth_shifts(costs, shifts, 2 / block), border, mode="replicate")
        found = compose(start, found / block)
        if keep_liver:
            # What was predicted for the liver is better than what the search, which knows no stiffness, finds there.
            near = F.avg_pool3d(F.pad(F.avg_pool3d(self.region, carrying), (1,) * 6, mode="replicate"), 3, stride=1)
            found = found + warp(near, start) * (start - found)
        # The search knows nothing of stiffness: in a lesion, what lies around it takes its place.
        lesion = warp(F.avg_pool3d(self.lesion, carrying), found).clamp(max=0.5) / 0.5
        for _ in range(_LESION_ROUNDS):
            around = F.avg_pool3d(F.pad(found, (1,) * 6, mode="replicate"), 3, stride=1)
            found = found + lesion * (around - found)
        first = [float(position[0]) for position in carried]
        velocity.put(as_velocity(found, known) * step, first, step)

    def optimise(self, velocity: _Velocity, level: Level, report: Callable[[int], None]) -> None:
        """Add a layer of B-splines to the velocity."""
        s, pool = self.settings, level.pooling
        compared, carried = self._lattice(pool), self._lattice(2 * pool)
        spacing = 2 * pool * self.spacing  # of the lattice that carries the velocity
        to_compared = [_linear_matrix(c, a) for c, a in zip(carried, compared, strict=True)]

        data = _Comparison(self, pool, level.every)
        stiffness, liver = (F.avg_pool3d(image, 2 * pool) for image in (self.stiffness, self.liver))
        base, bases = velocity.on(carried), velocity.bases(carried, level.control_mm)
        control = velocity.new_control(level.control_mm).requires_grad_(True)
        optimiser = _Adam(control)
        for step in range(level.steps):
            v = base + _separable(control, bases)
            displacement = integrate(v / spacing, steps=_INTEGRATION_STEPS) * spacing  # mm
            with torch.no_grad():
                stiff, organ = (warp(image, displacement / spacing) for image in (stiffness, liver))
            loss, weight = data(_separable(displacement, to_compared))
            # The sums run over fewer, larger voxels than the comparison.
            loss = loss + 8 * _roughness(v, spacing, stiff, s.gradient, s.bending)
            loss = loss + 8 * s.incompressibility * _divergence(v, spacing, organ)
            # The rate falls over the second half, so that the last steps settle.
            rate = s.learning_rate_mm * min(1.0, 2.0 * (1 - step / level.steps) + 0.1)
            optimiser.step(loss / weight.clamp(min=1.0), rate)
            report(step + 1)
        velocity.add(control.detach(), level.control_mm)

    @torch.no_grad()
    def diffeomorphic(self, velocity: _Velocity, floor: float = 0.05) -> tuple[torch.Tensor, float]:
        """Displacement in voxels whose Jacobian determinant is positive everywhere inside the body, and its minimum.

        exp(v) of a smooth v is invertible; its sampled form can still fold where v is steep, so v is smoothed round
        such places until the smallest determinant exceeds the floor.
        """
        v = velocity.on([torch.arange(n, device=self.device) * self.spacing for n in self.grid.shape])
        for _ in range(12):
            largest = float(v.abs().max()) / self.spacing
            steps = max(2, int(np.ceil(np.log2(max(largest, 1e-6) / _STEP_VOXELS))))
            displacement = integrate(v / self.spacing, steps=steps)
            determinant = jacobian_determinant(displacement)[0]
            smallest = float(determinant[self.body[0, 0] > 0.5].min())
            if smallest > floor:
                break
            place = (determinant < 2 * floor).nonzero()
            low, high = place.amin(0) - 8, place.amax(0) + 9
            box = tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))
            steep = F.max_pool3d((determinant[box] < 2 * floor).float()[None, None], 9, stride=1, padding=4)
            part = v[(..., *box)]
            smooth = F.avg_pool3d(F.pad(part, (2,) * 6, mode="replicate"), 5, stride=1)
            v[(..., *box)] = part + F.avg_pool3d(steep, 5, stride=1, padding=2) * (smooth - part)
        return displacement, smallest


class _Comparison:
    """The terms that look at the images, at the points of a pooled lattice that matter."""

    def __init__(self, problem: _Problem, pool: int, every: int) -> None:
        def pooled(image: torch.Tensor) -> torch.Tensor:
            return F.avg_pool3d(image, pool) if pool > 1 else image

        self.settings = problem.settings
        self.spacing = pool * problem.spacing
        weight, near = pooled(problem.fixed_weight), pooled(problem.near_liver) > 0
        z, y, x = torch.meshgrid(*(torch.arange(n, device=problem.device) for n in weight.shape[2:]), indexing="ij")
        place = z + 3 * y + 5 * x
        taken = torch.where(near[0, 0], place % every == 0, place % (every * _SPARSE) == 0)
        self.points = ((weight[0, 0] > 0.05) & taken).reshape(-1).nonzero()[:, 0]
        self.start = torch.stack((x, y, z)).reshape(3, -1)[:, self.points].float()
        multiplicity = every * torch.where(near.reshape(-1)[self.points], 1.0, float(_SPARSE))
        self.fixed_weight = self._at_points(weight)[0] * multiplicity
        self.fixed_features = self._at_points(pooled(problem.fixed_features)).t().contiguous()
        self.unlike = self._at_points(pooled(problem.unlike))[0] * multiplicity
        channels = [problem.moving_features, problem.moving_weight, problem.liver_known, problem.liver]
        self.surface = None
        if problem.surface is not None:
            known, moving = problem.surface
            self.surface = self._at_points(pooled(known))[0]
            self.surface_weight = self.fixed_weight * self._at_points(pooled(problem.surface_known))[0]
            channels.append(moving)
        self.moving = Sampler(pooled(torch.cat(channels, 1)))

    def _at_points(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(image.shape[1], -1)[:, self.points]

    def __call__(self, displacement_mm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """displacement on the pooled lattice -> summed cost, summed weight."""
        s = self.settings
        place = self.start + self._at_points(displacement_mm) / self.spacing
        features, others = self.moving(place).tensor_split([self.fixed_features.shape[1]], dim=1)
        others = others.unbind(1)
        weight = self.fixed_weight * others[0].detach()
        difference = (features - self.fixed_features).square().mean(1)
        # Where an image ends, nothing is known of its liver.
        known = others[1].detach()
        cost = (weight * difference).sum() + s.liver_tissue * (known * self.unlike * others[2]).sum()
        if self.surface is not None:
            band = known * ((self.surface.abs() < 12) | (others[3].detach().abs() < 12))
            gap = F.smooth_l1_loss(others[3] / 5, self.surface / 5, reduction="none", beta=0.5)
            cost = cost + s.liver_distance * (band * self.surface_weight * gap).sum()
        return cost, weight.sum()


class _Adam:
    """Kingma and Ba 2015, for one tensor. torch.optim pulls in torch's compiler: seconds that a clinician waits."""

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
def _joined(mind: torch.Tensor, vessels: torch.Tensor, weight: float) -> torch.Tensor:
    """MIND and the vessels, scaled so that the mean over channels is MIND's own plus `weight` times the vessels'."""
    channels = mind.shape[1] + 1
    return torch.cat((mind * (channels / mind.shape[1]) ** 0.5, vessels * (weight * channels) ** 0.5), 1)


def _even_box(mask: torch.Tensor) -> tuple[slice, slice, slice]:
    """The box (z, y, x) round what is set, its ends even numbers; everything where nothing is set."""
    spans = []
    for axis in range(3):
        hit = mask.any(dim=(axis + 1) % 3, keepdim=True).any(dim=(axis + 2) % 3, keepdim=True).flatten().nonzero()
        low, high = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, mask.shape[axis])
        spans.append(slice(low // 2 * 2, min(-(-high // 2) * 2, mask.shape[axis])))
    return tuple(spans)


def _linear_matrix(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(new, old) weights of linear interpolation between evenly spaced positions, continued beyond the ends."""
    step = float(old[1] - old[0]) if len(old) > 1 else 1.0
    index = ((new - old[0]) / step).clamp(0, len(old) - 1)
    return (1 - (index[:, None] - torch.arange(len(old), device=old.device)[None]).abs()).clamp(min=0)


def _roughness(
    velocity: torch.Tensor, spacing: float, weight: torch.Tensor, gradient: float, bending: float
) -> torch.Tensor:
    """Weighted sums of |grad v|^2 (mm/mm) and of the squared second derivatives, times 10 mm squared (unit free)."""
    total = velocity.new_zeros(())
    for axis in (2, 3, 4):
        first = torch.diff(velocity, dim=axis) / spacing
        local = weight.narrow(axis, 0, weight.shape[axis] - 1)
        total = total + gradient * (local * first.square()).sum()
        for other in range(axis, 5):
            second = torch.diff(first, dim=other) / spacing
            place = local.narrow(other, 0, second.shape[other])
            factor = 1.0 if other == axis else 2.0
            total = total + bending * factor * 100.0 * (place * second.square()).sum()
    return total


def _divergence(velocity: torch.Tensor, spacing: float, weight: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the squared divergence: the rate at which volume changes."""
    z, y, x = (n - 1 for n in velocity.shape[2:])
    core = velocity[:, :, :z, :y, :x]
    along_x = velocity[:, 0, :z, :y, 1:] - core[:, 0]
    along_y = velocity[:, 1, :z, 1:, :x] - core[:, 1]
    along_z = velocity[:, 2, 1:, :y, :x] - core[:, 2]
    return (weight[:, 0, :z, :y, :x] * ((along_x + along_y + along_z) / spacing).square()).sum()


@dataclass(frozen=True)
class Composed:
    """alignment o deformation, fixed -> moving, point by point; `combine` samples it on a grid."""

    alignment: Affine
    deformation: DisplacementField

    def transform_points(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) fixed -> (..., 3) moving, LPS mm."""
        return self.alignment.transform_points(self.deformation.transform_points(points_mm))

    @property
    def best_affine(self) -> Affine:
        return self.alignment.after(self.deformation.best_affine)


def combine(alignment: Affine, refinement: DisplacementField | None, grid: Grid) -> DisplacementField:
    """alignment o refinement, sampled on a grid (float64): the whole transform, fixed -> moving."""
    if refinement is None:
        return DisplacementField.of(alignment, grid)
    displacement = np.empty((*grid.shape, 3))
    moved_by = np.moveaxis(refinement.displacement_mm, -1, 0)
    field = torch.from_numpy(np.ascontiguousarray(moved_by, dtype=np.float32))[None]
    for z in range(0, grid.shape[0], 16):
        rows = slice(z, min(z + 16, grid.shape[0]))
        points = grid.crop((0, 0, z), (*grid.size[:2], rows.stop - z)).points()
        index = torch.from_numpy(np.moveaxis(refinement.grid.world_to_index(points), -1, 0).astype(np.float32))[None]
        moved = np.moveaxis(sample(field, index, padding="zeros")[0].numpy(), 0, -1).astype(np.float64)
        displacement[rows] = alignment.transform_points(points + moved) - points
    return DisplacementField(grid, displacement)
