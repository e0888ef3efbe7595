"""The search over whole shifts that comes before the refinement's descent."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weaktumour.deformation import Affine, compose, integrate, jacobian_determinant, warp
from weaktumour.progress import Monitor
from weaktumour.registration.preparation import Scan
from weaktumour.registration.refinement import Level, RefinementSettings, _Problem, refine
from weaktumour.registration.search import as_velocity, shift_costs, smooth_shifts
from weaktumour.volumes import Grid

CPU = torch.device("cpu")
SHAPE = (40, 44, 48)


def texture(shape, period=4.0, channels=1, seed=0):
    """(1, channels, z, y, x) smooth noise of unit deviation."""
    coarse = torch.randn((1, channels, *(round(n / period) + 2 for n in shape)), generator=torch.manual_seed(seed))
    return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)


def bend(amplitude_voxels):
    """(1, 3, z, y, x): a smooth motion along z that is largest in the middle and zero at the faces."""
    ramps = [torch.sin(torch.linspace(0, torch.pi, n)) for n in SHAPE]
    shape = ramps[0][:, None, None] * ramps[1][None, :, None] * ramps[2][None, None, :]
    motion = torch.zeros(1, 3, *SHAPE)
    motion[:, 2] = amplitude_voxels * shape
    return motion


def found_between(fixed, moving, reach=4, fixed_weight=None, moving_weight=None):
    ones = torch.ones(1, 1, *fixed.shape[2:])
    fixed_weight, moving_weight = (ones if weight is None else weight for weight in (fixed_weight, moving_weight))
    moving, moving_weight = F.pad(moving, (reach,) * 6, mode="replicate"), F.pad(moving_weight, (reach,) * 6)
    return smooth_shifts(*shift_costs(fixed, moving, fixed_weight, moving_weight, reach, block=2))


def test_a_shift_is_found_whole():
    wide = 0.2 * texture([n + 8 for n in SHAPE], channels=4)
    fixed = wide[:, :, 4:-4, 4:-4, 4:-4]
    moving = wide[:, :, 2:-6, 5:-3, 1:-7]  # moving[i + (2, -1, 3)] = fixed[i], z y x
    found = found_between(fixed, moving)
    inner = found[..., 4:-4, 4:-4, 4:-4].flatten(2)[0]
    assert torch.allclose(inner.median(1).values, torch.tensor([3.0, -1.0, 2.0]), atol=0.1)
    assert float((inner - torch.tensor([[3.0], [-1.0], [2.0]])).abs().max()) < 0.5


def test_a_bend_beyond_the_reach_of_gradients():
    """Twice the texture's grain."""
    motion = bend(4.0)
    moving = 0.2 * texture(SHAPE, 2.5, channels=6)
    fixed = warp(moving, motion)
    found = F.interpolate(found_between(fixed, moving, reach=5), size=SHAPE, mode="trilinear", align_corners=False)
    error = (found - motion).norm(dim=1)
    assert float(error.median()) < 0.5
    assert float(error.quantile(0.95)) < 1.5


def test_what_is_not_compared_follows_its_surroundings():
    """A part of the fixed image is of no weight and full of nonsense."""
    moving = 0.2 * texture(SHAPE, channels=4)
    fixed = torch.roll(moving, (0, 2, 0), (2, 3, 4))  # moving[y - 2] = fixed[y]
    weight = torch.ones(1, 1, *SHAPE)
    hole = (slice(None), slice(None), slice(14, 26), slice(14, 26), slice(14, 26))
    weight[hole] = 0
    fixed[hole] = 5.0
    found = found_between(fixed, moving, fixed_weight=weight)
    assert float(found[0, 1, 8:12, 8:12, 8:12].mean()) == pytest.approx(-2.0, abs=0.4)


def test_nothing_to_see_moves_nothing():
    flat = torch.zeros(1, 3, *SHAPE)
    # Away from the faces, where a shift leads out of the image.
    assert float(found_between(flat, flat)[..., 6:-6, 6:-6, 6:-6].abs().max()) < 1e-2


def test_a_displacement_as_a_velocity():
    known = bend(3.0)
    displacement = compose(known, 0.5 * known.flip(1))
    velocity = as_velocity(displacement, displacement)
    assert float((integrate(velocity, steps=5) - displacement).abs().max()) < 0.1
    assert float(jacobian_determinant(integrate(velocity, steps=5)).min()) > 0
    same = as_velocity(integrate(known, steps=5), known)
    assert torch.allclose(same, known, atol=1e-5)


def scan(value: np.ndarray, liver: float | None = None, lesion: np.ndarray | None = None) -> Scan:
    """Nothing but tissue; liver: distance to its surface, everywhere the same."""
    grid = Grid(value.shape[::-1], (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    everywhere = np.ones(value.shape, dtype=np.float32)
    distance = None if liver is None else liver * everywhere
    return Scan(grid, value.astype(np.float32), everywhere, everywhere, distance, lesion)


@pytest.fixture(scope="module")
def bent() -> tuple[Scan, Scan, np.ndarray]:
    """CT, MRI and the motion between them in mm: 15 mm at most, through a texture of 9 mm; a lesion in the middle."""
    motion = bend(5.0)
    moving = 0.5 + 0.15 * texture(SHAPE, 3.0)
    fixed = warp(moving, motion)
    z, y, x = np.indices(SHAPE) - np.array([20, 22, 24]).reshape(3, 1, 1, 1)
    lesion = (3.0 * np.sqrt(z**2 + y**2 + x**2) - 9.0).astype(np.float32)
    return (
        scan(fixed[0, 0].numpy()),
        scan(moving[0, 0].numpy(), -5.0, lesion),
        3 * motion[0].permute(1, 2, 3, 0).numpy(),
    )


def refined_error(bent, steps=12, **settings) -> np.ndarray:
    fixed, moving, motion = bent
    settings = RefinementSettings(
        levels=(Level(2, 16.0, steps),), liver_stiffness=0.0, incompressibility=0.0, **settings
    )
    result = refine(fixed, moving, Affine.identity(), settings, device=CPU, monitor=Monitor())
    points = fixed.grid.points()[6:-6, 6:-6, 6:-6]
    moved = result.field.transform_points(points) - points
    assert result.min_jacobian > 0
    return np.linalg.norm(moved - motion[6:-6, 6:-6, 6:-6], axis=-1)


def test_refinement_needs_it_for_large_motion(bent):
    with_search, without = refined_error(bent), refined_error(bent, search_mm=0)
    assert np.median(with_search) < 0.5 * np.median(without)
    assert np.percentile(with_search, 90) < 6.0


def test_motion_beyond_the_fine_search_is_found_by_the_coarse_one(monkeypatch):
    motion = bend(8.0)  # 24 mm at most; the fine search reaches 15 mm, 12 in whole steps
    moving = 0.5 + 0.15 * texture(SHAPE, 5.0)
    fixed = warp(moving, motion)
    far = scan(fixed[0, 0].numpy()), scan(moving[0, 0].numpy(), -5.0), 3 * motion[0].permute(1, 2, 3, 0).numpy()
    both = refined_error(far, steps=0)
    search = _Problem._search
    monkeypatch.setattr(_Problem, "_search", lambda self, v, pool, reach, **how: (
        search(self, v, pool, reach, **how) if pool == self.settings.levels[0].pooling else None))  # fmt: skip
    fine_alone = refined_error(far, steps=0)
    assert np.percentile(both, 90) < 0.6 * np.percentile(fine_alone, 90)


def test_a_lesion_is_moved_as_a_whole(bent, monkeypatch):
    """The CT shows something else in a lesion's place: the search alone, on a fine lattice, would bend the lesion."""
    fixed, moving, _ = bent
    other = 0.5 + 0.15 * texture(SHAPE, 3.0, seed=1)[0, 0].numpy()
    centre = np.array([72.0, 66.0, 40.0])  # off the middle, where the motion has a gradient
    distance = (np.linalg.norm(moving.grid.points() - centre, axis=-1) - 12.0).astype(np.float32)
    fixed = replace(fixed, value=np.where(distance < 6, other, fixed.value).astype(np.float32))
    moving = replace(moving, lesion_distance_mm=distance)
    settings = RefinementSettings(levels=(Level(1, 16.0, 0),))
    inside = moving.grid.points()[distance < 0]
    spread = []
    for rounds in (4, 0):
        monkeypatch.setattr("weaktumour.registration.refinement._LESION_ROUNDS", rounds)
        field = refine(fixed, moving, Affine.identity(), settings, device=CPU, monitor=Monitor()).field
        place = np.round(field.grid.world_to_index(field.inverse_points(inside))).astype(int)
        x, y, z = place.T
        spread.append(float(np.std(field.jacobian_determinant()[z, y, x])))
    assert spread[0] < 0.6 * spread[1], spread
