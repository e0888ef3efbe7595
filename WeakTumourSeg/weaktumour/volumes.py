"""Volumes with their geometry: reading, checking, resampling.

A `Grid` is a lattice of voxel centres in LPS millimetres and cannot exist unless it is valid; a `Volume` is an array
with its grid. Arrays are indexed (z, y, x), points are (x, y, z) in LPS mm, as in ITK. Whatever orientation a file
has is settled here, once: everything further down works in LPS millimetres.
"""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk

from .errors import InputError

_ORTHONORMAL_TOLERANCE = 1e-3
_GEOMETRY_TOLERANCE_MM = 1e-3
_SLICE_GAP_TOLERANCE = 0.02  # of the slice distance, besides 0.05 mm
# Powers of two: the decimal numbers that spacings and origins are made of then lie on or off the steps, not half way.
_SNAP_ORIGIN_MM, _SNAP_SPACING_MM, _SNAP_DIRECTION = 2.0**-7, 2.0**-17, 2.0**-15


@dataclass(frozen=True)
class Grid:
    """A lattice of voxel centres.

    size: voxels along the grid's own x, y, z axes. spacing: mm. origin: LPS mm of voxel (0, 0, 0).
    direction: 3x3, row-major; its columns are the unit vectors of the axes in LPS.
    Raises InputError when the lattice is not valid (size, spacing, orthonormal direction).
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        for name in ("spacing", "origin", "direction"):
            object.__setattr__(self, name, tuple(float(v) for v in np.ravel(getattr(self, name))))
        if len(self.size) != 3 or len(self.spacing) != 3 or len(self.origin) != 3 or len(self.direction) != 9:
            raise InputError("A volume must be three-dimensional; export one 3-D image.")
        if min(self.size) < 1:
            raise InputError(f"A volume of size {self.size} has no voxels; export it again.")
        if not np.all(np.isfinite(self.spacing)) or min(self.spacing) <= 0:
            raise InputError(f"The voxel spacing {self.spacing} mm is not positive; export the volume again.")
        if not np.all(np.isfinite(self.origin)):
            raise InputError(f"The origin {self.origin} is not a place in space; export the volume again.")
        axes = self.axes
        if not np.all(np.isfinite(axes)) or not np.allclose(axes.T @ axes, np.eye(3), atol=_ORTHONORMAL_TOLERANCE):
            raise InputError(
                "The axes of the volume are not perpendicular (sheared or tilted acquisition); "
                "resample it to perpendicular axes first."
            )

    # -- geometry -----------------------------------------------------------------------------------------------
    @property
    def axes(self) -> np.ndarray:
        """(3, 3); columns are the unit vectors of the x, y, z index axes in LPS."""
        return np.asarray(self.direction).reshape(3, 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        return self.size[::-1]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing))

    @property
    def index_to_world_affine(self) -> np.ndarray:
        """(4, 4): voxel index (x, y, z, 1) -> LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    @property
    def world_to_index_affine(self) -> np.ndarray:
        """(4, 4): LPS mm -> continuous voxel index (x, y, z)."""
        return np.linalg.inv(self.index_to_world_affine)

    def index_to_world(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices (x, y, z) -> (..., 3) LPS mm."""
        affine = self.index_to_world_affine
        return np.asarray(index, dtype=float) @ affine[:3, :3].T + affine[:3, 3]

    def world_to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> (..., 3) continuous voxel indices (x, y, z)."""
        affine = self.world_to_index_affine
        return np.asarray(points_mm, dtype=float) @ affine[:3, :3].T + affine[:3, 3]

    def contains(self, points_mm: np.ndarray, margin_voxels: float = 0.5) -> np.ndarray:
        """(..., 3) LPS mm -> (...) bool: inside the voxels' outer faces (margin 0.5) or the centres' box (margin 0)."""
        index = self.world_to_index(points_mm)
        return np.all((index >= -margin_voxels) & (index <= np.asarray(self.size) - 1 + margin_voxels), axis=-1)

    def corners(self, margin_voxels: float = 0.5) -> np.ndarray:
        """(8, 3) LPS mm: the corners of the voxels' outer faces (margin 0.5) or of the centres' box (margin 0)."""
        low, high = -margin_voxels, np.asarray(self.size) - 1 + margin_voxels
        unit = np.array([[i, j, k] for k in (0, 1) for j in (0, 1) for i in (0, 1)])
        return self.index_to_world(low + unit * (high - low))

    def points(self) -> np.ndarray:
        """(z, y, x, 3) LPS mm of every voxel centre; for grids of working size only."""
        z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in self.shape), indexing="ij")
        return self.index_to_world(np.stack((x, y, z), axis=-1))

    def same_as(self, other: Grid, tolerance_mm: float = _GEOMETRY_TOLERANCE_MM) -> bool:
        """True where both lattices have the same voxel centres to within the tolerance."""
        return self.size == other.size and bool(np.allclose(self.corners(), other.corners(), atol=tolerance_mm))

    # -- derived grids ------------------------------------------------------------------------------------------
    def with_spacing(self, spacing_mm: float | tuple[float, float, float]) -> Grid:
        """The same box of space and the same axes at another spacing; the outer faces stay where they are or grow."""
        spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)
        extent = np.asarray(self.size) * np.asarray(self.spacing)
        size = np.maximum(1, np.ceil(extent / spacing - 1e-6)).astype(int)
        centre = self.index_to_world((np.asarray(self.size) - 1) / 2)
        origin = centre - self.axes @ (spacing * (size - 1) / 2)
        return Grid(tuple(size), tuple(spacing), tuple(origin), self.direction)

    def crop(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Grid:
        """The sub-lattice from voxel `start` (x, y, z; may be negative: padding) with `size` voxels."""
        return Grid(size, self.spacing, tuple(self.index_to_world(np.asarray(start))), self.direction)

    def crop_to(self, points_mm: np.ndarray, margin_mm: float = 0.0) -> tuple[Grid, tuple[slice, slice, slice]]:
        """The part of this lattice that holds the points plus a margin, and its slices (z, y, x) in this lattice.

        Raises InputError when no voxel of the lattice lies there.
        """
        index = self.world_to_index(np.asarray(points_mm).reshape(-1, 3))
        margin = margin_mm / np.asarray(self.spacing)
        low = np.maximum(0, np.floor(index.min(0) - margin)).astype(int)
        high = np.minimum(np.asarray(self.size) - 1, np.ceil(index.max(0) + margin)).astype(int)
        if np.any(high < low):
            raise InputError("The region lies outside the volume.")
        slices = tuple(slice(int(a), int(b) + 1) for a, b in zip(low[::-1], high[::-1], strict=True))
        return self.crop(tuple(low), tuple(high - low + 1)), slices

    def moved(self, motion: np.ndarray) -> Grid:
        """The same lattice after a rigid motion (4, 4) of the world."""
        origin = motion[:3, :3] @ np.asarray(self.origin) + motion[:3, 3]
        return Grid(self.size, self.spacing, tuple(origin), (motion[:3, :3] @ self.axes).ravel())

    def along_patient_axes(self) -> Grid:
        """The same lattice in the storage order nearest to LPS."""
        voxel = Grid((1, 1, 1), self.spacing, self.origin, self.direction).apply_to(sitk.Image([1] * 3, sitk.sitkUInt8))
        axes = Grid.of(sitk.DICOMOrient(voxel, "LPS")).axes
        order = np.abs(axes.T @ self.axes).argmax(axis=1)
        corners = self.corners(0.0)
        first = corners[(corners @ axes).sum(axis=1).argmin()]
        return Grid(np.asarray(self.size)[order], np.asarray(self.spacing)[order], first, axes.ravel())

    def snapped(self) -> Grid:
        """The same lattice to within about 0.01 mm, its geometry rounded.

        Two files of one scan, turned or stored as float32, differ in the last digits; here they become the same.
        """
        return Grid(
            self.size,
            round_to(self.spacing, _SNAP_SPACING_MM),
            round_to(self.origin, _SNAP_ORIGIN_MM),
            round_to(self.direction, _SNAP_DIRECTION),
        )

    @staticmethod
    def around(points_mm: np.ndarray, spacing_mm: float, margin_mm: float = 0.0, like: Grid | None = None) -> Grid:
        """An isotropic grid along the axes of `like` (by default LPS) that covers the points and a margin.

        Counted from the origin of `like`, its voxel centres lie on multiples of the spacing.
        """
        axes, origin = (np.eye(3), np.zeros(3)) if like is None else (like.axes, np.asarray(like.origin))
        points = (np.asarray(points_mm, dtype=float).reshape(-1, 3) - origin) @ axes  # along the axes
        low = np.floor((points.min(0) - margin_mm) / spacing_mm + 1e-6)
        high = np.ceil((points.max(0) + margin_mm) / spacing_mm - 1e-6)
        size = np.maximum(high - low + 1, 1).astype(int)
        return Grid(tuple(size), (spacing_mm,) * 3, tuple(origin + axes @ (low * spacing_mm)), axes.ravel())

    # -- ITK ----------------------------------------------------------------------------------------------------
    @staticmethod
    def of(image: sitk.Image) -> Grid:
        return Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def apply_to(self, image: sitk.Image) -> sitk.Image:
        """Give an image of the same size this geometry (in place) and return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


@dataclass(frozen=True)
class Volume:
    """An array (z, y, x) with its grid."""

    array: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"array of shape {self.array.shape} on a grid of shape {self.grid.shape} (z, y, x)")

    @staticmethod
    def from_image(image: sitk.Image) -> Volume:
        return Volume(sitk.GetArrayFromImage(image), Grid.of(image))

    def to_image(self) -> sitk.Image:
        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
        return self.grid.apply_to(sitk.GetImageFromArray(array))

    def along_patient_axes(self) -> Volume:
        """The same voxels in the storage order nearest to LPS, so that no result depends on how a file was stored."""
        if self.grid.along_patient_axes().same_as(self.grid):
            return self
        return Volume.from_image(sitk.DICOMOrient(self.to_image(), "LPS"))

    def resample_to(self, grid: Grid, *, outside: float = 0.0, antialias: bool = True) -> Volume:
        """Linear interpolation onto another grid, float32; voxels beyond this volume get `outside`.

        Where the target is coarser, the volume is first averaged over whole blocks of voxels and then smoothed with
        a Gaussian of sigma 0.35 * sqrt(target^2 - own^2) mm along each own axis, so that detail does not alias.
        """
        source = _average_blocks(self, grid) if antialias else self
        image = sitk.Cast(source.to_image(), sitk.sitkFloat32)
        if antialias:
            image = _smooth_for_spacing(image, source.grid, grid)
        identity = sitk.Transform(3, sitk.sitkIdentity)
        geometry = (grid.origin, grid.spacing, grid.direction)
        resampled = sitk.Resample(
            image, list(grid.size), identity, sitk.sitkLinear, *geometry, float(outside), sitk.sitkFloat32
        )
        return Volume(sitk.GetArrayFromImage(resampled), grid)


def round_to(values: np.ndarray | tuple[float, ...], step: float) -> np.ndarray:
    """Values rounded to multiples of a step, zero without a sign."""
    return np.round(np.asarray(values) / step) * step + 0.0


def _spacing_along(own: Grid, target: Grid) -> np.ndarray:
    """(3,) spacing of the target as met along each of our own axes (oblique targets mix theirs), mm."""
    return np.abs(own.axes.T @ target.axes) @ np.asarray(target.spacing)


def _average_blocks(volume: Volume, target: Grid) -> Volume:
    """Means of whole blocks that are no larger than the target's voxels; cheap in memory for a large CT.

    A remainder of less than one block is left out, half of it at either end.
    """
    factor = np.maximum(
        1, np.floor(_spacing_along(volume.grid, target) / np.asarray(volume.grid.spacing) + 1e-6)
    ).astype(int)
    factor = np.minimum(factor, volume.grid.size)
    if factor.max() == 1:
        return volume
    size = np.asarray(volume.grid.size) // factor
    start = (np.asarray(volume.grid.size) - size * factor) // 2
    fx, fy, fz = factor
    pieces = []
    for z in range(start[2], start[2] + size[2] * fz, fz):
        rows = volume.array[z : z + fz, start[1] : start[1] + size[1] * fy, start[0] : start[0] + size[0] * fx]
        rows = rows.mean(axis=0, dtype=np.float32)
        pieces.append(rows.reshape(size[1], fy, size[0], fx).mean(axis=(1, 3)))
    origin = volume.grid.index_to_world(start + (factor - 1) / 2)
    spacing = np.asarray(volume.grid.spacing) * factor
    return Volume(np.stack(pieces), Grid(tuple(size), tuple(spacing), tuple(origin), volume.grid.direction))


def _smooth_for_spacing(image: sitk.Image, own: Grid, target: Grid) -> sitk.Image:
    sigma = 0.35 * np.sqrt(np.maximum(_spacing_along(own, target) ** 2 - np.asarray(own.spacing) ** 2, 0.0))
    for axis in range(3):
        if sigma[axis] > 0.25 * own.spacing[axis] and own.size[axis] >= 4:
            image = sitk.RecursiveGaussian(
                image, float(sigma[axis]), False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis
            )
    return image


# -- reading ----------------------------------------------------------------------------------------------------
def read_volume(path: str | Path, what: str) -> Volume:
    """Read NIfTI, NRRD, MHA/MHD or a folder with one DICOM series.

    what: how messages name the input, "MRI" or "CT".
    Raises InputError: missing, unreadable, not 3-D, several series, slices missing, bad geometry or voxels.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what}: {path} does not exist; check the path.")
    with _without_itk_warnings():
        image = _read_dicom_files(dicom_files(path, what), what) if path.is_dir() else _read_file(path, what)
    volume = _to_volume(image, what)
    check_voxels(volume, what)
    return volume


@contextmanager
def _without_itk_warnings() -> Iterator[None]:
    """ITK prints its warnings straight to stderr; what matters of them is checked here and said in our words."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _read_file(path: Path, what: str) -> sitk.Image:
    _check_file(path, what)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"{what}: {path.name} cannot be read ({_itk_reason(error)}); export it again as NIfTI, NRRD or MHA."
        ) from error
    size = reader.GetSize()
    while len(size) > 3 and size[-1] == 1:  # a 4-D file of one frame is a 3-D volume
        size = size[:-1]
    if len(size) != 3 or reader.GetNumberOfComponents() != 1:
        shape = " x ".join(str(n) for n in reader.GetSize())
        raise InputError(
            f"{what}: {path.name} is not a single 3-D volume "
            f"({shape} voxels, {reader.GetNumberOfComponents()} value(s) each); export one time point or channel."
        )
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"{what}: {path.name} holds complex numbers; export the magnitude.")
    reader.SetExtractSize([*size, *([0] * (len(reader.GetSize()) - 3))])
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{what}: {path.name} cannot be read ({_itk_reason(error)}); export it again.") from error


def _itk_reason(error: RuntimeError) -> str:
    """The last sentence of an ITK exception, without source paths and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "unknown reason"
    if "orthonormal" in str(error).lower() or "orientation" in text.lower():
        return "its axes are sheared or not perpendicular"
    if "unable to determine imageio" in str(error).lower():
        return "not an image format that is known here"
    if "refusing to change spacing" in text.lower():
        return "its voxel spacing is not positive"
    if "no such file" in text.lower():
        return "its voxels are missing or incomplete"
    text = text.split("): ", 1)[-1]
    return text.rstrip(".")[:160]


def _to_volume(image: sitk.Image, what: str) -> Volume:
    try:
        grid = Grid.of(image)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    if min(grid.size) < 2:
        raise InputError(
            f"{what}: a volume of {' x '.join(map(str, grid.size))} voxels is a single slice; "
            "give the whole 3-D volume."
        )
    return Volume(sitk.GetArrayFromImage(image), grid)


def check_voxels(volume: Volume, what: str) -> None:
    """Raise InputError where the voxels are NaN, infinite or all the same."""
    low, high = np.inf, -np.inf
    for piece in _slabs(volume.array):
        if piece.dtype.kind == "f" and not np.isfinite(piece).all():
            raise InputError(f"{what}: the volume holds NaN or infinite voxels; export it again or replace them.")
        low, high = min(low, piece.min()), max(high, piece.max())
    if low == high:
        raise InputError(f"{what}: every voxel has the value {low:g}, the volume is empty; check the file.")


def check_hounsfield(ct: Volume) -> None:
    """Raise InputError where the values cannot be Hounsfield units.

    A CT of the body holds soft tissue (-200 to 300 HU) in a fair share of its voxels and values below -300 (air,
    lung or the padding round the field of view) or fat, and nothing far beyond what scanners store.
    """
    step = tuple(max(1, n // 64) for n in ct.array.shape)
    sample = np.asarray(ct.array[:: step[0], :: step[1], :: step[2]], dtype=np.float64)
    soft = np.mean((sample > -200) & (sample < 300))
    problem = None
    if sample.min() >= 0:
        problem = f"no value is below zero (range {sample.min():g} to {sample.max():g})"
    elif sample.max() < 0 or np.percentile(sample, 99.9) - np.percentile(sample, 0.1) < 50:
        problem = f"the range {sample.min():g} to {sample.max():g} holds no tissue"
    elif np.percentile(sample, 0.5) < -9000 or np.percentile(sample, 99.5) > 20000:
        problem = f"the range {sample.min():g} to {sample.max():g} is beyond any scanner's"
    elif soft < 0.02:
        problem = f"only {100 * soft:.1f} % of the voxels lie between -200 and 300, where soft tissue is"
    if problem:
        raise InputError(
            f"CT: the values cannot be Hounsfield units: {problem}; "
            "give the CT as exported by the scanner, and check that MRI and CT are not exchanged."
        )


def _slabs(array: np.ndarray, voxels: int = 8_000_000) -> Iterator[np.ndarray]:
    """Pieces of an array along its first axis, so that checks of a large CT need no large copies."""
    rows = max(1, voxels // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]


# -- what ITK passes over in silence ----------------------------------------------------------------------------
# It fills a truncated NIfTI with zeros, makes zero and negative spacings positive, and where the two orientations in
# a NIfTI header differ it quietly takes the one without shear. In a volume that guides a needle none of this is small.
_PIECE_BYTES = 1 << 20
_INCOMPLETE = "it is incomplete ({} of {} bytes); copy or export it again"
_META_IMAGE_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}

# Size, place and words of the magic (voxels in the same file, in another), then name, offset and form of each field:
# nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
_NIFTI_LAYOUTS = (
    (
        348,
        344,
        (b"n+1", b"ni1"),
        (
            ("dim", 40, "8h"),
            ("datatype", 70, "h"),
            ("bitpix", 72, "h"),
            ("pixdim", 76, "8f"),
            ("vox_offset", 108, "f"),
            ("sform_code", 254, "h"),
            ("sform", 280, "12f"),
        ),
    ),
    (
        540,
        4,
        (b"n+2", b"ni2"),
        (
            ("datatype", 12, "h"),
            ("bitpix", 14, "h"),
            ("dim", 16, "8q"),
            ("pixdim", 104, "8d"),
            ("vox_offset", 168, "q"),
            ("sform_code", 348, "i"),
            ("sform", 400, "12d"),
        ),
    ),
)


def _check_file(path: Path, what: str) -> None:
    """Raise InputError where a NIfTI, MHA or NRRD file is damaged or its header has no single right reading."""
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
            problem = _nifti_problem(path)
        elif name.endswith((".mha", ".mhd")):
            problem = _meta_image_problem(path)
        elif name.endswith((".nrrd", ".nhdr")):
            problem = _spacing_problem(_text_header(path, b"\n\n").get("spacings"))
        else:
            problem = None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        problem = "it is incomplete or damaged; copy or export it again"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error}); check the file and its permissions"
    if problem:
        raise InputError(f"{what}: {path.name} cannot be used: {problem}.")


def _nifti_problem(path: Path) -> str | None:
    """What is wrong with a NIfTI-1 or NIfTI-2 file; None also where it is no NIfTI, which is for ITK to say."""
    name = path.name
    if name.lower().endswith(".nii.gz") and path.with_name(name[:-3]).exists():
        # ITK would take the voxels of x.nii for those of x.nii.gz (InsightSoftwareConsortium/ITK#2243).
        return f"{name[:-3]} lies beside it and the two would be mixed up; move one of them away"
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        header = file.read(540)
    fields = _nifti_fields(header)
    if fields is None:
        return None
    dimensions = fields["dim"][0]
    spacing = fields["pixdim"][1 : 1 + min(3, max(0, dimensions))]
    problem = _spacing_problem(spacing)
    if problem is None and len(spacing) == 3 and fields["sform_code"][0] > 0:
        problem = _sform_problem(np.reshape(fields["sform"], (3, 4))[:, :3], spacing)
    if problem or not fields["single"]:
        return problem
    bytes_a_value = fields["bitpix"][0] // 8
    start = max(0, int(fields["vox_offset"][0]))
    stop = start + bytes_a_value * int(np.prod([max(1, n) for n in fields["dim"][1 : 1 + dimensions]], dtype=object))
    is_float = fields["datatype"][0] in (16, 64)
    number = np.dtype(f"{fields['order']}f{bytes_a_value}") if is_float and bytes_a_value in (4, 8) else None
    with path.open("rb") as file:
        pieces = _unpacked(file, zlib.MAX_WBITS | 16) if zipped else iter(lambda: file.read(_PIECE_BYTES), b"")
        present, finite = _measure(pieces, start, stop, number)
    if present < stop:
        return _INCOMPLETE.format(present, stop)
    # ITK would read them as 0.
    return None if finite else "it holds NaN or infinite voxels; export it again or replace them"


def _nifti_fields(header: bytes) -> dict[str, Any] | None:
    """The named fields of a NIfTI-1 or NIfTI-2 header as tuples, its byte order, and whether voxels follow it."""
    for order, (first, magic_offset, magics, layout) in itertools.product("<>", _NIFTI_LAYOUTS):
        magic = header[magic_offset : magic_offset + 3]
        if len(header) >= first and struct.unpack_from(order + "i", header)[0] == first and magic in magics:
            fields = {name: struct.unpack_from(order + form, header, offset) for name, offset, form in layout}
            return {**fields, "order": order, "single": magic == magics[0]}
    return None


def _sform_problem(columns_mm: np.ndarray, spacing: tuple[float, ...]) -> str | None:
    """columns_mm: (3, 3), the steps of one voxel along x, y, z in the header's affine."""
    length = np.linalg.norm(columns_mm, axis=0)
    if np.isfinite(length).all() and length.min() > 0:
        axes = columns_mm / length
        if not np.allclose(axes.T @ axes, np.eye(3), atol=_ORTHONORMAL_TOLERANCE):
            return (
                "its axes are not perpendicular (sheared or tilted acquisition); "
                "resample it to perpendicular axes first"
            )
    if not np.allclose(length, spacing, rtol=0.01, atol=1e-3):
        both = " and ".join("(" + ", ".join(f"{v:g}" for v in row) + ")" for row in (spacing, length))
        return f"its header gives two voxel spacings, {both} mm (pixdim and sform); export it again"
    return None


def _spacing_problem(spacing: tuple[float, ...] | str | None) -> str | None:
    try:
        values = [float(v) for v in (spacing.split() if isinstance(spacing, str) else spacing or ())]
    except ValueError:
        return None
    if all(np.isfinite(v) and v > 0 for v in values[:3]):
        return None
    return f"its voxel spacing ({', '.join(f'{v:g}' for v in values)}) mm is not positive; export it again"


def _meta_image_problem(path: Path) -> str | None:
    header = _text_header(path, b"ElementDataFile")
    problem = _spacing_problem(header.get("elementspacing"))
    if problem or header.get("elementdatafile") != "LOCAL":
        return problem
    start = int(header["length of header"])
    if header.get("compresseddata", "").lower() == "true":
        with path.open("rb") as file:
            file.seek(start)
            for _ in _unpacked(file, zlib.MAX_WBITS):
                pass
        return None
    bytes_a_value = _META_IMAGE_BYTES.get(header.get("elementtype", ""))
    try:
        values = np.prod([int(n) for n in header["dimsize"].split()], dtype=object)
        expected = start + bytes_a_value * values * int(header.get("elementnumberofchannels", 1))
    except (KeyError, TypeError, ValueError):
        return None  # for ITK to say
    present = path.stat().st_size
    return _INCOMPLETE.format(present, expected) if present < expected else None


def _text_header(path: Path, end: bytes) -> dict[str, str]:
    """`key = value` and `key: value` lines of a text header, keys in lower case, up to the line that ends it."""
    with path.open("rb") as file:
        start = file.read(1 << 16).replace(b"\r\n", b"\n")
        place = start.find(end)
        stop = len(start) if place < 0 else start.find(b"\n", place)
        # Only what was read without carriage returns can be measured; MetaIO writes none.
        header = {"length of header": str(stop + 1)}
    for line in start[: max(0, stop)].decode("latin-1").split("\n"):
        key, separator, value = line.partition("=" if end == b"ElementDataFile" else ":")
        if separator:
            header[key.strip().lower()] = value.strip()
    return header


def _measure(pieces: Iterable[bytes], start: int, stop: int, number: np.dtype | None) -> tuple[int, bool]:
    """Length of a stream, and whether all its floating-point numbers from byte `start` to `stop` are finite.

    number: their type, None for integers.
    """
    total, finite, rest = 0, True, b""
    for piece in pieces:
        if number is not None:
            values = rest + piece[max(0, start - total) : max(0, stop - total)]
            whole = len(values) - len(values) % number.itemsize
            finite = finite and bool(np.isfinite(np.frombuffer(values[:whole], number)).all())
            rest = values[whole:]
        total += len(piece)
    return total, finite


def _unpacked(file: BinaryIO, window_bits: int) -> Iterator[bytes]:
    """The rest of a file, decompressed piece by piece; its checksums are compared. Raises EOFError, zlib.error."""
    stream, packed = zlib.decompressobj(window_bits), file.read(_PIECE_BYTES)
    while packed:
        if stream.eof:
            # A gzip file may have several members; padding after the last one is no member.
            if not window_bits & 16 or not packed.strip(b"\0"):
                return
            stream = zlib.decompressobj(window_bits)
        yield stream.decompress(packed, 8 * _PIECE_BYTES)
        packed = stream.unconsumed_tail or stream.unused_data or file.read(_PIECE_BYTES)
    if not stream.eof:
        raise EOFError


# -- DICOM ------------------------------------------------------------------------------------------------------
def dicom_files(folder: str | Path, what: str, *, one_stack: bool = False) -> tuple[str, ...]:
    """The files of a folder's one DICOM series, in the order of their slices: along the normal, as `read_dicom` does.

    one_stack: take all images for one series whatever their identifiers say (anonymising has given every image a series
    of its own in some public data sets). Raises InputError: no images, several series.
    """
    folder = Path(folder)
    series = {}
    with _without_itk_warnings():
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
            series[uid] = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
    if not series:
        raise InputError(
            f"{what}: the folder {folder.name} holds no DICOM images; give the folder of one series, or a file."
        )
    if len(series) == 1:
        return tuple(next(iter(series.values())))
    if one_stack:
        return _along_normal([file for files in series.values() for file in files])
    listing = "; ".join(_describe_series(files) for files in series.values())
    raise InputError(
        f"{what}: the folder {folder.name} holds {len(series)} DICOM series ({listing}); "
        "put the one to use in a folder of its own."
    )


def read_dicom(files: tuple[str, ...], what: str) -> Volume:
    """The volume of the files that `dicom_files` gave, checked as `read_volume` does. Raises InputError."""
    with _without_itk_warnings():
        volume = _to_volume(_read_dicom_files(files, what), what)
    check_voxels(volume, what)
    return volume


def _along_normal(files: list[str]) -> tuple[str, ...]:
    headers = [_dicom_header(file) for file in files]
    normal = np.asarray(headers[0].GetDirection()).reshape(3, 3)[:, 2]
    order = np.argsort([np.asarray(header.GetOrigin()) @ normal for header in headers], kind="stable")
    return tuple(files[k] for k in order)


def _read_dicom_files(files: tuple[str, ...], what: str) -> sitk.Image:
    if len(files) > 1:
        _check_slice_positions(files, what)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    try:
        image = reader.Execute() if len(files) > 1 else sitk.ReadImage(files[0])
    except RuntimeError as error:
        raise InputError(f"{what}: the DICOM series cannot be read ({_itk_reason(error)}); export it again.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{what}: the DICOM series is not a single 3-D volume of grey values; export the original series."
        )
    return image


def _dicom_header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _describe_series(files: tuple[str, ...]) -> str:
    """Number, modality and size: what tells series apart without naming the patient."""
    reader = _dicom_header(files[0])

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else "?"

    return f"series {tag('0020|0011')}, {tag('0008|0060')}, {len(files)} image(s)"


def _check_slice_positions(files: tuple[str, ...], what: str) -> None:
    """Raise InputError where slices overlap, are missing or are unevenly spaced along the normal."""
    positions, normal = [], None
    for file in files:
        reader = _dicom_header(file)
        origin, direction = np.asarray(reader.GetOrigin()), np.asarray(reader.GetDirection()).reshape(3, 3)
        if normal is None:
            normal = direction[:, 2]
        if not np.allclose(direction[:, 2], normal, atol=1e-3):
            raise InputError(
                f"{what}: the DICOM slices are not parallel (a localizer, or several stacks); give one stack."
            )
        positions.append(origin)
    positions = np.asarray(positions)
    along = np.sort(positions @ normal)
    gaps = np.diff(along)
    typical = float(np.median(gaps))
    if typical <= 0.05:
        raise InputError(
            f"{what}: several DICOM images lie at one position (several time points or echoes); give one volume."
        )
    tolerance = 0.05 + _SLICE_GAP_TOLERANCE * typical
    bad = np.flatnonzero(np.abs(gaps - typical) > tolerance)
    if bad.size:
        missing = int(np.sum(np.round(gaps[bad] / typical) - 1))
        raise InputError(
            f"{what}: the DICOM slices are not evenly spaced: {gaps[bad[0]]:.2f} mm after slice {bad[0] + 1} "
            f"instead of {typical:.2f} mm"
            + (f", {missing} slice(s) missing" if missing > 0 else "")
            + "; export the complete series."
        )
    offset = positions[np.argsort(positions @ normal)]
    sideways = offset - offset[0] - np.outer((offset - offset[0]) @ normal, normal)
    if np.abs(sideways).max() > max(1.0, 0.02 * (along[-1] - along[0])):
        raise InputError(
            f"{what}: the DICOM slices are shifted against each other (gantry tilt); "
            "resample the series to perpendicular axes first."
        )


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write with compression; the format follows the name (.nii.gz, .nrrd, .mha)."""
    sitk.WriteImage(volume.to_image(), str(path), useCompression=True, compressionLevel=1)
