"""Random grids through read, resample and write, judged in world coordinates.

The voxels hold a linear function of the world point, f(p) = a . p + b: linear interpolation reproduces it exactly on
any grid, so every resampled voxel is checked against arithmetic that knows nothing of grids. SimpleITK's own reading
of the same file is the second referee.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.volumes import Grid, Volume, read_volume, write_volume

NUMBER = 200
FORMATS = (".nii.gz", ".nrrd", ".mha", ".nii")
_ORDERS = list(itertools.permutations(range(3)))


def random_grid(rng: np.random.Generator, size: tuple[int, int]) -> Grid:
    """Spacing 0.5 to 8 mm, any axis order and flips, oblique in two of three cases, left-handed ones included."""
    axes = np.eye(3)[:, _ORDERS[rng.integers(6)]] * rng.choice([-1.0, 1.0], 3)
    if rng.random() < 2 / 3:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        axes = rotation @ axes
    spacing = np.exp(rng.uniform(np.log(0.5), np.log(8.0), 3))
    return Grid(tuple(rng.integers(*size, 3)), tuple(spacing), tuple(rng.uniform(-400, 400, 3)), tuple(axes.ravel()))


def linear(points: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return points @ slope


@pytest.mark.parametrize("batch", range(4))
def test_random_grids_keep_their_world(tmp_path, batch):
    rng = np.random.default_rng(20240 + batch)
    for number in range(NUMBER // 4):
        grid = random_grid(rng, (4, 14))
        slope = rng.uniform(-1, 1, 3)
        volume = Volume(linear(grid.points(), slope).astype(np.float32), grid)
        where = f"batch {batch}, number {number}: {grid}"

        path = tmp_path / f"volume{number}{FORMATS[number % len(FORMATS)]}"
        write_volume(volume, path)
        read = read_volume(path, "CT")

        assert read.grid.size == grid.size, where
        # NIfTI stores its geometry in float32: 400 mm away that is worth 3e-5 mm, and a direction off by 1e-7.
        assert np.abs(read.grid.corners() - grid.corners()).max() < 1e-3, where
        assert np.array_equal(read.array, volume.array), where
        referee = sitk.ReadImage(str(path))
        last = tuple(n - 1 for n in referee.GetSize())
        far_corner = referee.TransformIndexToPhysicalPoint(last)
        assert np.abs(read.grid.index_to_world(last) - far_corner).max() < 1e-3, where

        # Onto another random grid whose centre is one of this volume's points, so that they always overlap.
        other = random_grid(rng, (4, 14))
        shift = volume.grid.index_to_world((np.asarray(grid.size) - 1) * rng.uniform(0.3, 0.7, 3))
        shift = shift - other.index_to_world((np.asarray(other.size) - 1) / 2)
        other = Grid(other.size, other.spacing, tuple(np.add(other.origin, shift)), other.direction)
        resampled = read.resample_to(other, outside=np.nan, antialias=False)
        points = other.points()
        inside = grid.contains(points, margin_voxels=-0.001)
        outside = ~grid.contains(points, margin_voxels=0.501)
        expected = linear(points, slope)
        assert np.abs(resampled.array - expected)[inside].max(initial=0.0) < 0.02, where
        assert np.isnan(resampled.array[outside]).all(), where

        write_volume(Volume(np.nan_to_num(resampled.array), other), path)
        again = read_volume(path, "CT") if np.ptp(np.nan_to_num(resampled.array)) > 0 else None
        if again is not None:
            assert np.abs(again.grid.corners() - other.corners()).max() < 1e-3, where
            assert np.abs(again.array - expected)[inside].max(initial=0.0) < 0.02, where


def test_derived_grids_keep_their_place():
    rng = np.random.default_rng(7)
    for number in range(NUMBER):
        grid = random_grid(rng, (2, 60))
        where = f"number {number}: {grid}"
        index = rng.uniform(-5, 65, (20, 3))
        assert np.abs(grid.world_to_index(grid.index_to_world(index)) - index).max() < 1e-9, where

        spacing = rng.uniform(0.5, 8.0)
        coarse = grid.with_spacing(spacing)
        # The same axes and centre; the outer faces stay or grow, by less than a voxel in all.
        assert coarse.contains(grid.corners(), margin_voxels=0.5 + 1e-4).all(), where
        assert np.abs(coarse.corners().mean(0) - grid.corners().mean(0)).max() < 1e-9, where
        growth = np.asarray(coarse.size) * spacing - np.asarray(grid.size) * grid.spacing
        assert (growth < spacing).all(), where

        start = rng.integers(-3, 4, 3)
        piece = grid.crop(tuple(start), (2, 3, 4))
        assert np.allclose(
            piece.index_to_world((1, 2, 3)), grid.index_to_world(start + np.array([1, 2, 3])), atol=1e-9
        ), where

        points = grid.index_to_world(rng.uniform(0, np.asarray(grid.size) - 1, (5, 3)))
        part, slices = grid.crop_to(points, margin_mm=rng.uniform(0, 10))
        assert part.contains(points, margin_voxels=1e-6).all(), where
        assert part.shape == tuple(s.stop - s.start for s in slices), where
        assert np.allclose(part.index_to_world((0, 0, 0)), grid.index_to_world([s.start for s in slices[::-1]])), where

        around = Grid.around(points, spacing, margin_mm=3.0)
        for corner in itertools.product((-3.0, 3.0), repeat=3):
            assert around.contains(points + corner, margin_voxels=1e-4).all(), where


@pytest.mark.parametrize("smoothed", [False, True])
def test_smoothing_before_coarse_sampling_keeps_the_world(smoothed):
    """A Gaussian leaves a linear function alone away from the border: any shift by the smoothing would show."""
    rng = np.random.default_rng(11)
    for number in range(8):
        grid = random_grid(rng, (30, 40))
        slope = rng.uniform(-1, 1, 3)
        volume = Volume(linear(grid.points(), slope).astype(np.float32), grid)
        centre = grid.index_to_world((np.asarray(grid.size) - 1) / 2)
        spacing = 2.5 * min(grid.spacing)
        target = Grid((3, 3, 3), (spacing,) * 3, tuple(centre - spacing), np.eye(3).ravel())
        found = volume.resample_to(target, antialias=smoothed).array
        assert np.abs(found - linear(target.points(), slope)).max() < 0.05, f"number {number}: {grid}"
