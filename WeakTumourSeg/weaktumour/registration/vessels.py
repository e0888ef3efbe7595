"""The liver's vessels as an image that MRI and CT have in common, whatever the contrast of either.

Deep in the liver nothing else tells where a point is. Self-similarity (MIND) looks at a few voxels, and where tissue is
flat it gives noise as large a say as a vessel has elsewhere. Here the liver is compared with its own surroundings on a
larger scale, in units of its noise. Vessels stand out to one side, brighter or darker: to which is told by the pair, as
the two sides that agree best once the images are roughly aligned.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from .preparation import Scan

_FINE_MM, _COARSE_MM = 1.8, 12.0  # sigma of the smoothing whose difference is taken
_DEPTH_MM = 7.0  # nearer to the liver's surface partial volume stands out
_LESION_MM = 3.0
_NOISE = 1.0  # in robust standard deviations: what stands out less is none
_LEAST_RANGE = 2.0  # a liver without vessels does not make some of its noise
_FEWEST_VOXELS = 500
_LEAST_AGREEMENT = 0.15  # correlation; below it nothing says that the same is seen in both


def standing_out(scan: Scan) -> np.ndarray | None:
    """(2, z, y, x) float32 in [0, 1] on the scan's grid: what is brighter and what is darker than the liver round it.

    0 outside the liver and in lesions; None where the liver is unknown, flat or too small.
    """
    if scan.liver_distance_mm is None:
        return None
    inside = scan.liver_distance_mm < -_DEPTH_MM
    if scan.lesion_distance_mm is not None:
        inside &= scan.lesion_distance_mm > _LESION_MM
    if int(inside.sum()) < _FEWEST_VOXELS:
        return None
    weight, spacing = inside.astype(np.float32), scan.grid.spacing[0]

    def smoothed(sigma_mm: float) -> np.ndarray:
        # Normalised convolution: what lies outside has no say.
        return _gauss(scan.value * weight, sigma_mm / spacing) / np.maximum(_gauss(weight, sigma_mm / spacing), 1e-3)

    contrast = (smoothed(_FINE_MM) - smoothed(_COARSE_MM))[inside]
    contrast -= np.median(contrast)
    spread = 1.4826 * float(np.median(np.abs(contrast)))
    if spread < 1e-6:
        return None
    result = np.zeros((2, *weight.shape), dtype=np.float32)
    for side, sign in enumerate((1.0, -1.0)):
        found = sign / spread * contrast - _NOISE
        result[side][inside] = np.clip(found / max(float(np.percentile(found, 99.5)), _LEAST_RANGE), 0, 1)
    return result


def agreeing_sides(fixed: torch.Tensor, moving: torch.Tensor, where: torch.Tensor) -> tuple[int, int, float] | None:
    """Which side of each image shows the vessels, and the correlation of the two; None where no two sides agree.

    fixed, moving: (1, 2, z, y, x), see `standing_out`, roughly aligned. where: bool (z, y, x).
    """
    if int(where.sum()) < 2:
        return None
    values = torch.cat((fixed[0][:, where], moving[0][:, where]))
    values = values - values.mean(1, keepdim=True)
    values = values / values.norm(dim=1, keepdim=True).clamp(min=1e-9)
    correlation = values[:2] @ values[2:].T
    best = int(correlation.argmax())
    agreement = float(correlation.flatten()[best])
    return (best // 2, best % 2, agreement) if agreement > _LEAST_AGREEMENT else None


def _gauss(array: np.ndarray, sigma: float) -> np.ndarray:
    """sigma in voxels."""
    width = 2 * int(np.ceil(3 * sigma)) + 1
    image = sitk.DiscreteGaussian(sitk.GetImageFromArray(np.ascontiguousarray(array, np.float32)), sigma**2, width)
    return sitk.GetArrayFromImage(image)
