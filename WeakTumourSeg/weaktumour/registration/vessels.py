"""The liver's vessels as an image that MRI and CT have in common, whatever the contrast of either.

Deep in the liver nothing else tells where a point is. Self-similarity (MIND) looks at a few voxels, and where tissue is
flat it gives noise as large a say as a vessel has elsewhere. Here the liver is compared with its own surroundings on a
larger scale, in units of its noise. Vessels stand out to one side, brighter or darker: to which is told by the pair, as
the two sides that agree best once the images are roughly aligned.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from .preparation import Scan

_FINE_MM, _COARSE_MM = 1.8, 12.0  # sigma of the smoothing whose difference is taken
_DEPTH_MM = 7.0  # nearer to the liver's surface partial volume stands out
_LESION_MM = 3.0
_NOISE = 1.0  # in robust standard deviations: what stands out less is none
_LEAST_RANGE = 2.0  # a liver without vessels does not make some of its noise
_FEWEST_VOXELS = 500
_SHIFT_MM = 10.0  # beyond what alignment may be off by a vessel is another one
_STANDS_OUT = 5.0  # standard deviations over the shifts; what is not the same in both stays below


def standing_out(scan: Scan) -> np.ndarray | None:
    """(2, z, y, x) float32 in [0, 1] on the scan's grid: what is brighter and what is darker than the liver round it.

    0 outside the liver and in lesions; None where the liver is unknown, flat or too small.
    """
    if scan.liver_distance_mm is None:
        return None
    inside = (scan.liver_distance_mm < -_DEPTH_MM) & (scan.inside > 0.5)
    if scan.lesion_distance_mm is not None:
        inside &= scan.lesion_distance_mm > _LESION_MM
    if int(inside.sum()) < _FEWEST_VOXELS:
        return None
    spacing = scan.grid.spacing[0]
    box = _around(inside, _kernel_radius(_COARSE_MM / spacing))
    weight, value = inside[box].astype(np.float32), scan.value[box]

    def smoothed(sigma_mm: float) -> np.ndarray:
        # Normalised convolution: what lies outside has no say.
        return _gauss(value * weight, sigma_mm / spacing) / np.maximum(_gauss(weight, sigma_mm / spacing), 1e-3)

    contrast = (smoothed(_FINE_MM) - smoothed(_COARSE_MM))[inside[box]]
    contrast -= np.median(contrast)
    spread = 1.4826 * float(np.median(np.abs(contrast)))
    if spread < 1e-6:
        return None
    result = np.zeros((2, *inside.shape), dtype=np.float32)
    for side, sign in enumerate((1.0, -1.0)):
        found = sign / spread * contrast - _NOISE
        result[side][inside] = np.clip(found / max(float(np.percentile(found, 99.5)), _LEAST_RANGE), 0, 1)
    return result


def agreeing_sides(fixed: torch.Tensor, moving: torch.Tensor, spacing_mm: float) -> tuple[int, int, float] | None:
    """Which side of each image shows the vessels, and the correlation of the two; None where no two sides agree.

    Two sides agree where their correlation, at the best of the small shifts that alignment may be off by, stands out
    from that at all others: noise, and what hangs together with the liver's shape alone, correlates anywhere alike.
    fixed, moving: (1, 2, z, y, x) in [0, 1], see `standing_out`, roughly aligned on one lattice of this spacing.
    """
    shown = fixed[0].amax(0) > 0
    if int(shown.sum()) < 2:
        return None
    index = shown.nonzero()
    box = tuple(slice(int(low), int(high) + 1) for low, high in zip(index.amin(0), index.amax(0), strict=True))
    step = int(np.ceil(_SHIFT_MM / spacing_mm))
    reach = 2 * step
    ours, others = fixed[0][(slice(None), *box)], F.pad(moving[0], (reach,) * 6)

    def correlation(shift: tuple[int, ...]) -> torch.Tensor:
        place = tuple(slice(span.start + reach + s, span.stop + reach + s) for span, s in zip(box, shift, strict=True))
        theirs = others[(slice(None), *place)]
        where = (ours.amax(0) > 0) | (theirs.amax(0) > 0)
        values = torch.cat((ours[:, where], theirs[:, where]))
        values = values - values.mean(1, keepdim=True)
        values = values / values.norm(dim=1, keepdim=True).clamp(min=1e-9)
        return (values[:2] @ values[2:].T).flatten()

    near = [correlation(shift) for shift in product((-1, 0, 1), repeat=3)]
    far = [correlation(tuple(step * s for s in shift)) for shift in product(range(-2, 3), repeat=3)
           if max(map(abs, shift)) == 2]  # fmt: skip
    best, elsewhere = torch.stack(near).amax(0), torch.stack(far)
    stands_out = (best - elsewhere.mean(0)) / elsewhere.std(0).clamp(min=1e-6)
    sides = int(stands_out.argmax())
    if float(stands_out[sides]) < _STANDS_OUT:
        return None
    return sides // 2, sides % 2, float(best[sides])


def _around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box round what is set, so many voxels wider at each face."""
    index = np.argwhere(mask)
    return tuple(
        slice(max(0, low - margin), high + 1 + margin) for low, high in zip(index.min(0), index.max(0), strict=True)
    )


def _kernel_radius(sigma: float) -> int:
    return int(np.ceil(3 * sigma))


def _gauss(array: np.ndarray, sigma: float) -> np.ndarray:
    """sigma in voxels."""
    width = 2 * _kernel_radius(sigma) + 1
    image = sitk.DiscreteGaussian(sitk.GetImageFromArray(np.ascontiguousarray(array, np.float32)), sigma**2, width)
    return sitk.GetArrayFromImage(image)
