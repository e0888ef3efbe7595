"""A coarse search over whole displacements, before the descent: it finds what no gradient points to.

Every place of a coarse lattice is compared with all shifts within reach; the smooth field that fits these costs best
is found by turns of "best shift near the field" and "smooth the field", with a coupling that tightens (Heinrich,
Papiez, Schnabel, Handels, "Non-parametric discrete registration with convex optimisation", WBIR 2014; Siebert, Hansen,
Heinrich, ConvexAdam, 2021). The field becomes a stationary velocity, so that what comes after stays diffeomorphic.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from ..deformation import integrate

# Squared distance (steps) between a shift and the smooth field, weighed against the cost: ever more of it.
_COUPLINGS = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3, 2e-2)
_TEMPERATURE = 0.001  # of the costs: shifts that differ by less share the place
_UNDECIDED = 0.01  # a best shift that costs so much less than the mean counts half
# Of what a shift moves out of the moving image or into a lesion: about the cost of a true match between MRI and CT.
_COST_OUTSIDE = 0.05


def shift_costs(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    fixed_weight: torch.Tensor,
    moving_weight: torch.Tensor,
    reach: int,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted squared difference of features in each block, for every shift of up to `reach` voxels an axis.

    fixed: (1, c, z, y, x); moving: the same place with `reach` voxels more at each face; weights (1, 1, z, y, x)
    likewise. The means over a block are not divided by its weight: what weighs more has more to say.
    Returns costs (shifts, z, y, x) on the grid of blocks and the shifts (shifts, 3) in voxels, ordered z, y, x.
    """
    size = fixed.shape[2:]
    shifts = list(product(range(-reach, reach + 1), repeat=3))
    everywhere = F.avg_pool3d(fixed_weight, block)[0, 0]
    costs = torch.empty((len(shifts), *everywhere.shape), device=fixed.device)
    for number, shift in enumerate(shifts):
        part = (slice(None), slice(None), *(slice(reach + s, reach + s + n) for s, n in zip(shift, size, strict=True)))
        weight = fixed_weight * moving_weight[part]
        difference = (moving[part] - fixed).square_().mean(1, keepdim=True)
        seen = F.avg_pool3d(weight, block)[0, 0]
        costs[number] = F.avg_pool3d(difference.mul_(weight), block)[0, 0]
        costs[number] += _COST_OUTSIDE * (everywhere - seen).clamp_(min=0)
    return costs, torch.tensor(shifts, dtype=torch.float32, device=fixed.device)


def smooth_shifts(costs: torch.Tensor, shifts: torch.Tensor, step: float = 1.0) -> torch.Tensor:
    """(1, 3, z, y, x), x y z, in the unit of `shifts`: the smooth field that `shift_costs` ask for.

    step: that unit, where 1 is the one that the couplings were chosen for; longer steps couple more tightly.
    """
    shape, costs = costs.shape[1:], costs.flatten(1)
    # Where all shifts cost alike nothing is known: such a place listens to its neighbours and has no say.
    decided = costs.mean(0) - costs.amin(0)
    decided = (decided / (decided + _UNDECIDED) + 1e-3).reshape(1, 1, *shape)

    def mean_around(field: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(F.pad(field, (1,) * 6, mode="replicate"), 3, stride=1)

    def smoothed(costs: torch.Tensor) -> torch.Tensor:
        # The mean shift, not the best: nothing jumps when two are nearly alike.
        field = (shifts.T @ (-costs / _TEMPERATURE).softmax(0)).reshape(1, 3, *shape)
        return mean_around(decided * field) / mean_around(decided)

    field = smoothed(costs)
    squares = shifts.square().sum(1, keepdim=True)
    for coupling in _COUPLINGS:
        place = field.reshape(3, -1)
        # |shift - place|^2 but for |place|^2, which is the same for all shifts.
        field = smoothed(costs + step**2 * coupling * (squares - 2 * shifts @ place))
    return field.flip(1)


def as_velocity(displacement: torch.Tensor, start: torch.Tensor, rounds: int = 6) -> torch.Tensor:
    """v with exp(v) close to a smooth displacement, by fixed-point steps from `start`; all (1, 3, z, y, x), voxels."""
    velocity = start
    for _ in range(rounds):
        velocity = velocity + 0.7 * (displacement - integrate(velocity, steps=5))
    return velocity
