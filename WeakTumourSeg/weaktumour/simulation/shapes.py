"""Implicit shapes: signed distances in millimetres, negative inside, and the canvas that they are drawn on.

Distances are exact near the surface to first order, which is all that partial volume needs. Coordinates are LPS mm
(+x patient left, +y posterior, +z head); arrays are (z, y, x) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np
import SimpleITK as sitk

from ..volumes import Grid

Point = Sequence[float]
_NOISE_REACH_MM = 320.0  # smooth noise is defined this far from the origin


def random_stream(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each named part, so that changing one part leaves the others as they were."""
    return np.random.default_rng([seed, crc32(name.encode())])


# -- distances ----------------------------------------------------------------------------------------------------
def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The maximum of two distances (intersection) with the edge rounded over `width` mm."""
    blend = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + blend * blend * (0.25 / width)


def smooth_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The minimum of two distances (union) with the crease filled over `width` mm."""
    return -smooth_max(-a, -b, width)


def ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """Distance to an ellipsoid along the patient axes, by Quilez' first-order formula k0 (k0 - 1) / k1."""
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    k0 = np.sqrt(u * u + v * v + w * w)
    k1 = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
    return (k0 * (k0 - 1) / np.maximum(k1, 1e-6)).astype(np.float32)


def ellipse(x: np.ndarray, y: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """Distance to an elliptic cylinder, in the plane of its section."""
    u, v = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    k0 = np.sqrt(u * u + v * v)
    k1 = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
    return (k0 * (k0 - 1) / np.maximum(k1, 1e-6)).astype(np.float32)


def capsule(x: np.ndarray, y: np.ndarray, z: np.ndarray, start: Point, end: Point, r0: float, r1: float) -> np.ndarray:
    """Distance to a segment whose radius runs linearly from r0 to r1."""
    axis = np.subtract(end, start).astype(float)
    length2 = max(float(axis @ axis), 1e-6)
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / length2, 0, 1)
    square = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
    return (np.sqrt(square) - (r0 + t * (r1 - r0))).astype(np.float32)


def signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(z, y, x) float32: distance in mm to a mask's surface, negative inside.

    Each voxel's is that to the nearest centre on the other side, so that it changes sign halfway between centres.
    """
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing])
    beyond, within = (
        sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(part, False, False, True)).clip(min=0)
        for part in (image, sitk.Equal(image, 0))
    )
    return (beyond - within).astype(np.float32)


@dataclass(frozen=True)
class Profile:
    """A smooth curve through knots, constant beyond them."""

    at: Sequence[float]
    values: Sequence[float]
    smoothing: float = 30.0  # mm

    def __call__(self, position: np.ndarray) -> np.ndarray:
        margin = 2 * self.smoothing
        fine = np.arange(self.at[0] - margin, self.at[-1] + margin, 1.0)
        kernel = np.hanning(max(3, int(self.smoothing) + 2))
        half = len(kernel) // 2
        table = np.pad(np.interp(fine, self.at, self.values), half, mode="edge")
        smooth = np.convolve(table, kernel / kernel.sum(), mode="same")[half:-half]
        return np.interp(position, fine, smooth).astype(np.float32)


def smooth_curve(points: Sequence[Point], step_mm: float = 5.0) -> np.ndarray:
    """(n, k): points of a Catmull-Rom curve through the (m, k) control points, about `step_mm` apart.

    The first three columns are x, y, z; further ones (a radius) are carried along.
    """
    p = np.asarray(points, dtype=float)
    p = np.vstack((2 * p[0] - p[1], p, 2 * p[-1] - p[-2]))
    result = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        t = np.linspace(0, 1, max(2, int(np.linalg.norm((c - b)[:3]) / step_mm) + 1), endpoint=False)[:, None]
        result.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack((*result, p[-2]))


# -- smooth random fields -------------------------------------------------------------------------------------------
def smooth_noise(grid: Grid, knot_mm: float, rng: np.random.Generator) -> np.ndarray:
    """(z, y, x) float32, mean about 0, standard deviation about 1: cubic B-splines with random coefficients.

    The knots are fixed in space, so that the field does not depend on the grid. For grids along the patient axes.
    """
    knots = int(np.ceil(_NOISE_REACH_MM / knot_mm))
    coefficients = rng.standard_normal((2 * knots + 1,) * 3, dtype=np.float32)
    bases = []
    for axis, n, spacing, origin in zip((2, 1, 0), grid.size, grid.spacing, grid.origin, strict=True):
        position = (np.arange(n) * spacing + origin) / knot_mm
        first = max(-knots, int(np.floor(position[0])) - 1)
        last = min(knots, int(np.ceil(position[-1])) + 1)
        coefficients = np.take(coefficients, np.arange(first + knots, last + knots + 1), axis=axis)
        t = np.abs(position[:, None] - np.arange(first, last + 1)[None])
        bases.append(np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6).astype(np.float32))
    bx, by, bz = bases
    field = np.tensordot(bz, coefficients, axes=(1, 0))  # (z, cy, cx)
    field = by @ field  # (z, y, cx)
    # A B-spline's squared weights sum to 0.479 on average along each axis.
    return (field @ bx.T) * np.float32(0.479**-1.5)


# -- drawing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Region:
    """A box of the canvas: its slices and its coordinates, ready to broadcast to (z, y, x)."""

    slices: tuple[slice, slice, slice]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class Canvas:
    """Named layers (z, y, x) on one grid along the patient axes; shapes are painted with partial volume."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.axes = [
            (origin + spacing * np.arange(n)).astype(np.float32)
            for n, spacing, origin in zip(grid.size, grid.spacing, grid.origin, strict=True)
        ]
        self.layers: dict[str, np.ndarray] = {}
        # Distance to the nearest organ placed so far: organs give way to those placed before them.
        self.occupied = np.full(grid.shape, 1e3, dtype=np.float32)

    def region(self, low: Point = (-1e4,) * 3, high: Point = (1e4,) * 3) -> Region:
        """The part of the canvas between two corners (x, y, z), at least one voxel."""
        spans = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            start = min(int(np.searchsorted(axis, a)), len(axis) - 1)
            spans.append(slice(start, max(int(np.searchsorted(axis, b, side="right")), start + 1)))
        x, y, z = (axis[span] for axis, span in zip(self.axes, spans, strict=True))
        return Region(tuple(spans[::-1]), x[None, None, :], y[None, :, None], z[:, None, None])

    def slabs(self, low: Point = (-1e4,) * 3, thickness_mm: float = 30.0) -> Iterator[Region]:
        """The canvas above `low` in pieces along z, so that temporary arrays stay small and in the cache."""
        bottom = max(float(low[2]), float(self.axes[2][0]))
        top = float(self.axes[2][-1])
        while bottom <= top:
            region = self.region((low[0], low[1], bottom), (1e4, 1e4, min(bottom + thickness_mm, top)))
            yield region
            following = region.slices[0].stop
            if following >= len(self.axes[2]):
                return
            bottom = float(self.axes[2][following])

    def part_of(self, region: Region, low: Point, high: Point) -> tuple[Region, tuple[slice, slice, slice]] | None:
        """The box clipped to a region, and its slices in arrays of that region; None where they do not meet."""
        part = self.region(low, high)
        spans = [
            slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(part.slices, region.slices, strict=True)
        ]
        if any(s.start >= s.stop for s in spans):
            return None
        z, y, x = (axis[s] for axis, s in zip(self.axes[::-1], spans, strict=True))
        local = tuple(slice(s.start - r.start, s.stop - r.start) for s, r in zip(spans, region.slices, strict=True))
        return Region(tuple(spans), x[None, None, :], y[None, :, None], z[:, None, None]), local

    def grid_of(self, region: Region) -> Grid:
        spans = region.slices[::-1]
        return self.grid.crop(tuple(s.start for s in spans), tuple(s.stop - s.start for s in spans))

    def around(self, points: np.ndarray, margin_mm: float) -> Region:
        points = np.asarray(points, dtype=float)
        return self.region(points.min(0) - margin_mm, points.max(0) + margin_mm)

    def occupancy(self, distance: np.ndarray) -> np.ndarray:
        """Share of each voxel inside the shape, for a distance in mm."""
        return np.clip(0.5 - distance / np.float32(self.grid.spacing[0]), 0, 1)

    def paint(
        self,
        region: Region,
        distance: np.ndarray,
        values: Callable[[str, Region], np.ndarray | float],
        layers: Sequence[str],
    ) -> None:
        """Blend `values(layer, region)` into the layers where the distance is negative."""
        share = self.occupancy(distance)
        if not share.any():
            return
        for name in layers:
            view = self.layers[name][region.slices]
            view += share * (values(name, region) - view)

    def claim(self, region: Region, distance: np.ndarray, gap_mm: float = 1.0) -> np.ndarray:
        """The shape less what is already taken (with a gap), which it then takes in turn. Returns its distance."""
        taken = self.occupied[region.slices]
        distance = np.maximum(distance, np.float32(gap_mm) - taken)
        np.minimum(taken, distance, out=taken)
        return distance

    def tube(self, path: np.ndarray) -> tuple[Region, np.ndarray]:
        """A region and the distance in it to a chain of capsules; path (n, 4): x, y, z, radius."""
        path = np.asarray(path, dtype=float)
        region = self.around(path[:, :3], float(path[:, 3].max()) + 4.0)
        return region, self.capsules(region, [(a[:3], b[:3], a[3], b[3]) for a, b in pairwise(path)])

    def capsules(self, region: Region, segments: Iterable[tuple[np.ndarray, np.ndarray, float, float]]) -> np.ndarray:
        """Distance on a region to segments (start, end, radius, radius), right within 4 mm of them."""
        distance = np.full(self.occupied[region.slices].shape, 1e3, dtype=np.float32)
        for a, b, r0, r1 in segments:
            margin = max(r0, r1) + 4.0
            found = self.part_of(region, np.minimum(a, b) - margin, np.maximum(a, b) + margin)
            if found is None:
                continue
            part, local = found
            view = distance[local]
            np.minimum(view, capsule(part.x, part.y, part.z, a, b, r0, r1), out=view)
        return distance
