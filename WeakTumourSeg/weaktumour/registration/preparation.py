"""From the user's volumes to what registration compares: windowed, on isotropic grids, with masks.

The grids run along each volume's own axes: an oblique CT costs no more than a straight one, and turning the world turns
the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from ..deformation import Affine
from ..volumes import Grid, Volume

CT_WINDOW_HU = (-160.0, 240.0)
BODY_THRESHOLD_HU = -300.0
AIR_HU = -1000.0
# Distances to the liver surface are cut off here: far away they say nothing about it.
DISTANCE_LIMIT_MM = 30.0


@dataclass(frozen=True)
class Scan:
    """One image made ready: value in [0, 1], body mask, whole-liver signed distance (negative inside) where known.

    grid: isotropic, along the volume's axes. All arrays are (z, y, x) float32 on it.
    inside: 1 where the original volume has voxels. liver_distance_mm, lesion_distance_mm: signed, negative inside;
    None where unknown or absent.
    """

    grid: Grid
    value: np.ndarray
    body: np.ndarray
    inside: np.ndarray
    liver_distance_mm: np.ndarray | None
    lesion_distance_mm: np.ndarray | None


def prepare_ct(ct: Volume, spacing_mm: float, liver: Volume | None) -> Scan:
    ct = ct.along_patient_axes()
    grid = Grid.around(ct.grid.corners(), spacing_mm, like=ct.grid)
    coarse = ct.resample_to(grid, outside=AIR_HU)
    low, high = CT_WINDOW_HU
    value = np.clip((coarse.array - low) / (high - low), 0, 1)
    body = _largest_body(coarse.array > BODY_THRESHOLD_HU)
    inside = _inside(ct, coarse).astype(np.float32)
    return Scan(grid, value, body, inside, signed_distance(liver, grid, inside), None)


def prepare_mr(mr: Volume, spacing_mm: float, liver: Volume | None, lesion: Volume | None) -> Scan:
    mr = mr.along_patient_axes()
    grid = Grid.around(mr.grid.corners(), spacing_mm, like=mr.grid)
    coarse = mr.resample_to(grid, outside=float(mr.array.min()))
    inside = _inside(mr, coarse).astype(np.float32)
    values = coarse.array[inside > 0.5]
    threshold = _otsu(values)
    body = _largest_body((coarse.array > 0.5 * threshold) & (inside > 0.5))
    within = coarse.array[body > 0.5]
    low, high = np.percentile(within if within.size else values, (1, 99.5))
    value = np.clip((coarse.array - low) / max(high - low, 1e-6), 0, 1)
    lesions = signed_distance(lesion, grid, inside, threshold=0.2)
    return Scan(grid, value, body, inside, signed_distance(liver, grid, inside), lesions)


def _inside(volume: Volume, coarse: Volume) -> np.ndarray:
    """1 where the volume has voxels that were measured.

    Padding is left out: voxels of exactly the lowest value that hang together with the volume's faces, as resampled or
    circular images have them. Its edge is no anatomy.
    """
    grid = coarse.grid
    ones = volume.grid.apply_to(sitk.Image(list(volume.grid.size), sitk.sitkUInt8) + 1)
    same, how = sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor
    inside = sitk.Resample(ones, list(grid.size), same, how, grid.origin, grid.spacing, grid.direction, 0.0)
    inside = sitk.GetArrayFromImage(inside)
    lowest = float(volume.array.min())
    padding = (coarse.array <= lowest + 1e-3 * max(1.0, abs(lowest))) | (inside == 0)
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(padding.astype(np.uint8))))
    faces = [parts.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
    touching = np.unique(np.concatenate([face.ravel() for face in faces]))
    return (inside > 0) & ~np.isin(parts, touching[touching > 0])


def _otsu(values: np.ndarray) -> float:
    sample = values[:: max(1, values.size // 200_000)]
    image = sitk.GetImageFromArray(np.clip(sample, *np.percentile(sample, (0.5, 99)))[None].astype(np.float32))
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(image)
    return float(otsu.GetThreshold())


def _largest_body(mask: np.ndarray) -> np.ndarray:
    """The largest part, its holes (lungs, bowel gas) filled slice by slice along z; float32.

    An opening first frees it from the table; components and holes need only every second voxel.
    """
    opened = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(mask.astype(np.uint8)), [1, 1, 1])
    image = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(opened)[::2, ::2, ::2])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(image), sortByObjectSize=True)
    body = sitk.GetArrayFromImage(sitk.Equal(parts, 1))
    for z in range(body.shape[0]):
        body[z] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(body[z])))
    for axis, size in enumerate(mask.shape):
        body = np.repeat(body, 2, axis=axis).take(range(size), axis=axis)
    return body.astype(np.float32)


def signed_distance(
    mask: Volume | None, grid: Grid, inside: np.ndarray, threshold: float = 0.5
) -> np.ndarray | None:  # fmt: skip
    """Signed distance to the mask's surface in mm, cut off at the limit, on the working grid.

    mask: bool, or a probability whose surface is at 0.5. inside: see `Scan`; where the image ends nothing is known, so
    a liver that is cut there has no surface there. threshold: share of a working voxel that must be mask; low keeps
    small objects.
    """
    if mask is None or not mask.array.any():
        return None
    array = mask.array.astype(np.float32 if mask.array.dtype.kind == "f" else np.uint8)
    share = Volume(array, mask.grid).along_patient_axes().resample_to(grid).array
    within = (share >= min(threshold, float(share.max()))) & (inside > 0.5)
    if not within.any():
        return None
    # The outermost voxels are only partly in the image, and so are their shares.
    covered = sitk.BinaryErode(
        sitk.GetImageFromArray((inside > 0.5).astype(np.uint8)), [1] * 3, sitk.sitkBall, 0.0, 1.0, False
    )
    beyond = (share < threshold) & (sitk.GetArrayFromImage(covered) > 0) & ~within
    distance = _distance_to(within, grid) - _distance_to(beyond, grid)
    return np.clip(distance, -DISTANCE_LIMIT_MM, DISTANCE_LIMIT_MM).astype(np.float32)


def surface_known(scan: Scan) -> np.ndarray:
    """(z, y, x) bool: where the liver's nearest surface is told; elsewhere one beyond the image's end may be nearer."""
    seen = np.pad(scan.inside > 0.5, 1)
    to_end = _distance_to(~seen, scan.grid)[1:-1, 1:-1, 1:-1]
    return np.abs(scan.liver_distance_mm) < to_end


def _distance_to(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """mm to the nearest voxel that is set, 0 in it; beyond the limit where there is none."""
    if not mask.any():
        return np.full(mask.shape, 2 * DISTANCE_LIMIT_MM, dtype=np.float32)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(grid.spacing)
    return np.maximum(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True)), 0)


def unlike_liver(value: torch.Tensor, core: torch.Tensor, pull: float) -> torch.Tensor:
    """How much a CT voxel speaks against liver: 1 for fat, lung or bone, -pull where it looks like this liver.

    value: windowed CT; core: voxels that the alignment puts deep inside the liver. The MRI's liver is known, the CT's
    is not, but the CT tells liver from fat and air. Without this, bright fat round the liver on the MRI passes for
    liver, and the liver shrinks on the CT by the fat's thickness.
    """
    values = value[core]
    if values.numel() < 50:
        return torch.zeros_like(value)
    centre = values.median()
    spread = 1.48 * (values - centre).abs().median()
    width = torch.clamp(2 * spread, min=25.0 / (CT_WINDOW_HU[1] - CT_WINDOW_HU[0]))
    return 1 - (1 + pull) * torch.exp(-0.5 * ((value - centre) / width) ** 2)


def tensor(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(z, y, x) -> (1, 1, z, y, x) float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None].to(device)


def resample_affine(
    image: torch.Tensor, own: Grid, target: Grid, target_to_own: Affine, *, outside: float | None = None
) -> torch.Tensor:
    """image (1, c, z, y, x) on `own`, read at target_to_own(voxel centres of `target`), trilinear.

    outside: the value beyond `own`; None continues the border.
    """
    index = own.world_to_index_affine @ target_to_own.matrix @ target.index_to_world_affine  # target index -> own index
    z, y, x = target.shape
    # grid_sample's affine_grid wants both index spaces normalised to [-1, 1] with align_corners=True.
    to_index = np.diag([*(max(n - 1, 1) / 2 for n in (x, y, z)), 1.0])
    to_index[:3, 3] = [(n - 1) / 2 for n in (x, y, z)]
    own_last = [max(n - 1, 1) for n in own.size]
    to_unit = np.diag([*(2 / n for n in own_last), 1.0])
    to_unit[:3, 3] = -1
    theta = torch.tensor((to_unit @ index @ to_index)[None, :3], dtype=torch.float32, device=image.device)
    coordinates = F.affine_grid(theta, [1, 1, z, y, x], align_corners=True)
    if outside is None:
        return F.grid_sample(image, coordinates, mode="bilinear", padding_mode="border", align_corners=True)
    return (
        F.grid_sample(image - outside, coordinates, mode="bilinear", padding_mode="zeros", align_corners=True) + outside
    )
