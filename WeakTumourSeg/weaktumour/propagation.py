"""Labels and image of the MRI through the transform onto the exact CT grid, each resampled once.

Every label is carried as a smooth boundary (`labels.boundary_level_set`), not as blocks of voxels, and read at each CT
voxel's place in the MRI. What the transform alone should make of a tumour's volume is worked out beside it, so that a
tumour that changes for another reason (cut off by the CT's edge, too small for its voxels) is noticed and said.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
import torch

from .deformation import DisplacementField, sample
from .labels import LIVER, OTHER, TUMOUR, Label, LabelMap, boundary_level_set
from .progress import Monitor
from .volumes import Grid, Volume

# A tumour's volume may differ by this share from what the Jacobian explains before the result says so.
VOLUME_TOLERANCE = 0.15
_SLAB_VOXELS = 1_500_000
_CHECKED_POINTS = 3000


@dataclass(frozen=True)
class Carried:
    """What became of one label. inside_ct_fraction: share of its MRI volume that maps into the CT."""

    label: Label
    mr_volume_mm3: float
    ct_volume_mm3: float
    jacobian_ratio: float
    inside_ct_fraction: float
    warnings: list[str] = field(default_factory=list)

    @property
    def volume_ratio(self) -> float:
        return self.ct_volume_mm3 / self.mr_volume_mm3


@dataclass(frozen=True)
class Propagation:
    """labels: on the exact CT grid, values as in the MRI."""

    labels: LabelMap
    carried: dict[int, Carried]


@dataclass(frozen=True)
class _Boundary:
    """A label's level set on its crop of the MRI grid, and the region of the CT it can reach."""

    label: Label
    level: torch.Tensor  # (1, 1, z, y, x)
    grid: Grid
    region: tuple[slice, slice, slice] | None


def propagate_labels(labels: LabelMap, transform: DisplacementField, ct_grid: Grid, monitor: Monitor) -> Propagation:
    """Carry every label onto the CT grid. transform: CT point -> MRI point.

    Where labels meet, tumour wins over liver and liver over other; among tumours the deeper one.
    """
    array = np.zeros(ct_grid.shape, dtype=labels.volume.array.dtype)
    boundaries = []
    for label in labels.labels:
        # The liver is carried with its tumours filled in, so that no gap opens between them.
        single_liver = label.role == LIVER and len(labels.of_role(LIVER)) == 1
        mask = labels.mask(LIVER, TUMOUR) if single_liver else labels.volume.array == label.value
        boundaries.append(_boundary(label, mask, labels.volume.grid, transform, ct_grid))
        monitor.check()
    for role in (OTHER, LIVER, TUMOUR):
        group = [b for b in boundaries if b.label.role == role and b.region is not None]
        _paint(array, group, transform, ct_grid, monitor)
    carried = {}
    for label in labels.labels:
        carried[label.value] = _account(label, labels, array, transform, ct_grid)
        monitor.check()
    return Propagation(LabelMap(Volume(array, ct_grid), labels.labels), carried)


def _boundary(label: Label, mask: np.ndarray, grid: Grid, transform: DisplacementField, ct_grid: Grid) -> _Boundary:
    index = np.argwhere(mask)
    low, high = index.min(0) - 3, index.max(0) + 4  # three voxels of background round the label
    size = high - low
    crop = grid.crop(tuple(low[::-1]), tuple(size[::-1]))
    piece = np.zeros(size, dtype=bool)
    piece[tuple((index - low).T)] = True
    level = torch.from_numpy(boundary_level_set(piece, grid.spacing))[None, None]
    surface = crop.index_to_world(np.argwhere(piece & (level[0, 0].numpy() > -max(grid.spacing) * 2))[:, ::-1])
    surface = surface[:: max(1, len(surface) // 4000)]
    try:
        _, region = ct_grid.crop_to(
            transform.inverse_points(surface, tolerance_mm=0.1), margin_mm=3 * max(grid.spacing)
        )
    except ValueError:
        region = None  # wholly outside the CT
    return _Boundary(label, level, crop, region)


def _paint(
    array: np.ndarray, group: list[_Boundary], transform: DisplacementField, ct_grid: Grid, monitor: Monitor
) -> None:
    """Write each label of the group where its level is negative and the lowest of the group."""
    if not group:
        return
    low = np.min([[s.start for s in b.region] for b in group], axis=0)
    high = np.max([[s.stop for s in b.region] for b in group], axis=0)
    rows = max(1, _SLAB_VOXELS // int(np.prod((high - low)[1:])))
    field_mm = torch.from_numpy(np.moveaxis(transform.displacement_mm, -1, 0).astype(np.float32))[None]
    for z in range(low[0], high[0], rows):
        box = (slice(z, min(z + rows, high[0])), slice(low[1], high[1]), slice(low[2], high[2]))
        grid = ct_grid.crop((box[2].start, box[1].start, box[0].start), tuple(s.stop - s.start for s in box[::-1]))
        moving = _moved_points(grid, transform.grid, field_mm)
        lowest = torch.zeros(grid.shape)
        value = array[box]
        for boundary in group:
            level = sample(boundary.level, _to_index(moving, boundary.grid))[0, 0]
            wins = level < lowest
            lowest = torch.where(wins, level, lowest)
            value[wins.numpy()] = boundary.label.value
        monitor.check()


def _moved_points(grid: Grid, field_grid: Grid, field_mm: torch.Tensor) -> torch.Tensor:
    """(1, 3, z, y, x) float32 LPS mm in the MRI of each voxel centre of `grid`."""
    points = torch.from_numpy(np.moveaxis(grid.points(), -1, 0))[None]
    return points + sample(field_mm, _to_index(points, field_grid)).double()


def _to_index(points: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(1, 3, z, y, x) LPS mm -> continuous voxel index on a grid, float32."""
    affine = torch.from_numpy(grid.world_to_index_affine)
    index = torch.einsum("ij,bjzyx->bizyx", affine[:3, :3], points) + affine[:3, 3].reshape(1, 3, 1, 1, 1)
    return index.float()


def _account(label: Label, labels: LabelMap, array: np.ndarray, transform: DisplacementField, ct_grid: Grid) -> Carried:
    """Volumes before and after, and whether the transform explains the change; restores a tumour that vanished."""
    grid = labels.volume.grid
    index = np.argwhere(labels.volume.array == label.value)
    chosen = index[:: max(1, len(index) // _CHECKED_POINTS)]
    fixed = transform.inverse_points(grid.index_to_world(chosen[:, ::-1]))
    inside = float(ct_grid.contains(fixed).mean())
    ratio = float(np.mean(1.0 / np.maximum(_point_jacobian(transform, fixed), 1e-3)))
    warnings: list[str] = []
    voxels = int(np.count_nonzero(array == label.value))
    if label.role == TUMOUR and voxels == 0 and inside > 0:
        place = np.round(ct_grid.world_to_index(fixed[ct_grid.contains(fixed)].mean(0))).astype(int)
        place = np.clip(place, 0, np.asarray(ct_grid.size) - 1)
        array[tuple(place[::-1])] = label.value
        voxels = 1
        warnings.append(f"{label.name} is smaller than a CT voxel; its place is marked by one voxel.")
    before, after = len(index) * grid.voxel_volume_mm3, voxels * ct_grid.voxel_volume_mm3
    if label.role == TUMOUR:
        if inside == 0:
            warnings.append(f"{label.name} lies outside the CT; it is not in the result.")
        elif inside < 0.995:
            warnings.append(f"{label.name} is cut off by the edge of the CT: {100 * inside:.0f} % of it lies inside.")
        if inside > 0 and abs(after / (before * ratio * inside) - 1) > VOLUME_TOLERANCE:
            warnings.append(
                f"{label.name} has {after / before:.2f} of its MRI volume on the CT, while the transform explains "
                f"{ratio * inside:.2f}; check its outline."
            )
    return Carried(label, before, after, ratio, inside, warnings)


def _point_jacobian(transform: DisplacementField, points: np.ndarray, step_mm: float = 1.0) -> np.ndarray:
    """(n,) determinant of d(moving)/d(fixed) at fixed points (n, 3), central differences."""
    columns = [
        (transform.transform_points(points + step) - transform.transform_points(points - step)) / (2 * step_mm)
        for step in np.eye(3) * step_mm
    ]
    return np.linalg.det(np.stack(columns, axis=-1))


def resample_mr(mr: Volume, transform: DisplacementField, ct_grid: Grid) -> Volume:
    """The MRI on the exact CT grid, linear interpolation, in the MRI's own voxel type; its minimum beyond its edge."""
    image = mr.to_image()
    resampled = sitk.Resample(
        image,
        list(ct_grid.size),
        transform.to_sitk(),
        sitk.sitkLinear,
        ct_grid.origin,
        ct_grid.spacing,
        ct_grid.direction,
        float(mr.array.min()),
        image.GetPixelID(),
    )
    return Volume(sitk.GetArrayFromImage(resampled), ct_grid)
