"""The published recipe, as a baseline: the UNet never sees a CT.

MSCGUNet learns from global signed NCC; the UNet is fed the *warped MRI* and compared with the *warped MRI label*, and
one optimiser minimises the sum of both losses. Volumes are stretched to one shape by nearest neighbour, whatever their
spacing, without alignment; CT window level 50 width 350; each is scaled to [0, 1] by its extremes. The UNet learns from
MRIs and their labels first (BudhaTronix/Weakly-Supervised-Tumour-Detection, mode unified; implemented from a
description). There a UNet for each structure ends in a sigmoid; here one has a sigmoid for each, of liver with its
tumours and of tumours. And the loop is ours: the learning rate falls in the end, gradients are clipped, and the weights
are averaged over the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import nn

from ..cases import Case
from ..deformation import warp
from ..networks.mscgunet import Prediction
from ..volumes import Volume
from .overlap import focal_tversky, soft_dice
from .registration import published_loss
from .synthesis import Random
from .weak_config import Stage
from .weak_pictures import draw
from .weak_tasks import copied, dice

NORMALISATION = "as published: CT window level 50 width 350, min-max to [0,1]"
REGISTRATION_ARGUMENTS = {"published": True}
STRUCTURES = ("liver with its tumours", "tumours")  # the UNet's channels, a sigmoid each
_LOW_HU, _HIGH_HU = 50 - 350 / 2, 50 + 350 / 2


@dataclass(frozen=True)
class Stretched:
    """A case as the published recipe sees it, all of one shape (z, y, x).

    ct, mr: float32 in [0, 1]. mr_classes and, where known, ct_classes: uint8, 0 background, 1 liver, 2 tumour.
    """

    name: str
    ct: np.ndarray
    mr: np.ndarray
    mr_classes: np.ndarray
    ct_classes: np.ndarray | None = None


def stretched_case(name: str, case: Case, shape: tuple[int, int, int]) -> Stretched:
    def classes(volume: Volume | None) -> np.ndarray | None:
        return None if volume is None else stretch(np.minimum(_array(volume), 2).astype(np.uint8), shape)

    return Stretched(
        name,
        ct_input(case.ct, shape),
        stretch(_to_unit(_array(case.mr).astype(np.float32)), shape),
        classes(case.mr_labels),
        classes(case.ct_labels),
    )


def ct_input(ct: Volume, shape: tuple[int, int, int]) -> np.ndarray:
    """(z, y, x) float32 in [0, 1]."""
    return stretch(_to_unit(np.clip(_array(ct).astype(np.float32), _LOW_HU, _HIGH_HU)), shape)


def _array(volume: Volume) -> np.ndarray:
    return volume.along_patient_axes().array


def _to_unit(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    return (array - low) / max(high - low, 1e-6)


def stretch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour; spacing plays no part."""
    image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
    return F.interpolate(image, size=tuple(shape), mode="nearest")[0, 0].numpy().astype(array.dtype)


@torch.no_grad()
def segment_ct(network: nn.Module, ct: Volume, shape: tuple[int, int, int]) -> Volume:
    """uint8 classes on the CT's own grid: the one use of a CT, after training."""
    return _on_ct(classes_of(network(torch.from_numpy(ct_input(ct, shape))[None, None])), ct)


def classes_of(logits: torch.Tensor) -> np.ndarray:
    """(1, structures, z, y, x) -> (z, y, x) uint8: 0 background, 1 liver, 2 tumour, each from a probability of 0.5."""
    liver, tumour = (logits[0] > 0).cpu().numpy()
    return np.where(tumour, 2, liver).astype(np.uint8)


@torch.no_grad()
def propagate(network: nn.Module, case: Case, shape: tuple[int, int, int]) -> Volume:
    """The MRI's labels on the CT's own grid as the published MSCGUNet carries them; each where its share is most."""
    ct, mr = ct_input(case.ct, shape), stretch(_to_unit(_array(case.mr).astype(np.float32)), shape)
    images = [torch.from_numpy(image)[None, None] for image in (ct, mr)]
    labels = torch.from_numpy(stretch(_array(case.mr_labels), shape).astype(np.int64))
    shares = F.one_hot(labels).permute(3, 0, 1, 2)[None].float()
    moved = warp(shares, network(*images).displacement.float(), padding="zeros")
    # What comes from beyond the MRI is background.
    moved[:, 0] += 1 - moved.sum(1)
    return _on_ct(moved.argmax(1)[0].numpy().astype(np.uint8), case.ct)


def _on_ct(found: np.ndarray, ct: Volume) -> Volume:
    """A stretched label map back on the CT's grid."""
    straight = ct.along_patient_axes()
    back = Volume(stretch(found, straight.array.shape), straight.grid).to_image()
    identity, nearest = sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor
    return Volume.from_image(sitk.Resample(back, ct.to_image(), identity, nearest))


class Joint(nn.Module):
    """Both networks in one forward pass: the pair both ways, and the UNet on the warped MRI."""

    def __init__(self, segmentation: nn.Module, registration: nn.Module) -> None:
        super().__init__()
        self.segmentation, self.registration = segmentation, registration

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor) -> tuple[torch.Tensor, Prediction, Prediction]:
        forward, backward = self.registration(fixed, moving), self.registration(moving, fixed)
        warped = warp(moving, forward.displacement.float(), padding="zeros")
        return self.segmentation(warped), forward, backward


class _PublishedTask:
    def __init__(self, stage: Stage, loss: str, cases: list[Stretched], held_out: list[Stretched], begin: nn.Module):
        self.stage, self.loss, self.cases, self.held_out = stage, loss, cases, held_out
        self._begin = begin

    def network(self) -> nn.Module:
        return copied(self._begin)

    def sample(self, number: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ct, mr (1, 1, z, y, x) and the MRI's structures (1, 2, z, y, x) in {0, 1}."""
        random = Random(self.stage.optimisation.seed * 1_000_003 + number)
        case = self.cases[int(random.numbers.integers(len(self.cases)))]
        images = [torch.from_numpy(image)[None, None].to(device) for image in (case.ct, case.mr)]
        classes = torch.from_numpy(case.mr_classes).to(device)
        return *images, torch.stack((classes > 0, classes == 2))[None].float()

    def _looked_at(self) -> list[Stretched]:
        return (self.held_out or self.cases)[: self.stage.reporting.validation_cases]

    def _unet(self, network: nn.Module) -> nn.Module:
        return network

    @torch.no_grad()
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Liver Dice on MRIs, which it learns from, and on CTs, where a truth is known: it never sees one before."""
        found: dict[str, list[float]] = {}
        for case in self._looked_at():
            for name, image, truth in (("mr", case.mr, case.mr_classes), ("ct", case.ct, case.ct_classes)):
                if truth is not None:
                    predicted = classes_of(self._unet(network)(torch.from_numpy(image)[None, None].to(device)))
                    found.setdefault(f"liver {name}", []).append(dice(predicted > 0, truth > 0))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        shown = []
        for case in self._looked_at()[:6]:
            image = torch.from_numpy(case.ct)[None, None].to(device)
            shown.append((case.ct, classes_of(self._unet(network)(image)), case.ct_classes))
        draw(shown, path)


class PublishedUNet(_PublishedTask):
    """The UNet on MRIs and their labels."""

    def losses(self, network: nn.Module, sample: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        _, mr, labels = sample
        return {"loss": soft_label_loss(network(mr), labels, self.loss)}


class PublishedJoint(_PublishedTask):
    """Both networks, one optimiser, the plain sum. The warped label keeps its gradient, as published."""

    def losses(self, network: nn.Module, sample: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        ct, mr, labels = sample
        logits, forward, backward = network(ct, mr)
        found = published_loss(forward, backward, ct, mr)
        warped = warp(labels, forward.displacement.float(), padding="zeros")
        found["segmentation"] = soft_label_loss(logits, warped, self.loss)
        return {**found, "loss": found["loss"] + found["segmentation"]}

    def _unet(self, network: nn.Module) -> nn.Module:
        return network.segmentation


def soft_label_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """logits and labels in [0, 1] (1, structures, z, y, x); the mean over the structures."""
    probability, weight = logits.float().sigmoid(), torch.ones_like(labels[:, 0])
    terms = []
    for number in range(labels.shape[1]):
        pair = probability[:, number], labels[:, number], weight
        terms.append(focal_tversky(*pair) if kind == "focal_tversky" else 1 - soft_dice(*pair))
    loss = torch.stack(terms).mean()
    if kind == "dice_ce":
        loss = loss + F.binary_cross_entropy_with_logits(logits.float(), labels)
    return loss
