"""Small volumes, masks and motions for the scene tests."""

from __future__ import annotations

import numpy as np


def rotation(axis: tuple[float, float, float], degrees: float, shift: tuple[float, float, float] = (0, 0, 0)):
    """(4, 4) rigid motion in RAS mm, by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = shift
    return matrix


OBLIQUE = rotation((1, 2, 3), 25, (11, -37, 52)) @ np.diag([-1.5, -1.2, 3.0, 1])
# As no scanner writes it, but a flipped volume is: Slicer turns it round when it is saved and loaded.
LEFT_HANDED = rotation((1, 2, 3), 25, (11, -37, 52)) @ np.diag([-1.5, 1.2, 3.0, 1])


def pattern(shape: tuple[int, int, int], low: float, high: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def ctVoxels(shape: tuple[int, int, int] = (20, 22, 24)) -> np.ndarray:
    """Air around soft tissue."""
    voxels = pattern(shape, -1010, -990)
    voxels[3:-3, 3:-3, 3:-3] = pattern(shape, 20, 120)[3:-3, 3:-3, 3:-3]
    return voxels


def box(shape: tuple[int, int, int], *ranges: tuple[int, int]) -> np.ndarray:
    """(k, j, i) bool: True inside the ranges along k, j, i."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*limits) for limits in ranges)] = True
    return mask
