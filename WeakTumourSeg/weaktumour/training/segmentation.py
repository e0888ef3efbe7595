"""Liver and tumours from label maps under random contrast (Billot et al., SynthSeg, 2023): no image is needed.

A tumour that a painted CT does not show counts as liver: nobody should learn to see what is not there.

The same network also learns what share each tissue has in every voxel, in groups that the registration compares: the
vessels in the liver first of all, which a noisy image hides from a measure that looks at a few voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..networks import build
from ..simulation.tissue_maps import CODE, LIVER_TISSUES, TissueMap
from . import synthesis
from .config import SegmentationConfig
from .sources import Sources
from .synthesis import KINDS, Random

CLASSES = ("background", "liver", "tumour")
# A tumour counts as liver: what one image shows of it the other need not.
TISSUE_GROUPS = {
    "gas": ("air", "lung", "gas"),
    "fat": ("fat", "visceral fat", "skin"),
    "soft tissue": ("muscle", "lung vessel", "myocardium", "cartilage", "disc", "cord", "gallbladder wall", "pancreas",
                    "bowel wall", "stool"),
    "bone": ("cortical bone", "marrow"),
    "blood": ("blood", "heart"),
    "liver": ("liver", "tumour"),
    "liver vessel": ("liver vessel",),
    "fluid": ("bile", "fluid", "ascites", "spinal fluid", "renal pelvis"),
    "spleen": ("spleen",),
    "kidney": ("kidney",),
}  # fmt: skip
_FINER = 2  # tissue maps are drawn so much finer than the image
_LIVER_WEIGHT = 4.0  # of the tissues' loss in the liver
_VALIDATION_SEED = 7_000_000


@dataclass(frozen=True)
class Sample:
    """image: (1, 1, z, y, x); target: (1, z, y, x) classes; shares: (1, groups, z, y, x) of TISSUE_GROUPS.

    seen: (1, z, y, x) where the image has data.
    """

    image: torch.Tensor
    target: torch.Tensor
    shares: torch.Tensor
    seen: torch.Tensor
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
        classes = len(CLASSES)
        for level, logits in enumerate(outputs):
            # The network pads the image; what it says beyond the target's end counts for nothing.
            target = sample.target[:, :: 2**level, :: 2**level, :: 2**level]
            depth, height, width = target.shape[1:]
            logits = logits[:, :, :depth, :height, :width]
            dice, entropy = segmentation_loss(logits[:, :classes].float(), target, self.config.tumour_weight)
            total = total + (dice + entropy) / 2**level
            if level == 0:
                first = {"dice": dice, "entropy": entropy}
                if self.config.tissue_weight:
                    first["tissues"] = tissue_loss(logits[:, classes:].float(), sample.shares, sample.seen)
                    total = total + self.config.tissue_weight * first["tissues"]
        return {"loss": total / sum(0.5**level for level in range(len(outputs))), **first}

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean Dice of the liver by kind of image and of the tumours that can be seen, over fixed cases; and how much
        of the vessels' variance in the liver the network explains."""
        found: dict[str, list[float]] = {}
        for sample in self._validation(device):
            logits = network(sample.image).float()
            predicted = logits[:, : len(CLASSES)].argmax(1)
            if self.config.tissue_weight:
                found.setdefault(f"vessels {sample.kind}", []).append(_vessels_explained(logits, sample))
            found.setdefault(f"liver {sample.kind}", []).append(_dice(predicted > 0, sample.target > 0))
            if (sample.target == 2).sum() > 60:
                found.setdefault("tumour", []).append(_dice(predicted == 2, sample.target == 2))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        samples = list(self._validation(device))[:6]
        figure, axes = plt.subplots(4, len(samples), figsize=(3 * len(samples), 12), squeeze=False)
        vessel = list(TISSUE_GROUPS).index("liver vessel")
        for column, sample in enumerate(samples):
            logits = network(sample.image).float()
            predicted = logits[:, : len(CLASSES)].argmax(1)[0].cpu()
            tissues = logits[:, len(CLASSES) :].softmax(1) if self.config.tissue_weight else sample.shares
            for row, share in ((2, sample.shares), (3, tissues)):
                plane = share[0, vessel, share.shape[2] // 2].cpu().numpy()
                axes[row][column].imshow(plane, cmap="gray", vmin=0, vmax=0.8)
                axes[row][column].axis("off")
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
        figure.suptitle("green, yellow: truth; red, magenta: network; below: liver vessels in truth, as found")
        figure.tight_layout()
        figure.savefig(path, dpi=70)
        plt.close(figure)

    # -- samples ------------------------------------------------------------------------------------------------
    def _validation(self, device: torch.device) -> Iterator[Sample]:
        for number in range(self.config.reporting.validation_cases):
            random = Random(_VALIDATION_SEED + number, device)
            yield self._draw(self.sources.validation(number), KINDS[number % len(KINDS)], random)

    def _draw(self, anatomy: TissueMap, kind: str, random: Random) -> Sample:
        shape = _shape(self.config.voxels, random)
        spacing, finer = self.config.spacing_mm, tuple(_FINER * n for n in shape)
        place = synthesis.random_place(anatomy, finer, spacing / _FINER, random)
        tissues = synthesis.tissues_at(self.sources.tensor(anatomy, random.device), place.coordinates)
        tissues = synthesis.add_tumours(tissues, spacing / _FINER, random)
        painted = synthesis.paint(tissues, kind, spacing, random, finer=_FINER)
        liver = torch.isin(tissues, torch.tensor(LIVER_TISSUES, device=random.device)).float()
        target = (synthesis.mean_over(liver, _FINER) > 0.5).long()
        if painted.tumours_visible:
            tumour = synthesis.mean_over((tissues == synthesis.TUMOUR).float(), _FINER)
            target[(target == 1) & (tumour > 0.5)] = 2
        target[~painted.seen] = 0
        return Sample(painted.image[None, None], target[None], _shares(tissues), painted.seen[None], kind)


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


def tissue_loss(logits: torch.Tensor, shares: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the shares of TISSUE_GROUPS, the liver's voxels weighing more: what comes out is the share
    to be expected, and where nothing can be told it is that of livers in general.

    logits, shares (1, groups, z, y, x), seen (1, z, y, x).
    """
    names = list(TISSUE_GROUPS)
    liver = shares[:, names.index("liver")] + shares[:, names.index("liver vessel")]
    weight = seen * (1 + (_LIVER_WEIGHT - 1) * liver)
    return -(weight * (shares * logits.log_softmax(1)).sum(1)).sum() / weight.sum().clamp(min=1)


def _shares(tissues: torch.Tensor) -> torch.Tensor:
    """(1, groups, z, y, x) of a map that is _FINER times finer."""
    codes = [torch.tensor([CODE[name] for name in names]) for names in TISSUE_GROUPS.values()]
    group_of = torch.zeros(len(CODE), dtype=torch.long)
    for number, members in enumerate(codes):
        group_of[members] = number
    groups = group_of.to(tissues.device)[tissues]
    return torch.stack([synthesis.mean_over((groups == n).float(), _FINER) for n in range(len(codes))])[None]


def _vessels_explained(logits: torch.Tensor, sample: Sample) -> float:
    """1 - squared error / variance of the vessels' share in the liver: 1 is perfect, 0 knows of no vessel."""
    column = list(TISSUE_GROUPS).index("liver vessel")
    found = logits[:, len(CLASSES) :].softmax(1)[:, column]
    liver = (sample.target > 0) & sample.seen
    truth, found = sample.shares[:, column][liver], found[liver]
    if truth.numel() < 2 or float(truth.var()) < 1e-6:
        return 0.0
    return 1 - float((found - truth).square().mean() / truth.var(unbiased=False))


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _shape(voxels: int, random: Random) -> tuple[int, int, int]:
    """Sides that are multiples of 8, flat or tall: slabs and whole abdomens."""
    height = random.uniform(0.45, 1.3)
    width = random.uniform(0.9, 1.15)
    side = voxels ** (1 / 3)
    across = side / height**0.5
    return tuple(max(16, 8 * round(v / 8)) for v in (side * height, across / width, across * width))
