"""3-D U-Net (Cicek et al., MICCAI 2016) and its deep-supervised attention variant (Oktay et al., arXiv 1804.03999).

The published system used widths (32, 64, 128, 256, 512), batch normalisation, nearest upsampling and a sigmoid;
`UNet(1, 1, (32, 64, 128, 256, 512), norm="batch")` with a sigmoid on its logits is that network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ("instance", "batch", "group", "none")


class UNet(nn.Module):
    """Segments an image of any size.

    widths: channels of each level, each half as fine as the one before. norm: instance, batch, group (8 channels each)
    or none. attention: skips are gated by what the coarser level looks for. deep_supervision: in training mode,
    `forward` returns the logits of every decoder level, finest first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        norm: str = "instance",
        attention: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f'norm "{norm}" is not one of {", ".join(NORMS)}')
        if len(widths) < 2:
            raise ValueError(f"widths {list(widths)} need at least two levels")
        self.deep_supervision = deep_supervision
        self.factor = 2 ** (len(widths) - 1)
        self.encoder = nn.ModuleList(
            _block(before, width, norm) for before, width in zip((in_channels, *widths), widths, strict=False)
        )
        pairs = list(pairwise(widths))
        self.gates = nn.ModuleList(_Gate(fine, coarse) if attention else nn.Identity() for fine, coarse in pairs)
        self.decoder = nn.ModuleList(_block(fine + coarse, fine, norm) for fine, coarse in pairs)
        levels = pairs if deep_supervision else pairs[:1]
        self.heads = nn.ModuleList(nn.Conv3d(fine, out_channels, 1) for fine, _ in levels)
        self.attention = attention

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(b, in, z, y, x) -> logits (b, out, z, y, x); with deep supervision in training mode a list of them.

        The coarser logits of that list are on grids 2, 4, ... times coarser, padded as the image was.
        """
        size = image.shape[2:]
        x = _padded(image, self.factor)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        x = skips.pop()
        logits: list[torch.Tensor] = []
        for level in range(len(self.decoder) - 1, -1, -1):
            skip = skips[level]
            if self.attention:
                skip = self.gates[level](skip, x)
            x = self.decoder[level](torch.cat((skip, F.interpolate(x, scale_factor=2, mode="nearest")), 1))
            if level < len(self.heads) and (level == 0 or self.training):
                logits.insert(0, self.heads[level](x))
        logits[0] = logits[0][:, :, : size[0], : size[1], : size[2]]
        return logits if self.deep_supervision and self.training else logits[0]


class AttentionUNet(UNet):
    """The deep-supervised attention variant under a name of its own."""

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        norm: str = "instance",
    ) -> None:
        super().__init__(in_channels, out_channels, widths, norm, attention=True, deep_supervision=True)


class _Gate(nn.Module):
    """Additive attention: skip * sigmoid(psi(relu(W skip + G gating))), the gate computed on the coarser grid."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        between = max(1, fine // 2)
        self.of_skip = nn.Conv3d(fine, between, 2, stride=2, bias=False)
        self.of_gating = nn.Conv3d(coarse, between, 1)
        self.psi = nn.Conv3d(between, 1, 1)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.psi(F.relu(self.of_skip(skip) + self.of_gating(gating))))
        return skip * F.interpolate(gate, size=skip.shape[2:], mode="trilinear", align_corners=False)


class _InstanceNorm(nn.InstanceNorm3d):
    """One voxel has no spread to normalise by: there it does nothing (torch's own refuses)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x[0, 0].numel() > 1 else x


def _block(before: int, width: int, norm: str) -> nn.Sequential:
    """Two times convolution, normalisation, ReLU."""
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [nn.Conv3d(channels, width, 3, padding=1, bias=norm == "none"), *_norm(norm, width)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _norm(norm: str, width: int) -> list[nn.Module]:
    if norm == "instance":
        return [_InstanceNorm(width, affine=True)]
    if norm == "batch":
        return [nn.BatchNorm3d(width)]
    if norm == "group":
        return [nn.GroupNorm(width // 8 if width % 8 == 0 else 1, width)]
    return []


def _padded(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Continued at its far ends up to the next multiple of the factor."""
    extra = [-n % factor for n in image.shape[2:]]
    return F.pad(image, (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate") if any(extra) else image
