"""What is learnt in weak supervision, one task for `loop.train` each.

MRSegmentation    the UNet from the MRIs' labels, under random contrast
PairRegistration  MSCGUNet from pairs without labels on the CT
CTSegmentation    the UNet on the CT *image*, from pseudo-labels weighted by their confidence, with a mean teacher
Unified           both at once: the registration makes the labels, the UNet's liver guides the registration

Pseudo-labels reach a UNet as numbers, never as a function of the registration: with a gradient, the registration would
be rewarded for labels that are easy, not for right ones. The other way round a UNet's liver guides the registration as
a number too: with a gradient, both could agree on what neither image shows. What each learns about is its image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import nn

from ..deformation import Affine, compose, sample, warp
from ..networks.mscgunet import Prediction
from ..registration.prediction import cube_about_liver, pair_inputs
from ..registration.preparation import DISTANCE_LIMIT_MM, Scan, resample_affine, tensor
from ..registration.similarity import erode, mind_ssc
from ..simulation.tissue_maps import CODE
from ..volumes import Grid
from . import synthesis
from .cohort import Member
from .config import Computing
from .overlap import deep_loss
from .prepared import LEVELS, LIVER_LEVEL, TUMOUR_LEVEL, Pair, Prepared
from .registration import roughness
from .segmentation import patch_shape
from .synthesis import Random
from .weak_config import Registering, Segmenting, Stage
from .weak_pictures import draw

_SWAPPED = 4  # every so many pairs are asked the other way round too
_LESION_RIM_MM = 6.0  # the edge of a tumour that the CT may not show is not compared, as in the refinement
_FAR = 0.3  # weight of what lies far from the liver
_NEAR_MM = 15.0
# What a grey level of an unlabelled body may be painted as.
_ORGANS = [
    CODE[name]
    for name in ("muscle", "fat", "visceral fat", "spleen", "kidney", "blood", "lung", "marrow", "stool", "fluid")
]


@dataclass(frozen=True)
class CaseData:
    """All that a task knows of a case. classes, confidence: (z, y, x) on the CT's working grid, None where not made.

    corrected: whether classes are a person's. weight: how often it is drawn.
    """

    name: str
    prepared: Prepared
    pair: Pair | None = None
    classes: np.ndarray | None = None
    confidence: np.ndarray | None = None
    corrected: bool = False
    weight: float = 1.0


class Cases:
    """Those that are learnt from and those that are held out; `CaseData` by number or, by weight, at random."""

    def __init__(
        self, learning: Sequence[CaseData], held_out: Sequence[CaseData] = (), weights: Sequence[float] | None = None
    ) -> None:
        """weights: of those that are learnt from, where the sequence had to read each to tell."""
        self.learning, self.held_out = learning, held_out
        shares = np.array([case.weight for case in learning] if weights is None else weights, dtype=float)
        self._shares = shares / shares.sum()

    def drawn(self, random: Random) -> CaseData:
        return self.learning[int(random.numbers.choice(len(self.learning), p=self._shares))]

    def looked_at(self, count: int) -> list[CaseData]:
        """For validation: held-out cases, or without any those learnt from."""
        return list((self.held_out or self.learning)[:count])


class CasesOnDisk(Sequence[CaseData]):
    """Reads a case when it is asked for, and keeps the last ones: a cohort may be larger than the memory."""

    def __init__(self, members: Sequence[Member], read: Callable[[Member], CaseData], kept: int) -> None:
        self._members = members
        self._read = lru_cache(maxsize=kept)(lambda number: read(members[number]))

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, number: int) -> CaseData: ...
    @overload
    def __getitem__(self, number: slice) -> list[CaseData]: ...
    def __getitem__(self, number: int | slice) -> CaseData | list[CaseData]:
        if isinstance(number, slice):
            return [self._read(n) for n in range(len(self))[number]]
        return self._read(range(len(self))[number])


@dataclass(frozen=True)
class Patch:
    """image: (1, 1, z, y, x); plain: the same before its contrast was changed; target: (1, z, y, x) classes.

    weight: (1, z, y, x), how sure the target is; measured: (1, z, y, x) bool. number: which sample it is.
    """

    image: torch.Tensor
    plain: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    measured: torch.Tensor
    number: int


class _UNetTask:
    """What the tasks that make a UNet share."""

    def __init__(self, stage: Stage, settings: Segmenting, cases: Cases, begin: nn.Module, spacing_mm: float) -> None:
        """begin: the network to start from; it is copied."""
        self.stage, self.settings, self.cases, self.spacing_mm = stage, settings, cases, spacing_mm
        self._begin = begin

    def network(self) -> nn.Module:
        return copied(self._begin)

    def _random(self, number: int, device: torch.device) -> Random:
        return Random(self.stage.optimisation.seed * 1_000_003 + number, device)

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        shown = []
        for case in self.cases.looked_at(min(6, self.stage.reporting.validation_cases)):
            image, target = self._whole(case)
            shown.append((image, segmented(network, image, device), target))
        draw(shown, path)

    def _whole(self, case: CaseData) -> tuple[np.ndarray, np.ndarray | None]:
        """(z, y, x) image and classes to show and to compare with."""
        raise NotImplementedError


class MRSegmentation(_UNetTask):
    """Every second sample is the MRI itself, its contrast changed; the others are painted at random from its labels."""

    def sample(self, number: int, device: torch.device) -> Patch:
        random = self._random(number, device)
        case = self.cases.drawn(random).prepared
        coordinates = patch_coordinates(case.mr_target, self.settings.voxels, self.spacing_mm, random)
        measured = _nearest(case.mr_measured.astype(np.uint8), coordinates) > 0
        target = _nearest(case.mr_target, coordinates)
        if number % 2:
            kind = synthesis.KINDS[number // 2 % len(synthesis.KINDS)]
            tissues = as_tissues(_nearest(case.mr_tissues, coordinates), random)
            painted = synthesis.paint(tissues, kind, self.spacing_mm, random)
            image, measured = painted.image, measured & painted.seen
            image = torch.where(measured, image, 0.0)
            if not painted.tumours_visible:
                target = target.clamp(max=1)
        else:
            image = sample(tensor(case.mr, device), coordinates, padding="zeros")[0, 0]
            image = recontrasted(image, measured, self.spacing_mm, random, wild=True)
        target = torch.where(measured, target, 0)
        image, target, measured = image[None, None], target[None], measured[None]
        return Patch(image, image, target, measured.float(), measured, number)

    def losses(self, network: nn.Module, sample: Patch) -> dict[str, torch.Tensor]:
        return deep_loss(network(sample.image), sample.target, sample.weight, self.settings)

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean Dice of liver and of tumours on the MRIs."""
        found: dict[str, list[float]] = {"liver mr": [], "tumour mr": []}
        for case in self.cases.looked_at(self.stage.reporting.validation_cases):
            predicted, target = segmented(network, case.prepared.mr, device), case.prepared.mr_target
            found["liver mr"].append(dice(predicted > 0, target > 0))
            if (target == 2).any():
                found["tumour mr"].append(dice(predicted == 2, target == 2))
        return {name: sum(values) / len(values) for name, values in found.items() if values}

    def _whole(self, case: CaseData) -> tuple[np.ndarray, np.ndarray | None]:
        return case.prepared.mr, case.prepared.mr_target


class _Teacher:
    """The averaged weights as a network of their own: see `loop.Taught`."""

    def __init__(self, begin: nn.Module, computing: Computing) -> None:
        self.module = copied(begin).eval().requires_grad_(False)
        self._precision = computing.precision

    def follow(self, average: dict[str, torch.Tensor]) -> None:
        self.module.to(next(iter(average.values())).device).load_state_dict(average)

    def precision(self, device: torch.device) -> AbstractContextManager:
        """That of the student, whom Fabric wraps."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        kind = kinds.get(self._precision)
        return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)

    @torch.no_grad()
    def probability(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """(1, classes, z, y, x) float32."""
        with self.precision(image.device):
            logits = network(image)
        return logits.float().softmax(1)


class CTSegmentation(_UNetTask):
    """The student sees the CT with its contrast changed, the teacher as it is; the teacher's opinion counts everywhere,
    the label's where it is sure. The guard against confirmation: a teacher that changes slowly, and labels that come
    from the MRI and not from this network."""

    def __init__(self, stage: Stage, settings: Segmenting, cases: Cases, begin: nn.Module, spacing_mm: float) -> None:
        super().__init__(stage, settings, cases, begin, spacing_mm)
        self.teacher = _Teacher(begin, stage.computing)

    def follow(self, average: dict[str, torch.Tensor]) -> None:
        self.teacher.follow(average)

    def sample(self, number: int, device: torch.device) -> Patch:
        random = self._random(number, device)
        case = self.cases.drawn(random)
        coordinates = patch_coordinates(case.classes, self.settings.voxels, self.spacing_mm, random)
        return ct_patch(case, coordinates, self.spacing_mm, random, number)

    def losses(self, network: nn.Module, sample: Patch) -> dict[str, torch.Tensor]:
        outputs = network(sample.image)
        found = deep_loss(outputs, sample.target, sample.weight, self.settings)
        share = consistency_weight(sample.number, self.stage, self.settings)
        if share > 0:
            found |= {"consistency": consistency(outputs, self._opinion(sample), sample.measured)}
            found["loss"] = found["loss"] + share * found["consistency"]
        return found

    def _opinion(self, sample: Patch) -> torch.Tensor:
        return self.teacher.probability(self.teacher.module, sample.plain)

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        return validated_on_ct(network, self.cases.looked_at(self.stage.reporting.validation_cases), device)

    def _whole(self, case: CaseData) -> tuple[np.ndarray, np.ndarray | None]:
        return case.prepared.ct, case.prepared.truth if case.classes is None else case.classes


def validated_on_ct(network: nn.Module, cases: Sequence[CaseData], device: torch.device) -> dict[str, float]:
    """Mean liver Dice with what is known of each CT (truth before pseudo-labels), and the claimed tumours' share of the
    liver that is none."""
    found: dict[str, list[float]] = {"liver ct": [], "false tumour share": []}
    for case in cases:
        target = case.classes if case.prepared.truth is None else case.prepared.truth
        if target is None:
            continue
        predicted = segmented(network, case.prepared.ct, device)
        found["liver ct"].append(dice(predicted > 0, target > 0))
        found["false tumour share"].append(float(((predicted == 2) & (target != 2)).sum() / max(1, (target > 0).sum())))
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def consistency(
    outputs: torch.Tensor | list[torch.Tensor], opinion: torch.Tensor, measured: torch.Tensor
) -> torch.Tensor:
    """Mean squared difference of the student's probabilities and the teacher's, over what was measured."""
    logits = outputs[0] if isinstance(outputs, list) else outputs
    squares = (logits.float().softmax(1) - opinion.detach()).square().sum(1)
    return (squares * measured).sum() / measured.sum().clamp(min=1)


def consistency_weight(number: int, stage: Stage, settings: Segmenting) -> float:
    """exp(-5 (1 - t)^2), t from 0 to 1 over the ramp-up (Laine and Aila, ICLR 2017), times the settings' weight."""
    step = number // stage.optimisation.batch
    ramp = settings.ramp_up * stage.optimisation.steps
    done = 1.0 if ramp <= 0 else min(1.0, step / ramp)
    return settings.consistency * float(np.exp(-5.0 * (1.0 - done) ** 2))


# -- patches --------------------------------------------------------------------------------------------------------
def patch_coordinates(target: np.ndarray, voxels: int, spacing_mm: float, random: Random) -> torch.Tensor:
    """(1, 3, z, y, x), x y z, voxels of the volume: a patch near its liver, turned, stretched and bent a little."""
    shape = tuple(min(n, max(16, 8 * -(-size // 8))) for n, size in zip(patch_shape(voxels, random), target.shape,
                                                                      strict=True))  # fmt: skip
    found = np.flatnonzero(target.ravel())
    middle = np.asarray(target.shape) / 2
    if len(found):
        middle = np.array(np.unravel_index(found[random.numbers.integers(len(found))], target.shape), dtype=float)
    middle = middle + random.numbers.normal(0, 15.0 / spacing_mm, 3)
    # No patch lies mostly beyond the volume.
    half = np.asarray(shape) / 2
    last = np.asarray(target.shape) - 1
    middle = np.clip(middle, np.minimum(0.6 * half, last / 2), np.maximum(last - 0.6 * half, last / 2))
    turn = random_motion(np.zeros(3), 0.0, 8.0, random.numbers)[:3, :3]
    matrix = torch.as_tensor(
        turn @ np.diag(np.exp(random.numbers.normal(0, 0.06, 3))), dtype=torch.float32, device=random.device
    )
    axes = [torch.arange(n, device=random.device) - (n - 1) / 2 for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    place = torch.einsum("ab,bzyx->azyx", matrix, grid)
    place += torch.as_tensor(middle, dtype=torch.float32, device=random.device)[:, None, None, None]
    place += random.uniform(0, 3.0) / spacing_mm * random.smooth(shape, 60.0 / spacing_mm, 3)
    return place.flip(0)[None]


def _nearest(volume: np.ndarray, coordinates: torch.Tensor) -> torch.Tensor:
    """(z, y, x) int64: nearest value of a uint8 volume, 0 beyond it. coordinates: as `patch_coordinates`."""
    return synthesis.tissues_at(torch.from_numpy(volume).to(coordinates.device), coordinates[0].flip(0))


def ct_patch(case: CaseData, coordinates: torch.Tensor, spacing_mm: float, random: Random, number: int) -> Patch:
    """A patch of a CT with its pseudo-labels: plain numbers without a gradient."""
    device, prepared = coordinates.device, case.prepared
    measured = _nearest(prepared.ct_measured.astype(np.uint8), coordinates) > 0
    plain = sample(tensor(prepared.ct, device), coordinates, padding="zeros")[0, 0]
    plain = torch.where(measured, plain, 0.0)
    image = recontrasted(plain, measured, spacing_mm, random)
    weight = sample(tensor(case.confidence, device), coordinates, padding="zeros")[0, 0] * measured
    target = torch.where(measured, _nearest(case.classes, coordinates), 0)
    return Patch(image[None, None], plain[None, None], target[None], weight[None], measured[None], number)


def as_tissues(levels: torch.Tensor, random: Random) -> torch.Tensor:
    """Grey levels of an unlabelled body (see `Prepared.mr_tissues`) as tissues that `synthesis.paint` knows."""
    organs = random.numbers.choice(_ORGANS, LEVELS, replace=False)
    codes = torch.zeros(TUMOUR_LEVEL + 1, dtype=torch.long, device=levels.device)
    codes[0] = synthesis.AIR
    codes[1 : LEVELS + 1] = torch.as_tensor(organs, device=levels.device)
    codes[LIVER_LEVEL], codes[TUMOUR_LEVEL] = synthesis.LIVER, synthesis.TUMOUR
    return codes[levels]


def recontrasted(
    image: torch.Tensor, measured: torch.Tensor, spacing_mm: float, random: Random, *, wild: bool = False
) -> torch.Tensor:
    """(z, y, x) in [0, 1] with another window, gamma, noise, sharpness; wild: with any contrast, and a bias field."""
    value = image
    if wild and random.chance(0.5):  # a curve through random heights: what was bright may become dark
        heights = torch.as_tensor(random.numbers.uniform(0, 1, 6), dtype=torch.float32, device=image.device)
        place = value.clamp(0, 1) * 5
        low = place.floor().clamp(max=4).long()
        value = heights[low] + (place - low) * (heights[low + 1] - heights[low])
    value = value.clamp(0, 1) ** float(np.exp(random.numbers.normal(0, 0.2)))
    value = 0.5 + random.uniform(0.85, 1.15) * (value - 0.5) + random.uniform(-0.08, 0.08)
    if wild:
        bias = random.smooth(tuple(image.shape), random.uniform(60, 200) / spacing_mm)[0]
        value = value * torch.exp(random.uniform(0, 0.3) * bias)
    if random.chance(0.3):
        value = synthesis.blurred(value, random.uniform(0.25, 0.7))
    if random.chance(0.2):
        value = synthesis.thick_slices(value, spacing_mm, random)
    value = value + random.uniform(0, 0.06) * random.normal(*image.shape)
    return torch.where(measured, value.clamp(0, 1), 0.0)


@torch.no_grad()
def segmented(network: nn.Module, image: np.ndarray, device: torch.device) -> np.ndarray:
    """(z, y, x) classes of a whole image."""
    return network(tensor(image, device)).argmax(1)[0].cpu().numpy().astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def copied(network: nn.Module) -> nn.Module:
    """The same network with weights of its own, all of them to be learnt."""
    import copy

    return copy.deepcopy(network).requires_grad_(True).train()


# -- pairs ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PairSample:
    """A pair on MSCGUNet's cube, as an alignment that is somewhat off leaves it; all (1, 1, z, y, x).

    *_distance: signed, to the liver's surface, mm; None where the network is not told. moving_liver: share of each
    voxel. *_weight: how much a voxel counts in the comparison. *_measured: 1 where the image looked, else 0.
    ct_liver: probability, None where nobody knows.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_distance: torch.Tensor | None
    moving_distance: torch.Tensor
    moving_liver: torch.Tensor
    fixed_weight: torch.Tensor
    moving_weight: torch.Tensor
    fixed_measured: torch.Tensor
    moving_measured: torch.Tensor
    ct_liver: torch.Tensor | None
    number: int


class PairMaker:
    """Pairs from cases. shape: (z, y, x) of the cube, at least."""

    def __init__(self, settings: Registering, spacing_mm: float, shape: Sequence[int]) -> None:
        self.settings, self.spacing_mm, self.shape = settings, spacing_mm, tuple(shape)

    def cube(self, case: CaseData) -> Grid:
        """In the CT's frame, as prediction lays it."""
        p = case.prepared
        fixed, moving = (
            Scan(grid, arrays[0], arrays[1], arrays[1], distance, None)
            for grid, arrays, distance in ((p.fixed_grid, p.fixed, None), (p.moving_grid, p.moving, p.moving[2]))
        )
        return cube_about_liver(fixed, moving, Affine(case.pair.alignment), self.spacing_mm, self.shape)

    def make(self, case: CaseData, number: int, random: Random, *, off: bool = True) -> PairSample:
        """off: put the alignment off by a random motion."""
        p, cube, device = case.prepared, self.cube(case), random.device
        alignment = Affine(case.pair.alignment)
        if off:
            middle = cube.index_to_world((np.asarray(cube.size) - 1) / 2)
            jitter = self.settings.jitter_mm
            alignment = alignment.after(Affine(random_motion(middle, jitter, 0.75 * jitter, random.numbers)))
        fixed = resample_affine(_stack(p.fixed, device), p.fixed_grid, cube, Affine.identity(), outside=0.0)
        images = resample_affine(_stack(p.moving[:2], device), p.moving_grid, cube, alignment, outside=0.0)
        liver, lesion = resample_affine(
            _stack(p.moving[2:], device), p.moving_grid, cube, alignment, outside=DISTANCE_LIMIT_MM
        ).split(1, 1)
        told = case.pair.ct_distance is not None and not (off and random.chance(self.settings.unknown_liver))
        distance = ct_liver = None
        if told:
            distance = resample_affine(
                tensor(case.pair.ct_distance, device), p.fixed_grid, cube, Affine.identity(), outside=DISTANCE_LIMIT_MM
            )
        if case.pair.ct_liver is not None:
            ct_liver = resample_affine(
                tensor(case.pair.ct_liver, device), p.ct_grid, cube, Affine.identity(), outside=0.0
            )
        near = torch.sigmoid((_NEAR_MM - liver) / 4.0)
        fixed_measured, moving_measured = ((image[:, 1:] > 0.99).float() for image in (fixed, images))
        moving_weight = erode(moving_measured, 1) * (_FAR + (1 - _FAR) * near)
        moving_weight = moving_weight * torch.sigmoid((lesion - _LESION_RIM_MM) / 0.7)
        return PairSample(
            fixed=fixed[:, :1],
            moving=images[:, :1],
            fixed_distance=distance,
            moving_distance=liver,
            moving_liver=(0.5 - liver / self.spacing_mm).clamp(0, 1),
            fixed_weight=erode(fixed_measured, 1),
            moving_weight=moving_weight,
            fixed_measured=fixed_measured,
            moving_measured=moving_measured,
            ct_liver=ct_liver,
            number=number,
        )

    def shown(
        self, pair: PairSample, channels: int, before: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's inputs; before: a displacement that the moving image has gone through already."""
        moving, distance = pair.moving, pair.moving_distance
        if before is not None:
            moving, distance = warp(moving, before), warp(distance, before)
        return pair_inputs(pair.fixed, moving, pair.fixed_distance, distance, self.spacing_mm, channels)

    def losses(
        self, prediction: Prediction, pair: PairSample, before: tuple[torch.Tensor, torch.Tensor] | None,
        guide: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """ "loss" and its parts. guide: (1, 1, z, y, x) probability of the CT's liver; its gradient is cut here."""
        s = self.settings
        there = prediction.displacement.float()
        if before is not None:
            there = compose(before[0], there)
        with torch.no_grad():
            features = [mind_ssc(image.float()) for image in (pair.fixed, pair.moving)]
            # Where the field ends up decides what counts, but it must not learn to look away.
            weight = pair.fixed_weight * warp(pair.moving_weight, there, padding="zeros")
        difference = (features[0] - warp(features[1], there)).square().mean(1, keepdim=True)
        found = {
            "similarity": (weight * difference).sum() / weight.sum().clamp(min=1),
            "smoothness": roughness(prediction.velocity),
            "graph": prediction.scg_loss.float(),
        }
        total = s.similarity * found["similarity"] + s.smoothness * found["smoothness"] + s.graph * found["graph"]
        if guide is not None and s.guide > 0:
            # Where an image ends, the other's liver has no counterpart: it must not pull.
            seen = pair.fixed_measured * looked_at(pair, there)
            moved, guide = seen * warp(pair.moving_liver, there, padding="zeros"), seen * guide.detach()
            found["guide"] = 1 - (2 * (moved * guide).sum() + 1) / (moved.sum() + guide.sum() + 1)
            total = total + s.guide * found["guide"]
        if prediction.half_displacement is not None:
            # A half-resolution head that takes no part; data-parallel training waits for its gradient.
            total = total + 0.0 * prediction.half_displacement.sum()
        return {"loss": total, **found}


@torch.no_grad()
def looked_at(pair: PairSample, displacement: torch.Tensor) -> torch.Tensor:
    """(1, 1, z, y, x) on the cube: 1 where the moved MRI has looked, else 0."""
    return (warp(pair.moving_measured, displacement, padding="zeros") > 0.99).float()


def _stack(arrays: np.ndarray, device: torch.device) -> torch.Tensor:
    """(c, z, y, x) -> (1, c, z, y, x) float32."""
    return torch.from_numpy(np.ascontiguousarray(arrays, dtype=np.float32))[None].to(device)


class PairRegistration:
    """MSCGUNet on pairs: self-similarity, the newest UNet's liver as a guide, smoothness, both ways alike."""

    def __init__(self, stage: Stage, maker: PairMaker, cases: Cases, begin: nn.Module, passes: int) -> None:
        self.stage, self.maker, self.cases, self.passes = stage, maker, cases, passes
        self._begin, self.channels = begin, begin.image_channels

    def network(self) -> nn.Module:
        return copied(self._begin)

    def sample(self, number: int, device: torch.device) -> PairSample:
        random = Random(self.stage.optimisation.seed * 1_000_003 + number, device)
        return self.maker.make(self.cases.drawn(random), number, random)

    def losses(self, network: nn.Module, sample: PairSample) -> dict[str, torch.Tensor]:
        before = None
        if self.passes > 1 and sample.number % 2:  # as the pipeline's second pass shows it
            with torch.no_grad():
                first = network(*self.maker.shown(sample, self.channels))
                before = first.displacement.float(), first.inverse_displacement().float()
        inputs = self.maker.shown(sample, self.channels, None if before is None else before[0])
        prediction = network(*inputs)
        found = self.maker.losses(prediction, sample, before, sample.ct_liver)
        if self.maker.settings.inverse > 0 and sample.number % _SWAPPED == 0:
            backward = network(*self._swapped(sample))
            found["inverse"] = (prediction.velocity + backward.velocity).float().square().mean()
            found["loss"] = found["loss"] + self.maker.settings.inverse * found["inverse"]
        return found

    def _swapped(self, pair: PairSample) -> tuple[torch.Tensor, torch.Tensor]:
        return pair_inputs(
            pair.moving, pair.fixed, pair.moving_distance, pair.fixed_distance, self.maker.spacing_mm, self.channels
        )

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        return validated_pairs(network, self.maker, self._looked_at(), self.channels, device)

    def _looked_at(self) -> list[CaseData]:
        return self.cases.looked_at(self.stage.reporting.validation_cases)

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        draw_pairs(network, self.maker, self._looked_at(), self.channels, device, path)


def validated_pairs(
    network: nn.Module, maker: PairMaker, cases: Sequence[CaseData], channels: int, device: torch.device
) -> dict[str, float]:
    """Over pairs as aligned: the similarity cost before and after, and the liver's Dice with the CT's labels, where
    somebody knows them."""
    found: dict[str, list[float]] = {}
    for number, case in enumerate(cases):
        pair = maker.make(case, number, Random(number, device), off=False)
        prediction = network(*maker.shown(pair, channels))
        still = prediction._replace(displacement=torch.zeros_like(prediction.displacement))
        for name, answer in (("before", still), ("after", prediction)):
            cost = maker.losses(answer, pair, None, None)["similarity"]
            found.setdefault(f"similarity {name}", []).append(float(cost))
            if case.prepared.truth is None:
                continue
            truth = resample_affine(
                tensor(case.prepared.truth > 0, device), case.prepared.ct_grid, maker.cube(case), Affine.identity(),
                outside=0.0,
            )  # fmt: skip
            moved = warp(pair.moving_liver, answer.displacement.float(), padding="zeros")
            overlap = dice((moved > 0.5).cpu().numpy(), (truth > 0.5).cpu().numpy())
            found.setdefault(f"liver dice {name}", []).append(overlap)
    return {name: sum(values) / len(values) for name, values in found.items()}


def draw_pairs(
    network: nn.Module, maker: PairMaker, cases: Sequence[CaseData], channels: int, device: torch.device, path: Path
) -> None:
    """The CT with the MRI's liver as aligned and as the network moves it."""
    shown = []
    for number, case in enumerate(cases[:6]):
        pair = maker.make(case, number, Random(number, device), off=False)
        displacement = network(*maker.shown(pair, channels)).displacement.float()
        livers = [pair.moving_liver, warp(pair.moving_liver, displacement, padding="zeros")]
        before, after = ((liver[0, 0] > 0.5).cpu().numpy().astype(np.uint8) for liver in livers)
        shown.append((pair.fixed[0, 0].cpu().numpy(), after, before))
    draw(shown, path)


# -- both at once ---------------------------------------------------------------------------------------------------
class Both(nn.Module):
    """A UNet and an MSCGUNet under one optimiser, asked together, so that processes count their gradients together."""

    def __init__(self, segmentation: nn.Module, registration: nn.Module) -> None:
        super().__init__()
        self.segmentation, self.registration = segmentation, registration

    def forward(
        self, image: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor
    ) -> tuple[torch.Tensor | list[torch.Tensor], Prediction]:
        return self.segmentation(image), self.registration(fixed, moving)


@dataclass(frozen=True)
class UnifiedSample:
    """pair, other: one pair, its alignment off in two ways; patch: the CT on the UNet's grid over the same cube.

    cube, patch_grid: their grids, in the CT's frame. corrected: whether the patch's labels are a person's.
    """

    pair: PairSample
    other: PairSample
    patch: Patch
    cube: Grid
    patch_grid: Grid
    corrected: bool


class Unified:
    """One training of both networks.

    The labels of each step come from the registration as it is now (detached), sure where the network's answer to
    another alignment, and the ensemble that the run began with, agree; the tumours that the CT shows stay where that
    ensemble saw them. The teacher's liver on the same CT guides the registration (detached as well). Both networks thus
    get a gradient from their own losses alone, and work on each other through what they find.
    """

    def __init__(
        self, stage: Stage, settings: Segmenting, maker: PairMaker, cases: Cases, begin: Both, spacing_mm: float,
        passes: int = 1,
    ) -> None:  # fmt: skip
        """passes: with more than one, every other sample is a pair that the network has moved once already."""
        self.stage, self.settings, self.maker, self.cases, self.spacing_mm = stage, settings, maker, cases, spacing_mm
        self.passes = passes
        self._begin, self.channels = begin, begin.registration.image_channels
        self.teacher = _Teacher(begin, stage.computing)

    def network(self) -> nn.Module:
        return copied(self._begin)

    def follow(self, average: dict[str, torch.Tensor]) -> None:
        self.teacher.follow(average)

    def sample(self, number: int, device: torch.device) -> UnifiedSample:
        random = Random(self.stage.optimisation.seed * 1_000_003 + number, device)
        case = self.cases.drawn(random)
        pair, other = (self.maker.make(case, number, random) for _ in range(2))
        cube = self.maker.cube(case)
        patch_grid = cube.with_spacing(self.spacing_mm)
        coordinates = grid_coordinates(patch_grid, case.prepared.ct_grid, device)
        patch = ct_patch(case, coordinates, self.spacing_mm, random, number)
        return UnifiedSample(pair, other, patch, cube, patch_grid, case.corrected)

    def losses(self, network: nn.Module, sample: UnifiedSample) -> dict[str, torch.Tensor]:
        patch, pair = sample.patch, sample.pair
        opinion = self.teacher.probability(self.teacher.module.segmentation, patch.plain)
        guide = on_grid(opinion[:, 1:].sum(1, keepdim=True), sample.patch_grid, sample.cube)
        before = None
        if self.passes > 1 and pair.number % 2:  # as the pipeline's second pass shows it
            before = self._answer(pair)
        inputs = self.maker.shown(pair, self.channels, None if before is None else before[0])
        outputs, prediction = network(patch.image, *inputs)
        of_pair = self.maker.losses(prediction, pair, before, guide)
        there = prediction.displacement.float()
        if before is not None:
            there = compose(before[0], there)
        target, weight = patch.target, patch.weight
        if not sample.corrected:
            target, weight = self._labels_now(sample, there)
        of_labels = deep_loss(outputs, target, weight, self.settings)
        opinions = consistency(outputs, opinion, patch.measured)
        share = consistency_weight(pair.number, self.stage, self.settings)
        total = of_pair["loss"] + of_labels["loss"] + share * opinions
        return {**of_pair, **of_labels, "consistency": opinions, "loss": total}

    @torch.no_grad()
    def _answer(self, pair: PairSample) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's displacement of a pair, and its inverse."""
        with self.teacher.precision(pair.fixed.device):
            found = self.teacher.module.registration(*self.maker.shown(pair, self.channels))
        return found.displacement.float(), found.inverse_displacement().float()

    @torch.no_grad()
    def _labels_now(self, sample: UnifiedSample, displacement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes and confidence (1, z, y, x) on the patch from where the registration puts the liver now."""
        patch = sample.patch
        livers, seen = [], patch.measured
        for pair, field in ((sample.pair, displacement), (sample.other, self._answer(sample.other)[0])):
            moved = warp(pair.moving_liver, field, padding="zeros")
            livers.append(on_grid(moved, sample.cube, sample.patch_grid)[:, 0] > 0.5)
            # Beyond the MRI's end both answers are "no liver", and their agreeing says nothing.
            seen = seen & (on_grid(looked_at(pair, field), sample.cube, sample.patch_grid)[:, 0] > 0.99)
        now, again = livers
        target = torch.where(patch.target == 2, 2, now.long())
        # Votes for the present class: this answer, the other one, and the ensemble's by its confidence.
        ensemble = torch.where((patch.target > 0) == (target > 0), 0.5 + 0.5 * patch.weight, 0.5 - 0.5 * patch.weight)
        agreement = (1 + (again == (target > 0)).float() + ensemble) / 3
        return torch.where(patch.measured, target, 0), (2 * agreement - 1).clamp(0, 1) * seen

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        cases = self.cases.looked_at(self.stage.reporting.validation_cases)
        return {
            **validated_on_ct(network.segmentation, cases, device),
            **validated_pairs(network.registration, self.maker, cases, self.channels, device),
        }

    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None:
        shown = []
        for case in self.cases.looked_at(min(6, self.stage.reporting.validation_cases)):
            image = case.prepared.ct
            shown.append((image, segmented(network.segmentation, image, device), case.prepared.truth))
        draw(shown, path)


def grid_coordinates(target: Grid, own: Grid, device: torch.device) -> torch.Tensor:
    """(1, 3, z, y, x), x y z: voxels of `own` at the voxel centres of `target`, in one frame."""
    index = own.world_to_index(target.points())
    return torch.as_tensor(np.moveaxis(index, -1, 0), dtype=torch.float32, device=device)[None]


def on_grid(image: torch.Tensor, own: Grid, target: Grid) -> torch.Tensor:
    """(1, c, z, y, x) from one grid to another of the same frame, 0 beyond."""
    return resample_affine(image, own, target, Affine.identity(), outside=0.0)


def random_motion(centre_mm: np.ndarray, shift_mm: float, degrees: float, random: np.random.Generator) -> np.ndarray:
    """(4, 4) rigid: a turn about a point by up to so many degrees about each axis, and a shift by up to so much."""
    motion = np.eye(4)
    for axis, angle in enumerate(np.radians(random.uniform(-degrees, degrees, 3))):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        motion[:3, :3] = motion[:3, :3] @ turn
    motion[:3, 3] = centre_mm - motion[:3, :3] @ centre_mm + random.uniform(-shift_mm, shift_mm, 3)
    return motion
