"""MSCGUNet from label maps: two random pictures of one anatomy, a known motion between them (Hoffmann et al. 2022).

The pair lies as alignment leaves it: what remains is breathing that dies away from the diaphragm, bending at several
scales, and a little of the rigid error. The labels' overlap is what SynthMorph learns from; the motion is known too,
and where tissue has no edge it is the only teacher. The published recipe (global NCC of the two images) is an option.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import nn

from ..deformation import compose, integrate, jacobian_determinant, sample, warp
from ..networks import build
from ..networks.mscgunet import Prediction
from ..registration.prediction import images_in, in_passes, moved, pair_inputs
from ..registration.preparation import DISTANCE_LIMIT_MM
from ..simulation.contrast import TISSUE_NAMES
from ..simulation.tissue_maps import LIVER_TISSUES, TissueMap
from . import synthesis
from .config import RegistrationConfig
from .sources import Sources
from .synthesis import Random

# Tissues whose overlap is rewarded, in groups that a radiologist would draw.
_GROUPS = (
    ("liver", "liver vessel", "tumour"),
    ("liver vessel",),
    ("tumour",),
    ("spleen",),
    ("kidney", "renal pelvis"),
    ("bile", "gallbladder wall"),
    ("blood", "heart", "myocardium"),
    ("lung", "lung vessel"),
    ("cortical bone", "marrow"),
    ("bowel wall", "stool", "fluid", "gas"),
)
_CANAL = tuple(TISSUE_NAMES.index(name) for name in ("spinal fluid", "cord"))
_MARGIN = 8  # voxels round the grid from which the fixed image takes what moves in
_SWAPPED = 4  # every so many samples the pair is asked the other way round too: enough to keep both ways alike
_VALIDATION_SEED = 8_000_000


@dataclass(frozen=True)
class Sample:
    """fixed, moving: (1, 1 + extra, z, y, x), see `pair_inputs`; swapped_*: the same pair asked the other way round.

    *_labels: (1, groups, z, y, x) in [0, 1]. liver: (1, 1, z, y, x), of the fixed image.
    displacement: (1, 3, z, y, x) voxels, x y z, fixed -> moving: the truth. number: which sample it is.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    swapped_fixed: torch.Tensor | None
    swapped_moving: torch.Tensor | None
    fixed_labels: torch.Tensor
    moving_labels: torch.Tensor
    liver: torch.Tensor
    displacement: torch.Tensor
    number: int


class Registration:
    """The task of `loop.train` that makes an MSCGUNet."""

    def __init__(self, config: RegistrationConfig, sources: Sources) -> None:
        self.config, self.sources = config, sources
        self._group_of = torch.zeros(len(TISSUE_NAMES), len(_GROUPS))
        for column, names in enumerate(_GROUPS):
            for name in names:
                self._group_of[TISSUE_NAMES.index(name), column] = 1

    def network(self) -> nn.Module:
        return build(self.config.architecture, self.config.arguments)

    def sample(self, number: int, device: torch.device) -> Sample:
        random = Random(self.config.optimisation.seed * 1_000_003 + number, device)
        return self._draw(self.sources.training(random), number, random)

    # -- losses -------------------------------------------------------------------------------------------------
    def losses(self, network: nn.Module, sample: Sample) -> dict[str, torch.Tensor]:
        c = self.config
        if c.loss == "published":
            forward = network(sample.fixed, sample.moving)
            backward = network(sample.swapped_fixed, sample.swapped_moving)
            return published_loss(forward, backward, sample.fixed[:, :1], sample.moving[:, :1])
        # Every second pair is shown as the pipeline's second pass shows it: moved by the network's own first answer.
        before = self._first_pass(network, sample) if c.passes_asked > 1 and sample.number % 2 else None
        forward = network(*self._shown(sample, before))
        there, back = forward.displacement.float(), forward.inverse_displacement().float()
        if before is not None:
            there, back = compose(before[0], there), compose(back, before[1])
        found = {
            "labels": self._label_loss(there, back, sample),
            "displacement": self._displacement_loss(there, sample),
            "smoothness": roughness(forward.velocity),
            "graph": forward.scg_loss.float(),
        }
        total = (
            c.label_weight * found["labels"]
            + c.displacement_weight * found["displacement"]
            + c.smoothness_weight * found["smoothness"]
            + c.graph_weight * found["graph"]
        )
        if c.network.get("full_head") or c.network.get("published"):
            # The half-resolution head takes no part in this loss; data-parallel training waits for its gradient.
            total = total + 0.0 * forward.half_displacement.sum()
        # exp(v) and exp(-v) undo each other as they are; asked the other way round, the network should say -v too.
        if sample.swapped_fixed is not None:
            backward = network(sample.swapped_fixed, sample.swapped_moving)
            found["inverse"] = (forward.velocity + backward.velocity).float().square().mean()
            total = total + c.inverse_weight * found["inverse"]
        return {"loss": total, **found}

    @torch.no_grad()
    def _first_pass(self, network: nn.Module, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """Displacement fixed -> moving and moving -> fixed."""
        prediction = network(sample.fixed, sample.moving)
        return prediction.displacement.float(), prediction.inverse_displacement().float()

    def _shown(
        self, sample: Sample, before: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's inputs after a first pass, or as they are."""
        if before is None:
            return sample.fixed, sample.moving
        fixed, moving = images_in(sample.fixed), moved(images_in(sample.moving), before[0])
        return pair_inputs(
            fixed[0], moving[0], fixed[1], moving[1], self.config.spacing_mm, channels=sample.fixed.shape[1]
        )

    def _label_loss(self, displacement: torch.Tensor, inverse: torch.Tensor, sample: Sample) -> torch.Tensor:
        """1 - soft Dice, both directions, mean over the groups that are in the picture."""
        there = warp(sample.moving_labels, displacement, padding="zeros")
        back = warp(sample.fixed_labels, inverse, padding="zeros")
        terms = []
        for ours, truth in ((there, sample.fixed_labels), (back, sample.moving_labels)):
            size = truth.sum((0, 2, 3, 4))
            dice = (2 * (ours * truth).sum((0, 2, 3, 4)) + 1) / (ours.sum((0, 2, 3, 4)) + size + 1)
            terms.append((1 - dice[size > 20]).mean() if (size > 20).any() else dice.sum() * 0)
        return 0.5 * (terms[0] + terms[1])

    def _displacement_loss(self, displacement: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Mean length of the error in mm, most of the weight in the liver; Huber below 1 mm."""
        error = (displacement - sample.displacement) * self.config.spacing_mm
        length = (error.square().sum(1, keepdim=True) + 1).sqrt() - 1
        weight = sample.liver + 0.05
        return (weight * length).sum() / weight.sum()

    # -- looking ------------------------------------------------------------------------------------------------
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Over fixed pairs: median and 90th percentile of the error in the liver (mm), before and after, and folds."""
        before, after, dice, folds = [], [], [], 0
        for item in self._validation(device):
            prediction = self._predicted(network, item)
            inside = item.liver[0, 0] > 0.5
            scale = self.config.spacing_mm
            before.append(scale * item.displacement[0, :, inside].norm(dim=0))
            after.append(scale * (prediction.displacement.float() - item.displacement)[0, :, inside].norm(dim=0))
            folds += int((jacobian_determinant(prediction.displacement.float())[0][inside] <= 0).sum())
            moved = warp(item.moving_labels[:, :1], prediction.displacement.float(), padding="zeros") > 0.5
            truth = item.fixed_labels[:, :1] > 0.5
            dice.append(2 * float((moved & truth).sum()) / max(1.0, float(moved.sum() + truth.sum())))
        medians = torch.tensor([[float(b.median()), float(a.median())] for b, a in zip(before, after, strict=True)])
        return {
            "before mm": float(torch.cat(before).median()),
            "after mm": float(torch.cat(after).median()),
            "p90 after mm": float(torch.cat(after).quantile(0.9)),
            "reduction": 1 - float(medians[:, 1].mean() / medians[:, 0].mean()),
            "liver dice": sum(dice) / len(dice),
            "folds": float(folds),
        }

    def _predicted(self, network: nn.Module, sample: Sample) -> Prediction:
        """As the pipeline asks."""
        c, fixed, moving = self.config, images_in(sample.fixed), images_in(sample.moving)
        return in_passes(network, fixed, moving, c.spacing_mm, sample.fixed.shape[1], c.passes_asked)

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        items = list(self._validation(device))[:6]
        figure, axes = plt.subplots(3, len(items), figsize=(3 * len(items), 9), squeeze=False)
        for column, item in enumerate(items):
            moved_labels = [item.moving_labels[:, :1]]
            images = [item.fixed[:, :1], item.moving[:, :1]]
            displacement = self._predicted(network, item).displacement.float()
            moved_labels.append(warp(moved_labels[0], displacement))
            images.append(warp(images[1], displacement))
            row_of = item.fixed.shape[3] // 2
            for row, image in enumerate(images):
                axes[row][column].imshow(
                    image[0, 0, :, row_of].flip(0).float().cpu().numpy(), cmap="gray", vmin=0, vmax=1
                )
                for labels, colour in ((item.fixed_labels[:, :1], "lime"), (moved_labels[row == 2], "red")):
                    outline = labels[0, 0, :, row_of].flip(0).float().cpu().numpy()
                    if outline.max() > 0.5:
                        axes[row][column].contour(outline, [0.5], colors=colour, linewidths=0.7)
                axes[row][column].axis("off")
        figure.suptitle("fixed, moving, moved; green: liver of the fixed, red: of the moving (below: moved)")
        figure.tight_layout()
        figure.savefig(path, dpi=70)
        plt.close(figure)

    # -- samples ------------------------------------------------------------------------------------------------
    def _validation(self, device: torch.device) -> Iterator[Sample]:
        for number in range(self.config.reporting.validation_cases):
            random = Random(_VALIDATION_SEED + number, device)
            yield self._draw(self.sources.validation(number), number, random, kinds=("ct", "mr"))

    def _draw(self, anatomy: TissueMap, number: int, random: Random, kinds: tuple[str, str] | None = None) -> Sample:
        c, shape = self.config, tuple(self.config.shape)
        wide = tuple(n + 2 * _MARGIN for n in shape)
        inner = tuple(slice(_MARGIN, _MARGIN + n) for n in shape)
        tensor = self.sources.tensor(anatomy, random.device)
        place = synthesis.random_place(anatomy, wide, c.spacing_mm, random, spread_mm=12.0)
        everywhere = synthesis.add_tumours(synthesis.tissues_at(tensor, place.coordinates), c.spacing_mm, random)
        moving = everywhere[inner]

        liver = torch.isin(moving, torch.tensor(LIVER_TISSUES, device=random.device)).float()[None, None]
        displacement = self._motion(liver, moving, random)
        index = torch.stack(
            torch.meshgrid(*(torch.arange(n, device=random.device) for n in shape[::-1]), indexing="ij")
        ).permute(0, 3, 2, 1)[None]  # (1, x y z, z, y, x)
        position = index + displacement + _MARGIN
        coordinates = sample(place.coordinates[None], position)[0]
        fixed = synthesis.tissues_at(tensor, coordinates)
        tumours = sample((everywhere == synthesis.TUMOUR).float()[None, None], position)[0, 0] > 0.5
        fixed = torch.where(fixed == synthesis.TUMOUR, synthesis.LIVER, fixed)
        fixed = torch.where(tumours, synthesis.TUMOUR, fixed)

        numbers = random.numbers
        kinds = kinds or (
            str(numbers.choice(["ct", "random"], p=[0.85, 0.15])),
            str(numbers.choice(["mr", "random", "ct"], p=[0.75, 0.2, 0.05])),
        )
        pictures = [
            synthesis.paint(tissues, kind, c.spacing_mm, random)
            for tissues, kind in zip((fixed, moving), kinds, strict=True)
        ]
        groups = self._group_of.to(random.device)
        labels = [groups[tissues].permute(3, 0, 1, 2)[None] for tissues in (fixed, moving)]
        channels = 1 + c.network.get("extra_channels", 0)
        images = [picture.image[None, None] for picture in pictures]
        distances = []
        # The CT's liver is not always known, the MRI's nearly so.
        for picture, label, unknown in zip(pictures, labels, (c.unknown_liver, 0.3 * c.unknown_liver), strict=True):
            distance = None
            if channels > 1 and not random.chance(unknown):
                distance = _uncertain_distance(label[:, :1], c.spacing_mm, random)
                distance = torch.where(picture.seen, distance, DISTANCE_LIMIT_MM)
            distances.append(distance)
        forward = pair_inputs(*images, *distances, c.spacing_mm, channels)
        backward = (None, None)
        if c.loss == "published" or (c.inverse_weight > 0 and number % _SWAPPED == 0):
            backward = pair_inputs(*images[::-1], *distances[::-1], c.spacing_mm, channels)
        return Sample(*forward, *backward, labels[0], labels[1], labels[0][:, :1], displacement, number)

    def _held(self, tissues: torch.Tensor, half: tuple[int, int, int], random: Random) -> torch.Tensor:
        """(z, y, x) on the half grid: 1 about the spine, where organs are tied down, 0 from some cm away from it."""
        step = 2 * self.config.spacing_mm
        canal = torch.isin(tissues, torch.tensor(_CANAL, device=random.device)).nonzero().float()
        if len(canal) > 20:
            middle = (canal.mean(0) * self.config.spacing_mm).tolist()
        else:  # not in the picture, or a real torso, whose label map does not tell it: behind the middle
            middle = [n * step * share for n, share in zip(half, (0.5, 0.8, 0.6), strict=True)]
        y, x = (step * torch.arange(n, device=random.device) - m - random.uniform(-10, 10)
                for n, m in zip(half[1:], middle[1:], strict=True))  # fmt: skip
        off = torch.hypot(y[:, None] + random.uniform(5, 35), x[None, :])
        near = random.uniform(20, 50)
        share = ((off - near) / random.uniform(30, 80)).clamp(0, 1)
        return (1 - share * share * (3 - 2 * share))[None].expand(half)

    def _motion(self, liver: torch.Tensor, tissues: torch.Tensor, random: Random) -> torch.Tensor:
        """(1, 3, z, y, x) voxels, x y z: a random diffeomorphism as alignment leaves it."""
        c, shape = self.config, tuple(self.config.shape)
        half = tuple(-(-n // 2) for n in shape)
        spacing = 2 * c.spacing_mm
        velocity = torch.zeros((1, 3, *half), device=random.device)
        for period_mm, share in ((220.0, 1.0), (110.0, 0.8), (60.0, 0.35)):
            amount = share * random.uniform(0, c.deformation_mm) / 3**0.5
            velocity += amount * random.smooth(half, 0.5 * period_mm / spacing, 3)
        # Breathing: along z, full at the diaphragm and dying away below and towards the spine.
        z, y, _ = torch.meshgrid(*(torch.linspace(0, 1, n, device=random.device) for n in half), indexing="ij")
        if random.chance(0.6):
            reach, middle = random.uniform(0.3, 0.9), random.uniform(-0.2, 0.3)
            held = self._held(tissues, half, random)
        else:
            reach, middle = random.uniform(0.15, 0.5), random.uniform(0.3, 0.9)
            held = 0.8 * torch.sigmoid((y - random.uniform(0.6, 0.9)) / 0.07)
        along = torch.sigmoid((z - middle) / (0.35 * reach))
        breathing = random.uniform(-c.breathing_mm, c.breathing_mm) * along * (1 - held)
        velocity[:, 2] += breathing
        velocity[:, 1] += random.uniform(0.0, 0.3) * breathing * (1 - y)
        # Alignment has taken away most of what an affine transform of the liver can, and is itself some mm off.
        velocity -= random.uniform(0.3, 1.0) * _best_affine(velocity, F.avg_pool3d(liver, 2, ceil_mode=True))
        velocity += random.uniform(0, 2.5) * random.normal(1, 3, 1, 1, 1)
        velocity = velocity / spacing
        displacement = F.interpolate(
            integrate(velocity, steps=5), size=[2 * n for n in half], mode="trilinear", align_corners=False
        )
        return 2 * displacement[:, :, : shape[0], : shape[1], : shape[2]]


def published_loss(
    forward: Prediction, backward: Prediction, fixed: torch.Tensor, moving: torch.Tensor
) -> dict[str, torch.Tensor]:
    """-1.2 NCC + |grad u|^2 + SCG loss, -0.5 NCC + 0.5 |grad u|^2 at half resolution, both directions.

    fixed, moving: (1, 1, z, y, x); backward: asked the other way round. Chatterjee et al., arXiv 2203.04317.
    """
    terms = {"ncc": 0.0, "smoothness": 0.0, "graph": 0.0, "ncc half": 0.0, "smoothness half": 0.0}
    for prediction, target, source in ((forward, fixed, moving), (backward, moving, fixed)):
        terms["ncc"] += ncc(warp(source, prediction.displacement.float()), target)
        terms["smoothness"] += roughness(prediction.displacement)
        terms["graph"] += prediction.scg_loss.float()
        half = prediction.half_displacement.float()
        small = [F.interpolate(image, size=half.shape[2:], mode="trilinear") for image in (target, source)]
        terms["ncc half"] += ncc(warp(small[1], half), small[0])
        terms["smoothness half"] += roughness(half)
    loss = (
        -1.2 * terms["ncc"]
        + terms["smoothness"]
        + terms["graph"]
        - 0.5 * terms["ncc half"]
        + 0.5 * terms["smoothness half"]
    )
    return {"loss": loss, **terms}


def _best_affine(velocity: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The affine field nearest to a (1, 3, z, y, x) field in the weighted least-squares sense."""
    shape = velocity.shape[2:]
    axes = [torch.linspace(-1, 1, n, device=velocity.device) for n in shape]
    ones = torch.ones(shape, device=velocity.device)
    basis = torch.stack([ones, *torch.meshgrid(*axes, indexing="ij")]).reshape(4, -1).T  # (voxels, 4)
    weighted = basis * weight.reshape(-1, 1)
    normal = weighted.T @ basis + 1e-3 * torch.eye(4, device=velocity.device)
    solution = torch.linalg.solve(normal, weighted.T @ velocity.reshape(3, -1).T)
    return (basis @ solution).T.reshape(1, 3, *shape)


def _uncertain_distance(mask: torch.Tensor, spacing_mm: float, random: Random) -> torch.Tensor:
    """What the pipeline knows of a liver, for `liver_channel`: its border is wrong here and there by some mm."""
    soft = synthesis.blurred(mask[0, 0], 0.8)
    border = random.uniform(0, 0.25) * random.smooth(tuple(soft.shape), random.uniform(4, 10))[0]
    inside = (soft - 0.5 + border > 0).cpu().numpy().astype(np.uint8)
    image = sitk.GetImageFromArray(inside)
    image.SetSpacing((spacing_mm,) * 3)
    # Distances between voxel centres on both sides, as registration.preparation has them.
    beyond = np.maximum(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True)), 0)
    within = np.maximum(
        sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(sitk.Equal(image, 0), False, False, True)), 0
    )
    return torch.from_numpy((beyond - within).astype(np.float32)).to(mask.device)[None, None]


def roughness(field: torch.Tensor) -> torch.Tensor:
    """Mean squared derivative, voxels of the field's grid."""
    field = field.float()
    return sum(torch.diff(field, dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def ncc(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Global normalised cross-correlation, signed."""
    a, b = a.float() - a.float().mean(), b.float() - b.float().mean()
    return (a * b).mean() / ((a.square().mean() * b.square().mean()).sqrt() + 1e-6)
