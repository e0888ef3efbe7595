"""Liver and tumours from label maps under random contrast (Billot et al., SynthSeg, 2023): no image is needed.

A tumour that a painted CT does not show counts as liver: nobody should learn to see what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import build
from ..simulation.tissue_maps import LIVER_TISSUES, TissueMap
from . import synthesis
from .config import SegmentationConfig
from .sources import Sources
from .synthesis import KINDS, Random

CLASSES = ("background", "liver", "tumour")
_VALIDATION_SEED = 7_000_000


@dataclass(frozen=True)
class Sample:
    """image: (1, 1, z, y, x); target: (1, z, y, x) classes."""

    image: torch.Tensor
    target: torch.Tensor
    kind: str


class Segmentation:
    """The task of `loop.train` that makes a UNet."""

    def __init__(self, config: SegmentationConfig, sources: Sources) -> None:
        self.config, self.sources = config, sources

    def network(self) -> nn.Module:
        return build(self.config.architecture, self.config.arguments)

    def sample(self, number: int, device: torch.device) -> Sample:
        random = Random(self.config.optimisation.seed * 1_000_003 + number, device)
        return self._draw(self.sources.training(random), KINDS[number % len(KINDS)], random)

    def losses(self, network: nn.Module, sample: Sample) -> dict[str, torch.Tensor]:
        outputs = network(sample.image)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for level, logits in enumerate(outputs):
            # The network pads the image; what it says beyond the target's end counts for nothing.
            target = sample.target[:, :: 2**level, :: 2**level, :: 2**level]
            depth, height, width = target.shape[1:]
            logits = logits[:, :, :depth, :height, :width]
            dice, entropy = segmentation_loss(logits.float(), target, self.config.tumour_weight)
            total = total + (dice + entropy) / 2**level
            if level == 0:
                first = {"dice": dice, "entropy": entropy}
        return {"loss": total / sum(0.5**level for level in range(len(outputs))), **first}

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean Dice of the liver by kind of image and of the tumours that can be seen, over fixed cases."""
        found: dict[str, list[float]] = {}
        for sample in self._validation(device):
            predicted = network(sample.image).argmax(1)
            found.setdefault(f"liver {sample.kind}", []).append(_dice(predicted > 0, sample.target > 0))
            if (sample.target == 2).sum() > 60:
                found.setdefault("tumour", []).append(_dice(predicted == 2, sample.target == 2))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        samples = list(self._validation(device))[:6]
        figure, axes = plt.subplots(2, len(samples), figsize=(3 * len(samples), 6), squeeze=False)
        for column, sample in enumerate(samples):
            predicted = network(sample.image).argmax(1)[0].cpu()
            image, target = sample.image[0, 0].float().cpu(), sample.target[0].cpu()
            for row, axis in enumerate((0, 1)):
                where = image.shape[axis] // 2
                part = [volume.select(axis, where) for volume in (image, target, predicted)]
                part = [(plane.flip(0) if axis else plane).numpy() for plane in part]
                plot = axes[row][column]
                plot.imshow(part[0], cmap="gray", vmin=0, vmax=1)
                for classes, styles in ((part[1], ("lime", "yellow")), (part[2], ("red", "magenta"))):
                    for value, colour in zip((1, 2), styles, strict=True):
                        if (classes >= value).any() and not (classes >= value).all():
                            plot.contour(classes >= value, [0.5], colors=colour, linewidths=0.7)
                plot.axis("off")
                plot.set_title(sample.kind, fontsize=8)
        figure.suptitle("green, yellow: truth; red, magenta: network")
        figure.tight_layout()
        figure.savefig(path, dpi=70)
        plt.close(figure)

    # -- samples ------------------------------------------------------------------------------------------------
    def _validation(self, device: torch.device) -> Iterator[Sample]:
        for number in range(self.config.reporting.validation_cases):
            random = Random(_VALIDATION_SEED + number, device)
            yield self._draw(self.sources.validation(number), KINDS[number % len(KINDS)], random)

    def _draw(self, anatomy: TissueMap, kind: str, random: Random) -> Sample:
        shape = patch_shape(self.config.voxels, random)
        place = synthesis.random_place(anatomy, shape, self.config.spacing_mm, random)
        tissues = synthesis.tissues_at(self.sources.tensor(anatomy, random.device), place.coordinates)
        tissues = synthesis.add_tumours(tissues, self.config.spacing_mm, random)
        painted = synthesis.paint(tissues, kind, self.config.spacing_mm, random)
        target = torch.isin(tissues, torch.tensor(LIVER_TISSUES, device=random.device)).long()
        if painted.tumours_visible:
            target[tissues == synthesis.TUMOUR] = 2
        target[~painted.seen] = 0
        return Sample(painted.image[None, None], target[None], kind)


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, tumour_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 - soft Dice (mean over the foreground classes that are there) and weighted cross-entropy.

    logits (1, c, z, y, x), target (1, z, y, x).
    """
    weight = torch.ones(logits.shape[1], device=logits.device)
    weight[-1] = tumour_weight
    entropy = F.cross_entropy(logits, target, weight=weight)
    probability = logits.softmax(1)
    terms = []
    for value in range(1, logits.shape[1]):
        truth = (target == value).float()
        if value == 1 or truth.any():
            overlap = (probability[:, value] * truth).sum()
            terms.append(1 - (2 * overlap + 1) / (probability[:, value].sum() + truth.sum() + 1))
    return torch.stack(terms).mean(), entropy


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def patch_shape(voxels: int, random: Random) -> tuple[int, int, int]:
    """Sides that are multiples of 8, flat or tall: slabs and whole abdomens."""
    height = random.uniform(0.45, 1.3)
    width = random.uniform(0.9, 1.15)
    side = voxels ** (1 / 3)
    across = side / height**0.5
    return tuple(max(16, 8 * round(v / 8)) for v in (side * height, across / width, across * width))
