"""Transforms against SimpleITK and against deformations that are known in closed form."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from weaktumour import deformation
from weaktumour.deformation import Affine, DisplacementField
from weaktumour.errors import InputError
from weaktumour.volumes import Grid

AFFINE = Affine(np.array([[1.02, 0.10, 0.0, 5.0], [-0.1, 0.98, 0.05, -7.0], [0.0, 0.0, 1.1, 3.0], [0, 0, 0, 1.0]]))


def oblique_grid(size=(30, 28, 26), spacing=(2.5, 2.4, 2.7)) -> Grid:
    rotation = sitk.Euler3DTransform((0, 0, 0), 0.4, -0.3, 0.5).GetMatrix()
    return Grid(size, spacing, (-30.0, 12.0, 5.0), rotation)


def bump(points: np.ndarray, centre: np.ndarray, height_mm: float = 6.0, width_mm: float = 20.0) -> np.ndarray:
    """A smooth displacement (n, 3) that points along (1, -0.5, 0.3)."""
    squared = ((points - centre) ** 2).sum(-1, keepdims=True)
    return height_mm * np.exp(-squared / (2 * width_mm**2)) * np.array([1.0, -0.5, 0.3])


@pytest.fixture(scope="module")
def field() -> DisplacementField:
    grid = oblique_grid()
    points = grid.points()
    centre = grid.corners().mean(0)
    return DisplacementField(grid, AFFINE.transform_points(points) + bump(points, centre) - points)


def inner_points(grid: Grid, count: int = 400, seed: int = 1) -> np.ndarray:
    return grid.index_to_world(np.random.default_rng(seed).uniform(2, np.asarray(grid.size) - 3, (count, 3)))


def test_points_agree_with_simpleitk(field):
    points = inner_points(field.grid)
    referee = np.array([field.to_sitk().TransformPoint(tuple(p)) for p in points])
    assert np.abs(field.transform_points(points) - referee).max() < 1e-6


def test_file_round_trip_keeps_every_value(field, tmp_path):
    field.write(tmp_path / "transform.h5")
    again = DisplacementField.read(tmp_path / "transform.h5")
    assert again.grid.same_as(field.grid)
    assert np.array_equal(again.displacement_mm, field.displacement_mm)


def test_inverse_undoes(field):
    points = inner_points(field.grid)
    assert np.abs(field.inverse_points(field.transform_points(points), tolerance_mm=1e-5) - points).max() < 1e-3


def test_inverse_field_undoes(field):
    moving_grid = Grid.around(field.transform_points(field.grid.corners()), 2.0)
    inverse = field.inverse(moving_grid)
    points = inner_points(field.grid)
    assert np.abs(inverse.transform_points(field.transform_points(points)) - points).max() < 0.1


def test_composition_applies_the_first_first(field):
    composed = field.after(AFFINE, oblique_grid((8, 8, 8), (2.0, 2.0, 2.0)))
    centres = composed.grid.points().reshape(-1, 3)
    expected = field.transform_points(AFFINE.transform_points(centres))
    assert np.abs(composed.transform_points(centres) - expected).max() < 1e-9


def test_jacobian_of_an_affine_is_its_determinant():
    grid = oblique_grid()
    determinant = DisplacementField.of(AFFINE, grid).jacobian_determinant()
    assert np.allclose(determinant, np.linalg.det(AFFINE.matrix[:3, :3]), atol=1e-5)


def test_jacobian_agrees_with_itk_on_an_axis_aligned_grid():
    grid = Grid((30, 28, 26), (2.5, 2.4, 2.7), (-30.0, 12.0, 5.0))
    points = grid.points()
    field = DisplacementField(grid, bump(points, grid.corners().mean(0)))
    image = sitk.GetImageFromArray(field.displacement_mm, isVector=True)
    referee = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(grid.apply_to(image), True))
    inner = (slice(2, -2),) * 3
    assert np.abs(field.jacobian_determinant()[inner] - referee[inner]).max() < 1e-4


def test_best_affine_recovers_an_affine():
    found = DisplacementField.of(AFFINE, oblique_grid()).best_affine
    assert np.allclose(found.matrix, AFFINE.matrix, atol=1e-8)


def test_velocity_integration_is_invertible_and_matches_a_rotation():
    # The flow of v(x) = W x for skew W is the rotation exp(W): scaling and squaring must find it.
    shape, angle = (33, 33, 33), 0.3
    coordinates = deformation.identity_coordinates(shape) - 16
    velocity = torch.zeros((1, 3, *shape))
    velocity[:, 0], velocity[:, 1] = -angle * coordinates[:, 1], angle * coordinates[:, 0]
    moved = deformation.integrate(velocity, steps=7) + coordinates
    x, y = coordinates[:, 0], coordinates[:, 1]
    expected = torch.stack((np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y), 1)
    inner = (slice(None), slice(None), slice(8, 25), slice(8, 25), slice(8, 25))
    assert (moved[:, :2][inner] - expected[inner]).abs().max() < 0.02
    there_and_back = deformation.compose(deformation.integrate(velocity), deformation.integrate(-velocity))
    assert there_and_back[inner].abs().max() < 0.05


@pytest.mark.parametrize("shape", [(5, 9, 7), (1, 6, 8), (6, 1, 1)])
def test_the_sampler_is_sample_with_its_gradient(shape, monkeypatch):
    """More points than one chunk, some beyond the image, where nothing depends on them."""
    monkeypatch.setattr(deformation, "_CHUNK_ROWS", 64)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((1, 4, *shape), generator=generator)
    size = torch.tensor(shape[::-1])[:, None]
    points = ((size + 3) * torch.rand((3, 500), generator=generator) - 2).requires_grad_()
    slope = torch.rand((500, 4), generator=generator)
    expected = deformation.sample(image, points[None, :, None, None])[0, :, 0, 0].t()
    sampler = deformation.Sampler(image)
    found = sampler(points)
    sampler._image, sampler._rows = image, None  # as on a GPU
    assert torch.equal(sampler(points), expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad((values * slope).sum(), points)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=0)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.parametrize("shape", [(5, 7, 9), (1, 6, 5), (8, 3, 2)])
def test_sample_does_not_depend_on_the_number_of_threads(shape):
    torch.manual_seed(0)
    image = torch.randn(1, 4, 6, 5, 7)
    coordinates = torch.rand(1, 3, *shape) * 6 - 0.5
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(deformation.sample(image, coordinates))
    finally:
        torch.set_num_threads(before)
    assert results[0].shape == (1, 4, *shape)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_torch_jacobian_agrees_with_the_world_one():
    grid = Grid((20, 22, 24), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    world = bump(grid.points(), grid.corners().mean(0))
    voxels = torch.from_numpy(np.moveaxis(world / 3.0, -1, 0))[None]
    ours = deformation.jacobian_determinant(voxels)[0].numpy()
    assert np.abs(ours - DisplacementField(grid, world).jacobian_determinant()).max() < 1e-5


class TestInitialTransform:
    def test_reads_any_linear_transform(self, tmp_path):
        rigid = sitk.Euler3DTransform((10.0, 20.0, 30.0), 0.1, 0.2, 0.3, (1.0, 2.0, 3.0))
        sitk.WriteTransform(rigid, str(tmp_path / "t.tfm"))
        point = (7.0, -3.0, 11.0)
        assert np.allclose(Affine.read(tmp_path / "t.tfm").transform_points(point), rigid.TransformPoint(point))

    def test_refuses_what_it_cannot_use(self, tmp_path, field):
        field.write(tmp_path / "warp.h5")
        sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
        sitk.WriteTransform(sitk.ScaleTransform(3, (-1.0, 1.0, 1.0)), str(tmp_path / "mirror.tfm"))
        (tmp_path / "text.tfm").write_text("no transform")
        for name, words in {
            "warp.h5": "not linear",
            "flat.tfm": "not three-dimensional",
            "mirror.tfm": "mirrors",
            "text.tfm": "not an ITK transform",
            "none.tfm": "does not exist",
        }.items():
            with pytest.raises(InputError, match=words):
                Affine.read(tmp_path / name)
