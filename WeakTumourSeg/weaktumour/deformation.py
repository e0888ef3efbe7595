"""Transforms that map fixed (CT) points to moving (MRI) points, LPS millimetres.

`Affine` and `DisplacementField` live in world space and carry their own geometry. The torch functions below them work
on one working grid, in voxels of that grid: displacement tensors are (batch, 3, z, y, x) with components ordered
x, y, z, as `torch.nn.functional.grid_sample` wants its coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from .errors import InputError
from .volumes import Grid

_CHUNK_POINTS = 2_000_000
_CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Affine:
    """matrix: (4, 4), fixed -> moving, LPS mm."""

    matrix: np.ndarray

    @staticmethod
    def identity() -> Affine:
        return Affine(np.eye(4))

    @staticmethod
    def translation(offset_mm: np.ndarray) -> Affine:
        matrix = np.eye(4)
        matrix[:3, 3] = offset_mm
        return Affine(matrix)

    @staticmethod
    def from_sitk(transform: sitk.Transform) -> Affine:
        """Any linear SimpleITK transform, by mapping the origin and the unit points."""
        origin = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
        columns = [np.asarray(transform.TransformPoint(tuple(unit))) - origin for unit in np.eye(3)]
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = np.stack(columns, axis=1), origin
        return Affine(matrix)

    @staticmethod
    def read(path: str | Path) -> Affine:
        """Read a linear ITK transform file (.tfm, .h5, .mat). Raises InputError when it is not one."""
        path = Path(path)
        if not path.exists():
            raise InputError(f"Initial transform: {path} does not exist; check the path.")
        try:
            transform = sitk.ReadTransform(str(path))
        except RuntimeError as error:
            raise InputError(
                f"Initial transform: {path.name} is not an ITK transform file; export it as .tfm or .h5."
            ) from error
        if transform.GetDimension() != 3:
            raise InputError(f"Initial transform: {path.name} is not three-dimensional; export a 3-D transform.")
        if not transform.IsLinear():
            raise InputError(
                f"Initial transform: {path.name} is not linear; give a translation, rigid or affine transform."
            )
        affine = Affine.from_sitk(transform)
        if not np.all(np.isfinite(affine.matrix)) or np.linalg.det(affine.matrix[:3, :3]) <= 1e-6:
            raise InputError(
                f"Initial transform: {path.name} is singular or mirrors space; give an invertible transform."
            )
        return affine

    def transform_points(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) fixed -> (..., 3) moving, LPS mm."""
        return np.asarray(points_mm, dtype=float) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def inverse(self) -> Affine:
        return Affine(np.linalg.inv(self.matrix))

    def after(self, first: Affine) -> Affine:
        """The transform that applies `first`, then this one."""
        return Affine(self.matrix @ first.matrix)

    def to_sitk(self) -> sitk.AffineTransform:
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(self.matrix[:3, :3].ravel().tolist())
        transform.SetTranslation(self.matrix[:3, 3].tolist())
        return transform


@dataclass(frozen=True)
class DisplacementField:
    """y = x + u(x): fixed point x -> moving point y, LPS mm, trilinear between the grid's voxel centres.

    displacement_mm: (z, y, x, 3), components along LPS x, y, z whatever the grid's axes.
    Beyond the grid the displacement of its nearest face holds.
    """

    grid: Grid
    displacement_mm: np.ndarray

    def __post_init__(self) -> None:
        if self.displacement_mm.shape != (*self.grid.shape, 3):
            raise ValueError(
                f"displacement of shape {self.displacement_mm.shape} on a grid of shape {self.grid.shape} (z, y, x)"
            )

    @staticmethod
    def of(transform: Affine | DisplacementField, grid: Grid) -> DisplacementField:
        """Any transform sampled on a grid, float64."""
        displacement = np.empty((*grid.shape, 3))
        for rows, points in _grid_points(grid):
            displacement[rows] = transform.transform_points(points) - points
        return DisplacementField(grid, displacement)

    # -- points -------------------------------------------------------------------------------------------------
    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) fixed points -> (..., 3) displacement, mm."""
        points = np.asarray(points_mm, dtype=float)
        flat = points.reshape(-1, 3)
        result = np.empty_like(flat)
        for start in range(0, len(flat), _CHUNK_POINTS):
            index = self.grid.world_to_index(flat[start : start + _CHUNK_POINTS])
            result[start : start + _CHUNK_POINTS] = trilinear(self.displacement_mm, index)
        return result.reshape(points.shape)

    def transform_points(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) fixed -> (..., 3) moving, LPS mm."""
        return np.asarray(points_mm, dtype=float) + self.displacement_at(points_mm)

    def inverse_points(self, points_mm: np.ndarray, tolerance_mm: float = 1e-3, iterations: int = 100) -> np.ndarray:
        """(..., 3) moving -> (..., 3) fixed, LPS mm: the points x with x + u(x) = y.

        Fixed-point iteration preconditioned with the field's best-fit affine, damped where it does not contract.
        """
        targets = np.asarray(points_mm, dtype=float)
        linear = np.linalg.inv(self.best_affine.matrix[:3, :3])
        points = self.best_affine.inverse().transform_points(targets)
        step, previous = 1.0, np.inf
        for _ in range(iterations):
            residual = self.transform_points(points) - targets
            worst = float(np.abs(residual).max(initial=0.0))
            if worst < tolerance_mm:
                break
            if worst > previous:
                step = max(0.25, 0.7 * step)
            previous = worst
            points = points - step * residual @ linear.T
        return points

    def inverse(self, grid: Grid) -> DisplacementField:
        """The transform moving -> fixed, sampled on a grid in moving space."""
        displacement = np.empty((*grid.shape, 3))
        for rows, points in _grid_points(grid):
            displacement[rows] = self.inverse_points(points) - points
        return DisplacementField(grid, displacement)

    def after(self, first: Affine | DisplacementField, grid: Grid | None = None) -> DisplacementField:
        """The transform that applies `first`, then this one, sampled on `grid` (by default that of `first`)."""
        grid = grid or getattr(first, "grid", None) or self.grid
        displacement = np.empty((*grid.shape, 3))
        for rows, points in _grid_points(grid):
            displacement[rows] = self.transform_points(first.transform_points(points)) - points
        return DisplacementField(grid, displacement)

    # -- properties ---------------------------------------------------------------------------------------------
    @cached_property
    def best_affine(self) -> Affine:
        """The affine transform nearest to this field in the least-squares sense over (a subset of) its grid."""
        step = [max(1, n // 24) for n in self.grid.shape]
        index = np.stack(
            np.meshgrid(*(np.arange(0, n, s) for n, s in zip(self.grid.shape, step, strict=True)), indexing="ij"),
            axis=-1,
        ).reshape(-1, 3)
        fixed = self.grid.index_to_world(index[:, ::-1])
        moving = fixed + self.displacement_mm[index[:, 0], index[:, 1], index[:, 2]]
        centre = fixed.mean(0)
        homogeneous = np.c_[fixed - centre, np.ones(len(fixed))]
        solution, *_ = np.linalg.lstsq(homogeneous, moving, rcond=None)
        matrix = np.eye(4)
        matrix[:3, :3] = solution[:3].T
        matrix[:3, 3] = solution[3] - solution[:3].T @ centre
        return Affine(matrix)

    def jacobian_determinant(self) -> np.ndarray:
        """(z, y, x) float32: det of d(moving)/d(fixed) at the voxel centres, central differences."""
        index_to_unit = np.linalg.inv(self.grid.index_to_world_affine[:3, :3])  # d index / d world
        result = np.empty(self.grid.shape, dtype=np.float32)
        depth = self.grid.shape[0]
        for start in range(0, depth, 32):
            stop = min(depth, start + 32)
            low, high = max(0, start - 1), min(depth, stop + 1)
            piece = self.displacement_mm[low:high].astype(np.float32)
            derivative = np.zeros((3, 3, *piece.shape[:3]), dtype=np.float32)  # [index axis x y z, component]
            for row, axis in enumerate((2, 1, 0)):
                if piece.shape[axis] > 1:
                    derivative[row] = np.moveaxis(np.gradient(piece, axis=axis), -1, 0)
            jacobian = np.einsum("aczyx,ab->cbzyx", derivative, index_to_unit.astype(np.float32))
            jacobian += np.eye(3, dtype=np.float32)[:, :, None, None, None]
            (a, b, c), (d, e, f), (g, h, i) = jacobian
            determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
            result[start:stop] = determinant[start - low : stop - low]
        return result

    # -- ITK ----------------------------------------------------------------------------------------------------
    def to_sitk(self) -> sitk.DisplacementFieldTransform:
        image = sitk.GetImageFromArray(np.ascontiguousarray(self.displacement_mm, dtype=np.float64), isVector=True)
        return sitk.DisplacementFieldTransform(self.grid.apply_to(image))

    @staticmethod
    def from_sitk(transform: sitk.Transform) -> DisplacementField:
        """Raises InputError when the transform is not a displacement field."""
        try:
            field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        except RuntimeError as error:
            raise InputError(
                "The transform is not a displacement field; give a transform.h5 as written by WeakTumourSeg."
            ) from error
        return DisplacementField(Grid.of(field), sitk.GetArrayFromImage(field))

    def write(self, path: str | Path) -> None:
        """One SimpleITK DisplacementFieldTransform, float64."""
        sitk.WriteTransform(self.to_sitk(), str(path))

    @staticmethod
    def read(path: str | Path) -> DisplacementField:
        path = Path(path)
        if not path.exists():
            raise InputError(f"Transform: {path} does not exist; check the path.")
        try:
            transform = sitk.ReadTransform(str(path))
        except RuntimeError as error:
            raise InputError(f"Transform: {path.name} is not an ITK transform file; give a transform.h5.") from error
        return DisplacementField.from_sitk(transform)


def _grid_points(grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs of rows along z with the LPS points of their voxel centres (rows, y, x, 3)."""
    rows = max(1, _CHUNK_POINTS // (grid.shape[1] * grid.shape[2]))
    for start in range(0, grid.shape[0], rows):
        stop = min(grid.shape[0], start + rows)
        yield slice(start, stop), grid.crop((0, 0, start), (*grid.size[:2], stop - start)).points()


def trilinear(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """array (z, y, x, c) sampled at index (n, 3) in x, y, z, clamped to the array -> (n, c)."""
    last = np.asarray(array.shape[2::-1]) - 1
    index = np.clip(index, 0, last)
    low = np.minimum(np.floor(index).astype(np.intp), np.maximum(last - 1, 0))
    weight = index - low
    high = np.minimum(low + 1, last)
    result = np.zeros((len(index), array.shape[-1]))
    for corner in range(8):
        upper = [(corner >> axis) & 1 for axis in range(3)]
        x, y, z = (high[:, a] if upper[a] else low[:, a] for a in range(3))
        share = np.prod([weight[:, a] if upper[a] else 1 - weight[:, a] for a in range(3)], axis=0)
        result += share[:, None] * array[z, y, x]
    return result


# -- torch, on one working grid, in voxels ------------------------------------------------------------------------
def identity_coordinates(shape: tuple[int, int, int], device: torch.device | str = "cpu") -> torch.Tensor:
    """(1, 3, z, y, x): each voxel's own index, components x, y, z."""
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in shape), indexing="ij")
    return torch.stack((x, y, z))[None]


def sample(image: torch.Tensor, coordinates: torch.Tensor, *, padding: str = "border") -> torch.Tensor:
    """image (b, c, z, y, x) at voxel coordinates (b, 3, Z, Y, X), components x, y, z -> (b, c, Z, Y, X), trilinear."""
    last = torch.tensor([max(n - 1, 1) for n in image.shape[:1:-1]], dtype=coordinates.dtype, device=coordinates.device)
    normalised = coordinates.permute(0, 2, 3, 4, 1) * (2.0 / last) - 1.0
    batch, depth = normalised.shape[:2]
    # On the CPU grid_sample shares out work over the batch alone: slabs along z join it until each thread has one.
    slabs = min(-(-torch.get_num_threads() // batch), depth) if image.device.type == "cpu" else 1
    rows = -(-depth // slabs)
    if slabs > 1:
        filled = F.pad(normalised, (0, 0, 0, 0, 0, 0, 0, rows * slabs - depth))
        normalised = filled.reshape(batch * slabs, rows, *normalised.shape[2:])
        image = image[:, None].expand(-1, slabs, -1, -1, -1, -1).flatten(0, 1)
    result = F.grid_sample(image, normalised, mode="bilinear", padding_mode=padding, align_corners=True)
    if slabs > 1:
        result = result.unflatten(0, (batch, slabs)).transpose(1, 2).flatten(2, 3)[:, :, :depth]
    return result


class Sampler:
    """An image (1, c, z, y, x) of many channels to be read again and again at single points, clamped to the image.

    The same as `sample` with padding "border", whose channels are far apart in memory: on the CPU this is several times
    as fast. Gradients reach the points alone.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self._image, self._rows = image, None
        if image.device.type == "cpu":
            self._image, self._rows = None, image[0].flatten(1).t().contiguous()
            self._shape = tuple(image.shape[2:])

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """points (3, n), voxel coordinates x, y, z -> (n, c)."""
        if self._rows is None:
            return sample(self._image, points[None, :, None, None])[0, :, 0, 0].t()
        return _Trilinear.apply(points, self._rows, self._shape)


class _Trilinear(torch.autograd.Function):
    """Weighted sums of eight rows each, a chunk of points at a time, which the processor's cache holds."""

    @staticmethod
    def forward(ctx, points: torch.Tensor, rows: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
        size = torch.tensor(shape[::-1], dtype=points.dtype)[:, None]
        clamped = torch.minimum(points.clamp(min=0), size - 1)
        low = torch.minimum(clamped.floor(), (size - 2).clamp(min=0))
        strides = (1, shape[2], shape[1] * shape[2])  # x, y, z, in rows
        first = sum(stride * part for stride, part in zip(strides, low.int(), strict=True))
        x, y, z = (stride * int(n > 1) for stride, n in zip(strides, size, strict=True))
        corners = torch.tensor([[[k + j + i for i in (0, x)] for j in (0, y)] for k in (0, z)]).flatten().int()
        share = clamped - low  # of the higher neighbour along x, y, z
        ctx.save_for_backward(first, corners, share, clamped == points, rows)
        values = rows.new_empty((points.shape[1], rows.shape[1]))
        for chunk in _chunks(len(values)):
            x, y, z = torch.stack((1 - share[:, chunk], share[:, chunk]), 1)
            weights = (z[:, None, None] * y[:, None] * x).flatten(0, 2).t().contiguous()
            index = first[chunk, None] + corners
            values[chunk] = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
        return values

    @staticmethod
    def backward(ctx, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        first, corners, share, inside, rows = ctx.saved_tensors
        gradient = torch.empty_like(share)
        for chunk in _chunks(len(slope)):
            values = rows.index_select(0, (first[chunk, None] + corners).flatten()).unflatten(0, (-1, 8))
            at_corners = torch.bmm(values, slope[chunk, :, None])[..., 0].t().reshape(2, 2, 2, -1)  # z, y, x
            x, y, z = share[:, chunk]
            without_x = torch.lerp(at_corners[:, :, 0], at_corners[:, :, 1], x)
            without_y = torch.lerp(at_corners[:, 0], at_corners[:, 1], y)
            along_y, along_z = without_x[:, 1] - without_x[:, 0], without_x[1] - without_x[0]
            along_x = without_y[:, 1] - without_y[:, 0]
            gradient[0, chunk] = torch.lerp(along_x[0], along_x[1], z)
            gradient[1, chunk] = torch.lerp(along_y[0], along_y[1], z)
            gradient[2, chunk] = torch.lerp(along_z[0], along_z[1], y)
        return gradient.mul_(inside), None, None


def _chunks(total: int) -> Iterator[slice]:
    return (slice(first, first + _CHUNK_ROWS) for first in range(0, total, _CHUNK_ROWS))


def warp(image: torch.Tensor, displacement: torch.Tensor, *, padding: str = "border") -> torch.Tensor:
    """image(x + u(x)); image and displacement on the same grid, displacement in its voxels."""
    return sample(
        image, identity_coordinates(displacement.shape[2:], displacement.device) + displacement, padding=padding
    )


def compose(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Displacement of x -> outer(inner(x)), all in voxels of one grid."""
    return inner + warp(outer, inner)


def integrate(velocity: torch.Tensor, steps: int = 6, *, padding: str = "border") -> torch.Tensor:
    """Displacement of exp(velocity) by scaling and squaring (Arsigny et al. 2006), in voxels of one grid."""
    displacement = velocity / 2**steps
    coordinates = identity_coordinates(velocity.shape[2:], velocity.device)
    for _ in range(steps):
        displacement = displacement + sample(displacement, coordinates + displacement, padding=padding)
    return displacement


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """(b, 3, z, y, x) in voxels of an isotropic or any other grid -> (b, z, y, x), central differences.

    Voxel units cancel: the determinant is the same in voxels and in millimetres.
    """
    along = [
        torch.gradient(displacement, dim=axis)[0] if displacement.shape[axis] > 1 else torch.zeros_like(displacement)
        for axis in (4, 3, 2)  # d/dx, d/dy, d/dz
    ]
    a, b, c = ([d[:, i] + (1.0 if i == j else 0.0) for j, d in enumerate(along)] for i in range(3))
    # Component by component: torch.linalg.cross takes four times as long.
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
