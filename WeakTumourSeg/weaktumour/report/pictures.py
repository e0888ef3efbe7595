"""Slices along the patient axes, contours and picture files: the arithmetic behind the report's pictures.

A slice is cut in world space straight from whatever grid a volume has, so flipped, oblique and anisotropic volumes
come out right side up with square pixels; only the part of the volume around the slice is touched.
Pictures follow the radiological convention: patient right on the left of axial and coronal pictures, anterior on the
left of sagittal ones, head up.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..volumes import Grid, Volume

# Unit vectors (LPS) towards the right and the bottom edge of a picture, and the letters of its four edges.
_RIGHTWARD = {"axial": (1, 0, 0), "coronal": (1, 0, 0), "sagittal": (0, 1, 0)}
_DOWNWARD = {"axial": (0, 1, 0), "coronal": (0, 0, -1), "sagittal": (0, 0, -1)}
_LETTERS = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}
PLANES = ("axial", "coronal", "sagittal")
_CHI_SQUARE_95_OF_2 = 5.991  # 95 % of a normal distribution in the plane


@dataclass(frozen=True)
class View:
    """One plane through a point: square pixels along the patient axes."""

    plane: str  # axial, coronal, sagittal
    centre_mm: tuple[float, float, float]  # LPS
    field_mm: tuple[float, float]  # width, height
    pixel_mm: float

    @property
    def rightward(self) -> np.ndarray:
        return np.array(_RIGHTWARD[self.plane], dtype=float)

    @property
    def downward(self) -> np.ndarray:
        return np.array(_DOWNWARD[self.plane], dtype=float)

    @property
    def letters(self) -> str:
        """Left, right, top, bottom edge of the picture."""
        return _LETTERS[self.plane]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return tuple(max(2, round(length / self.pixel_mm)) for length in self.field_mm)

    @property
    def grid(self) -> Grid:
        """One slice: x runs rightward and y downward in the picture."""
        width, height = self.size
        right, down = self.rightward, self.downward
        corner = np.asarray(self.centre_mm) - self.pixel_mm * ((width - 1) / 2 * right + (height - 1) / 2 * down)
        direction = np.column_stack((right, down, np.cross(right, down)))
        return Grid((width, height, 1), (self.pixel_mm,) * 3, tuple(corner), tuple(direction.ravel()))

    def to_pixels(self, points_mm: np.ndarray) -> np.ndarray:
        """(n, 3) LPS mm -> (n, 2) picture coordinates (x, y); a pixel's centre lies at half numbers, as in SVG."""
        return self.grid.world_to_index(points_mm)[..., :2] + 0.5


# -- slices -------------------------------------------------------------------------------------------------------
def _crop_around(volume: Volume, view: View) -> Volume | None:
    """The block of a volume that a slice passes through (one voxel of margin), None where it misses the volume."""
    index = volume.grid.world_to_index(view.grid.corners(0.0))
    low = np.maximum(0, np.floor(index.min(0)) - 1).astype(int)
    high = np.minimum(np.asarray(volume.grid.size) - 1, np.ceil(index.max(0)) + 1).astype(int)
    if np.any(high < low):
        return None
    block = volume.array[tuple(slice(a, b + 1) for a, b in zip(low[::-1], high[::-1], strict=True))]
    return Volume(block, volume.grid.crop(tuple(low), tuple(high - low + 1)))


def slice_volume(volume: Volume, view: View, outside: float) -> np.ndarray:
    """(height, width) float32, linear interpolation; `outside` beyond the volume. Vector volumes: see slice_vectors."""
    block = _crop_around(volume, view)
    if block is None:
        width, height = view.size
        return np.full((height, width), outside, dtype=np.float32)
    return _resample(sitk.Cast(block.to_image(), sitk.sitkFloat32), view, outside)


def slice_vectors(vectors: np.ndarray, grid: Grid, view: View) -> np.ndarray:
    """(z, y, x, 3) vectors on a grid -> (height, width, 3) in the slice; zero beyond the grid."""
    return np.stack([slice_volume(Volume(vectors[..., axis], grid), view, 0.0) for axis in range(3)], axis=-1)


def slice_mask(labels: Volume, values: Collection[int], view: View) -> np.ndarray:
    """(height, width) float32 in 0..1: how much of each pixel belongs to the labels; 0.5 is their boundary.

    A Gaussian of half a voxel takes the steps of the label map's own lattice out of the boundary (at most
    sigma^2 / 2r of shrinking, 0.05 mm for 10 mm tumours on 1 mm voxels); what it would wash out stays as it is.
    """
    block = _crop_around(labels, view)
    mask = None if block is None else np.isin(block.array, list(values))
    if mask is None or not mask.any():
        width, height = view.size
        return np.zeros((height, width), dtype=np.float32)
    sharp = _resample(Volume(mask.astype(np.float32), block.grid).to_image(), view, 0.0)
    sigma = 0.5 * float(np.mean(labels.grid.spacing)) / view.pixel_mm
    if sharp.max() < 0.5 or sigma < 0.3 or min(view.size) < 4:
        return sharp
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(sharp), sigma))
    return smooth if smooth.max() >= 0.5 else sharp


def _resample(image: sitk.Image, view: View, outside: float) -> np.ndarray:
    grid = view.grid
    identity = sitk.Transform(3, sitk.sitkIdentity)
    result = sitk.Resample(
        image,
        list(grid.size),
        identity,
        sitk.sitkLinear,
        grid.origin,
        grid.spacing,
        grid.direction,
        float(outside),
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(result)[0]


def _plane_points(view: View) -> np.ndarray:
    """(height, width, 3) LPS mm of the pixels' centres."""
    width, height = view.size
    return view.grid.index_to_world(
        np.stack(np.broadcast_arrays(np.arange(width), np.arange(height)[:, None], 0), axis=-1)
    )


def depth_inside(grid: Grid, view: View) -> np.ndarray:
    """(height, width): distance in voxels to the nearest outer face of a grid, negative beyond it; 0 is its edge."""
    index = grid.world_to_index(_plane_points(view))
    return np.minimum(index + 0.5, np.asarray(grid.size) - 0.5 - index).min(axis=-1)


def ellipse_level(centre_mm: np.ndarray, covariance_mm2: np.ndarray, view: View) -> np.ndarray:
    """(height, width): 1 at the centre of an ellipsoid's shadow on the plane, 0 on the line that holds 95 % of it.

    The shadow is the distribution of the two coordinates in the plane, whatever the third.
    """
    axes = np.stack((view.rightward, view.downward))
    inverse = np.linalg.inv(axes @ np.asarray(covariance_mm2) @ axes.T)
    off = (_plane_points(view) - np.asarray(centre_mm)) @ axes.T
    return 1 - np.einsum("...i,ij,...j", off, inverse, off) / _CHI_SQUARE_95_OF_2


@dataclass(frozen=True)
class Extent:
    """Where labels lie: their voxel count, centroid and enclosing points, LPS mm."""

    voxels: int
    centroid_mm: np.ndarray  # (3,)
    anchor_mm: np.ndarray  # (3,) centre of the label voxel nearest to the centroid
    box_mm: np.ndarray  # (8, 3) corners of the voxels' box


def extent_of(labels: Volume, values: Collection[int]) -> Extent | None:
    """Extent of the labels, None where there is no such voxel. Goes slice by slice: no copy of the volume is made."""
    wanted, indices = list(values), []
    for z, plane in enumerate(labels.array):
        found = np.isin(plane, wanted)
        if found.any():
            y, x = np.nonzero(found)
            indices.append(np.column_stack((x, y, np.full_like(x, z))).astype(np.int32))
    if not indices:
        return None
    index = np.concatenate(indices)
    centroid = index.mean(axis=0)
    anchor = index[np.argmin(((index - centroid) ** 2).sum(axis=1))]
    low, high = index.min(axis=0), index.max(axis=0)
    box = labels.grid.crop(tuple(low), tuple(high - low + 1)).corners()
    world = labels.grid.index_to_world
    return Extent(len(index), world(centroid), world(anchor), box)


# -- contours -----------------------------------------------------------------------------------------------------
def contours(values: np.ndarray, level: float = 0.5) -> list[np.ndarray]:
    """Iso-lines of a (height, width) array by marching squares (Lorensen & Cline 1987 in the plane).

    Returns polylines (n, 2) of picture coordinates (x, y), pixel centres at half numbers, linear between them. A closed
    line repeats its first point; a line that leaves the picture ends at its border's pixel centres.
    """
    v = np.asarray(values, dtype=float) - level
    inside = v > 0
    height, width = v.shape
    if inside.all() or not inside.any():
        return []
    # Crossings on edges between horizontal neighbours, then vertical ones; an edge's number is its place in the array.
    points = np.full((2, height, width, 2), np.nan)
    for kind, (a, b) in enumerate(
        (((slice(None), slice(0, -1)), (slice(None), slice(1, None))), ((slice(0, -1),), (slice(1, None),)))
    ):
        row, column = np.nonzero(inside[a] != inside[b])
        share = v[a][row, column] / (v[a][row, column] - v[b][row, column])
        points[kind, row, column, 0] = column + 0.5 + (share if kind == 0 else 0)
        points[kind, row, column, 1] = row + 0.5 + (share if kind == 1 else 0)
    return [points.reshape(-1, 2)[chain] for chain in _chains(_segments(inside, v))]


# Corners of a cell: 1 top left, 2 top right, 4 bottom right, 8 bottom left. Edges: 0 top, 1 right, 2 bottom, 3 left.
_CELL_EDGES = {
    1: (3, 0),
    2: (0, 1),
    3: (3, 1),
    4: (1, 2),
    6: (0, 2),
    7: (3, 2),
    8: (2, 3),
    9: (2, 0),
    11: (2, 1),
    12: (1, 3),
    13: (1, 0),
    14: (0, 3),
}
_SADDLES = {5: (((3, 0), (1, 2)), ((0, 1), (2, 3))), 10: (((0, 1), (2, 3)), ((3, 0), (1, 2)))}  # apart, joined


def _segments(inside: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(n, 2) pairs of edge numbers that a line joins within one cell."""
    height, width = inside.shape
    corners = inside.astype(np.uint8)
    code = corners[:-1, :-1] + 2 * corners[:-1, 1:] + 4 * corners[1:, 1:] + 8 * corners[1:, :-1]

    def edge_number(row: np.ndarray, column: np.ndarray, edge: int) -> np.ndarray:
        kind, row, column = ((0, row, column), (1, row, column + 1), (0, row + 1, column), (1, row, column))[edge]
        return (kind * height + row) * width + column

    pairs = []

    def join(cells: np.ndarray, edges: tuple[int, int]) -> None:
        row, column = np.nonzero(cells)
        pairs.append(np.column_stack([edge_number(row, column, edge) for edge in edges]))

    for number, edges in _CELL_EDGES.items():
        join(code == number, edges)
    middle = v[:-1, :-1] + v[:-1, 1:] + v[1:, 1:] + v[1:, :-1] > 0
    for number, (apart, joined) in _SADDLES.items():
        for edges in apart:
            join((code == number) & ~middle, edges)
        for edges in joined:
            join((code == number) & middle, edges)
    return np.concatenate(pairs)


def _chains(segments: np.ndarray) -> list[list[int]]:
    """Segments joined end to end; a closed chain repeats its first edge number."""
    neighbours: dict[int, list[int]] = {}
    for a, b in segments.tolist():
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    chains = []
    # Open ends first, so that an open line is not entered in its middle.
    for start in sorted(neighbours, key=lambda edge: len(neighbours[edge])):
        if not neighbours[start]:
            continue
        chain = [start]
        while neighbours[chain[-1]]:
            following = neighbours[chain[-1]].pop()
            neighbours[following].remove(chain[-1])
            chain.append(following)
        chains.append(chain)
    return chains


def svg_path(lines: Sequence[np.ndarray]) -> str:
    """Polylines as the `d` of an SVG path in tenths of a pixel (draw it under transform="scale(.1)")."""
    parts = []
    for line in lines:
        points = np.rint(np.asarray(line) * 10).astype(int)
        steps = np.diff(points, axis=0)
        steps = steps[np.any(steps != 0, axis=1)]
        if not len(steps):
            continue
        # Runs of the same step, as along straight edges, become one.
        turn = np.flatnonzero(np.any(np.diff(steps, axis=0) != 0, axis=1)) + 1
        steps = np.add.reduceat(steps, np.concatenate(([0], turn)))
        moves = " ".join(f"{x} {y}" if y >= 0 else f"{x}{y}" for x, y in steps)
        parts.append(f"M{points[0, 0]} {points[0, 1]}l{moves}")
    return "".join(parts)


# -- grey levels and colours --------------------------------------------------------------------------------------
def window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values -> 0..1 float32 between two levels."""
    return np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0).astype(np.float32)


# Anchors of the colour map "viridis" (matplotlib, CC0): even in lightness, readable in grey and by colour-blind eyes.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ]
)


def colour_map(share: np.ndarray) -> np.ndarray:
    """0..1 (any shape) -> the same shape with three colour channels 0..1."""
    position = np.clip(share, 0.0, 1.0) * (len(_VIRIDIS) - 1)
    steps = np.arange(len(_VIRIDIS))
    return np.stack([np.interp(position, steps, _VIRIDIS[:, channel]) for channel in range(3)], axis=-1) / 255.0


class PictureFiles:
    """Turns arrays into data URIs through files that SimpleITK writes into one folder, which it leaves empty."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def jpeg(self, picture: np.ndarray, quality: int = 88) -> str:
        """(height, width) or (height, width, 3) of 0..1 -> a data: URI."""
        levels = np.rint(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)
        image = sitk.GetImageFromArray(levels, isVector=levels.ndim == 3)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".picture-") as folder:
            path = Path(folder, "picture.jpg")
            sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=quality)
            return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
