"""Images that never were: tissue maps under random contrast, made on the training device.

A network that sees every contrast learns shape instead (Billot et al., SynthSeg, Medical Image Analysis 2023; Hoffmann
et al., SynthMorph, IEEE TMI 2022). A third of the images is painted like a CT, a third like an MRI protocol, a third at
random, so that what is learnt is wider than the clinic and well-sampled where it is.

Everything works on one grid of `shape` voxels of `spacing_mm`; tensors are (z, y, x), coordinates of a tissue map are
its voxel indices (3, z, y, x), ordered z, y, x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..registration.preparation import CT_WINDOW_HU
from ..simulation.contrast import CT_PHASES, FATTY, MR_PROTOCOLS, SUPPRESSED, TISSUE_NAMES, tissue_means
from ..simulation.tissue_maps import CODE, LIVER_TISSUES, SPACING_MM, TissueMap

AIR, LIVER, TUMOUR, VESSEL = (CODE[name] for name in ("air", "liver", "tumour", "liver vessel"))
KINDS = ("ct", "mr", "random")
_UNENHANCED_HU = CT_PHASES["native"]
# Among the simulator's protocols one more, which its patients do not have.
_PROTOCOLS = {name: protocol.signals for name, protocol in MR_PROTOCOLS.items()} | {
    "T1 native": {"liver vessel": 0.6, "blood": 0.55, "kidney": 0.7, "spleen": 0.7, "muscle": 0.75, "fat": 2.0,
                  "visceral fat": 1.9, "marrow": 1.4, "fluid": 0.3},
}  # fmt: skip
_PROTOCOL_SHARES = (0.3, 0.2, 0.15, 0.2, 0.15)


class Random:
    """Draws on a device, repeatable by seed."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.numbers = np.random.default_rng(seed)

    def uniform(self, low: float, high: float) -> float:
        return float(self.numbers.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.numbers.random() < probability)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def smooth(self, shape: tuple[int, int, int], period: float, channels: int = 1) -> torch.Tensor:
        """(channels, z, y, x): noise of about unit deviation that varies over `period` voxels."""
        knots = [max(2, round(n / period) + 2) for n in shape]
        coarse = 1.6 * self.normal(1, channels, *knots)
        return F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]


# -- shape --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """Where in a tissue map a training grid lies: coordinates (3, z, y, x) in its voxels."""

    coordinates: torch.Tensor
    shape: tuple[int, int, int]
    spacing_mm: float


def random_place(
    anatomy: TissueMap,
    shape: tuple[int, int, int],
    spacing_mm: float,
    random: Random,
    *,
    elastic_mm: float = 6.0,
    spread_mm: float | None = None,
) -> Place:
    """A grid near the liver, turned, stretched and bent: another patient from the same map.

    spread_mm: how far its centre lies from the liver's; without it anywhere in or near the liver.
    """
    found = np.argwhere(anatomy.tissues == LIVER)
    centre = found[random.numbers.integers(len(found))] if spread_mm is None else found.mean(0)
    centre = centre + random.numbers.normal(0, (15.0 if spread_mm is None else spread_mm) / SPACING_MM, 3)
    angles = np.radians(random.numbers.normal(0, 7.0, 3))
    stretch = np.exp(random.numbers.normal(0, 0.1, 3))
    turn = _rotation(angles) @ np.diag(stretch)
    matrix = torch.as_tensor(turn * spacing_mm / SPACING_MM, dtype=torch.float32, device=random.device)
    coarse = tuple(max(2, n // 4) for n in shape)
    axes = [
        torch.linspace(-(n - 1) / 2, (n - 1) / 2, c, device=random.device) for n, c in zip(shape, coarse, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    middle = torch.as_tensor(centre, dtype=torch.float32, device=random.device)[:, None, None, None]
    # Bent on a coarse lattice whose ends are the grid's ends: straight lines stay straight in between.
    coordinates = torch.einsum("ab,bzyx->azyx", matrix, grid) + middle
    for period_mm in (120.0, 50.0):
        amount = random.uniform(0, elastic_mm) * period_mm / 120.0 / SPACING_MM
        coordinates += amount * random.smooth(coarse, period_mm / (4 * spacing_mm), 3)
    coordinates = F.interpolate(coordinates[None], size=shape, mode="trilinear", align_corners=True)[0]
    return Place(coordinates, shape, spacing_mm)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """About z, y, x in turn, for vectors ordered z, y, x."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def tissues_at(anatomy: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Nearest tissue of a map (Z, Y, X) uint8 at coordinates (3, z, y, x); air beyond it."""
    index = coordinates.round().long()
    last = torch.tensor(anatomy.shape, device=index.device).reshape(3, 1, 1, 1) - 1
    within = ((index >= 0) & (index <= last)).all(0)
    index = torch.minimum(index.clamp(min=0), last)
    flat = (index[0] * anatomy.shape[1] + index[1]) * anatomy.shape[2] + index[2]
    return torch.where(within, anatomy.reshape(-1)[flat].long(), AIR)


def add_tumours(tissues: torch.Tensor, spacing_mm: float, random: Random, most: int = 4) -> torch.Tensor:
    """Irregular balls of 8 to 50 mm in the liver, small ones more often; returns a new map."""
    result = tissues.clone()
    liver = (tissues == LIVER).nonzero()
    count = int(random.numbers.integers(0, most + 1))
    if len(liver) < 500:
        return result
    inside = (tissues == LIVER) | (tissues == VESSEL)
    for _ in range(count):
        radius = 0.5 * float(8 + 42 * random.numbers.beta(1.2, 2.5)) / spacing_mm
        centre = liver[int(random.numbers.integers(len(liver)))].tolist()
        reach = int(np.ceil(1.5 * radius)) + 1
        box = tuple(slice(max(0, c - reach), min(n, c + reach + 1)) for c, n in zip(centre, tissues.shape, strict=True))
        axes = [
            torch.arange(s.start, s.stop, device=random.device) - c - random.uniform(-0.5, 0.5)
            for s, c in zip(box, centre, strict=True)
        ]
        distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
        bumps = random.smooth(tuple(distance.shape), max(2.0, radius))[0]
        ball = distance + 0.13 * radius * bumps < radius
        view = result[box]
        view[ball & inside[box]] = TUMOUR
    return result


# -- appearance ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Painted:
    """image: (z, y, x) in [0, 1], as the pipeline normalises. seen: where there are data. tumours_visible: in it."""

    image: torch.Tensor
    seen: torch.Tensor
    tumours_visible: bool


def paint(tissues: torch.Tensor, kind: str, spacing_mm: float, random: Random, *, cut: bool = True) -> Painted:
    """One image of a tissue map (z, y, x). kind: ct, mr or random. cut: sometimes only part of the field is there."""
    means, texture, visible = _look(kind, random)
    shape = tuple(tissues.shape)
    value = means[tissues]
    # Parts of an organ that look unlike the rest of it: what no label map tells.
    other = means + _spread(kind) * random.normal(len(TISSUE_NAMES))
    other[torch.tensor(LIVER_TISSUES, device=random.device)] = means[torch.tensor(LIVER_TISSUES, device=random.device)]
    patches = random.smooth(shape, random.uniform(15, 50) / spacing_mm)[0] > random.uniform(0.5, 1.5)
    value = torch.where(patches, other[tissues], value)
    grain = 0.7 * random.smooth(shape, random.uniform(2.0, 4.0))[0] + 0.7 * random.normal(*shape)
    value = value + texture[tissues] * grain
    if kind == "ct":
        value = _ct_artefacts(value, tissues, spacing_mm, random)
    else:
        bias = random.smooth(shape, random.uniform(60, 200) / spacing_mm)[0]
        value = value * torch.exp(random.uniform(0, 0.3) * bias)
    value = blurred(value, random.uniform(0.25, 0.8))
    if random.chance(0.5):
        value = thick_slices(value, spacing_mm, random)
    if kind != "ct":  # after the mean over voxels: what is out of phase cancels
        value = value.abs()
    seen = _field_of_view(shape, random) if cut and random.chance(0.3) else torch.ones_like(tissues, dtype=torch.bool)
    return Painted(_normalised(value, tissues, seen, kind, random), seen, visible)


def _look(kind: str, random: Random) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Mean and texture of each tissue, and whether a tumour can be told from liver."""
    numbers = random.numbers
    hu, mr = tissue_means()
    if kind == "ct":
        enhanced = numbers.uniform(0, 1.35)
        means = np.array(
            [
                _UNENHANCED_HU[name] + enhanced * (hu[name] - _UNENHANCED_HU[name])
                if name in _UNENHANCED_HU
                else hu[name]
                for name in TISSUE_NAMES
            ],
            dtype=float,
        )
        soft = (means > -300) & (means < 400)
        means = means + soft * numbers.normal(0, 9.0, len(means))
        means[CODE["fluid"]] = numbers.uniform(-5, 40) if numbers.random() < 0.7 else numbers.uniform(40, 350)
        means[CODE["stool"]] = numbers.uniform(-150, 120)
        means[LIVER] -= 40 * numbers.beta(1, 4)
        means[VESSEL] = means[LIVER] + numbers.uniform(-15, 70)
        visible = numbers.random() < 0.6
        shift = numbers.uniform(20, 70) * (-1 if numbers.random() < 0.75 else 1) if visible else numbers.uniform(-4, 4)
        means[TUMOUR] = means[LIVER] + shift
        texture = numbers.uniform(2, 14, len(means))
        texture[CODE["stool"]] = 90
        texture[AIR] = 3
        texture[[LIVER, VESSEL, TUMOUR]] = numbers.uniform(1, 5)
    else:
        visible = True
        if kind == "mr":
            table = {**mr, **_PROTOCOLS[str(numbers.choice(list(_PROTOCOLS), p=_PROTOCOL_SHARES))]}
            means = np.array([table[name] for name in TISSUE_NAMES]) * np.exp(
                numbers.normal(0, 0.22, len(TISSUE_NAMES))
            )
            fat = numbers.random()
            for name in FATTY:
                if fat < 0.4:
                    means[CODE[name]] *= SUPPRESSED
                elif fat < 0.6:  # as bright as the liver: nothing but shape tells where the liver ends
                    means[CODE[name]] = np.sign(means[CODE[name]]) * means[LIVER] * np.exp(numbers.normal(0, 0.12))
        else:
            means = numbers.uniform(0.02, 1.0, len(TISSUE_NAMES))
        ratio = numbers.uniform(0.3, 0.75) if numbers.random() < 0.6 else numbers.uniform(1.3, 2.4)
        means[TUMOUR] = means[LIVER] * ratio
        if kind == "random" and abs(means[TUMOUR] - means[LIVER]) < 0.12:
            means[TUMOUR] = means[LIVER] + 0.2 * (1 if means[LIVER] < 0.5 else -1)
        for name in ("air", "gas"):
            means[CODE[name]] = 0.0
        means[CODE["lung"]] = min(means[CODE["lung"]], numbers.uniform(0, 0.3))
        texture = numbers.uniform(0.0, 0.09, len(means)) * np.maximum(np.abs(means), 0.1)
        texture[[LIVER, VESSEL, TUMOUR]] = numbers.uniform(0.01, 0.08) * means[LIVER]
    to = {"dtype": torch.float32, "device": random.device}
    return torch.as_tensor(means, **to), torch.as_tensor(texture, **to), bool(visible)


def _spread(kind: str) -> float:
    return 25.0 if kind == "ct" else 0.2


def _ct_artefacts(value: torch.Tensor, tissues: torch.Tensor, spacing_mm: float, random: Random) -> torch.Tensor:
    """A table below the patient; now and then a needle in the liver with its streaks."""
    z, y, x = value.shape
    air = tissues == AIR
    if random.chance(0.3):
        row = y - 1 - int(random.numbers.integers(0, max(1, y // 4)))
        plate = torch.zeros_like(air)
        plate[:, row : row + 1 + int(random.chance(0.3))] = True
        value = torch.where(plate & air, random.uniform(-400, 300), value)
    liver = (tissues == LIVER).nonzero()
    if len(liver) and random.chance(0.15):
        centre = liver[int(random.numbers.integers(len(liver)))].float()
        axes = [torch.arange(n, device=random.device) - c for n, c in zip((z, y, x), centre.tolist(), strict=True)]
        dz, dy, dx = torch.meshgrid(*axes, indexing="ij")
        angle, rise = random.uniform(-np.pi, 0), random.uniform(-0.3, 0.3)
        way = np.array([rise, np.sin(angle), np.cos(angle)])
        way /= np.linalg.norm(way)
        along = way[0] * dz + way[1] * dy + way[2] * dx
        off = (dz.square() + dy.square() + dx.square() - along.square()).clamp(min=0).sqrt()
        value = torch.where((off < 0.6) & (along > 0), 2500.0, value)
        near = torch.exp(-((spacing_mm * dz / 6.0) ** 2)) * torch.exp(-torch.hypot(dy, dx) * spacing_mm / 45.0)
        rays = torch.cos(round(random.uniform(4, 12)) * torch.atan2(dy, dx) + random.uniform(0, 6.28))
        value = value + random.uniform(20, 140) * near * rays
    return value


def blurred(value: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian, sigma in voxels, below 1."""
    offsets = torch.arange(-2, 3, device=value.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    result = value[None, None]
    for axis in range(3):
        window = kernel.reshape([5 if a == axis else 1 for a in range(3)])[None, None]
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = 2
        result = F.conv3d(F.pad(result, padding, mode="replicate"), window)
    return result[0, 0]


def thick_slices(value: torch.Tensor, spacing_mm: float, random: Random) -> torch.Tensor:
    """As acquired in slices of up to 8 mm, most often axial, and interpolated back."""
    axis = 0 if random.chance(0.8) else int(random.numbers.integers(1, 3))
    size = list(value.shape)
    size[axis] = max(4, round(size[axis] * spacing_mm / random.uniform(1.2 * spacing_mm, max(8.0, 1.2 * spacing_mm))))
    coarse = F.interpolate(value[None, None], size=size, mode="area")
    return F.interpolate(coarse, size=tuple(value.shape), mode="trilinear", align_corners=False)[0, 0]


def _field_of_view(shape: tuple[int, int, int], random: Random) -> torch.Tensor:
    """True where the scanner measured: cut by one or two planes, most often across the patient."""
    seen = torch.ones(shape, dtype=torch.bool, device=random.device)
    for _ in range(1 + int(random.chance(0.4))):
        axis = 0 if random.chance(0.7) else int(random.numbers.integers(1, 3))
        cut = int(shape[axis] * random.uniform(0.05, 0.3))
        seen.narrow(axis, 0 if random.chance(0.5) else shape[axis] - cut, cut).fill_(False)
    return seen


def _normalised(
    value: torch.Tensor, tissues: torch.Tensor, seen: torch.Tensor, kind: str, random: Random
) -> torch.Tensor:
    """As registration.preparation does: the CT by its window, the MRI by percentiles of the body; noise before that."""
    if kind == "ct":
        low, high = CT_WINDOW_HU
        noise = random.uniform(2, 28)
        value = value + noise * (0.75 * random.normal(*value.shape) + 0.66 * random.smooth(tuple(value.shape), 1.7)[0])
    else:
        body = value[seen & (tissues != AIR)]
        body = body[:: max(1, body.numel() // 20_000)]
        if body.numel() < 20:
            return torch.zeros_like(value)
        scale = torch.quantile(body, 0.5).clamp(min=1e-3)
        sigma = random.uniform(0.01, 0.12) * scale
        value = torch.hypot(value + sigma * random.normal(*value.shape), sigma * random.normal(*value.shape))
        low, high = torch.quantile(
            body, torch.tensor([0.01, random.uniform(0.98, 0.998)], device=value.device)
        ).tolist()
    return torch.where(seen, ((value - low) / max(high - low, 1e-6)).clamp(0, 1), 0.0)
