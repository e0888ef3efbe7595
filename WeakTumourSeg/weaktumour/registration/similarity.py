"""What MRI and CT have in common: the self-similarity of their neighbourhoods, whatever the contrast.

MIND-SSC: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
MICCAI 2013. Written on slices of a padded array, so that odd sizes are right; the caller works on isotropic grids, so
that neighbours are at equal distance in millimetres along every axis.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F

_SIX_NEIGHBOURS = ((0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0))
# The pairs of face neighbours that share an edge (squared distance 2): twelve, opposite neighbours left out.
_PAIRS = tuple(
    (a, b) for a, b in combinations(_SIX_NEIGHBOURS, 2) if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2
)
CHANNELS = len(_PAIRS)


def mind_ssc(image: torch.Tensor, *, dilation: int = 2, radius: int = 1) -> torch.Tensor:
    """Self-similarity context of an image on an isotropic grid.

    image: (1, 1, z, y, x), any intensity scale. dilation: distance in voxels from the centre to the compared patches;
    larger sees larger structures. radius: patches are cubes of 2 * radius + 1 voxels.
    Returns (1, 12, z, y, x) in (0, 1].
    """
    size = image.shape[2:]
    padded = F.pad(image, (dilation,) * 6, mode="replicate")

    def shifted(offset: tuple[int, int, int]) -> torch.Tensor:
        z, y, x = (dilation * (1 + o) for o in offset)
        return padded[:, :, z : z + size[0], y : y + size[1], x : x + size[2]]

    distance = torch.empty((1, CHANNELS, *size), dtype=image.dtype, device=image.device)
    for channel, (a, b) in enumerate(_PAIRS):
        distance[:, channel : channel + 1] = _box_mean((shifted(a) - shifted(b)) ** 2, radius)
    distance -= distance.amin(1, keepdim=True)
    # The mean over the context is the local noise estimate; bounded, so that flat regions do not blow up noise.
    variance = distance.mean(1, keepdim=True)
    typical = variance.mean()
    variance = variance.clamp(min=float(typical) * 1e-2 + 1e-12, max=float(typical) * 1e3 + 1e-12)
    return distance.div_(variance).neg_().exp_()


def _box_mean(image: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean over cubes of 2 * radius + 1 voxels, the border continued; sums of shifted slices, axis by axis."""
    for axis in (2, 3, 4):
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = radius
        padded, size = F.pad(image, padding, mode="replicate"), image.shape[axis]
        image = padded.narrow(axis, 0, size).clone()
        for shift in range(1, 2 * radius + 1):
            image += padded.narrow(axis, shift, size)
    return image.div_((2 * radius + 1) ** 3)


def erode(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    """mask (1, 1, z, y, x) in [0, 1] -> 1 only where the whole cube of 2 * voxels + 1 is 1; beyond the grid is 0."""
    return 1 - F.max_pool3d(F.pad(1 - mask, (voxels,) * 6, value=1.0), 2 * voxels + 1, stride=1)
