"""Liver tumours: slightly irregular balls of a given diameter, subcapsular or deep, apart from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .shapes import Canvas, Region, random_stream
from .vessels import Segment

_SUBCAPSULAR_MM = 4.0  # a subcapsular tumour comes this near to the capsule
_CLEARANCE_MM = 1.5  # and never nearer than this
_APART_MM = 5.0


@dataclass(frozen=True)
class Tumour:
    """centre: LPS mm in the MR frame. diameter_mm: of the ball of the same volume."""

    centre: np.ndarray
    diameter_mm: float
    axes: np.ndarray  # (k, 3) unit vectors along which the surface bulges or dips
    bumps: np.ndarray  # (k,) relative height
    scale: float  # brings the volume to that of the ball

    @staticmethod
    def of(centre: np.ndarray, diameter_mm: float, rng: np.random.Generator) -> Tumour:
        axes = rng.normal(0, 1, (7, 3))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        bumps = rng.normal(0, 0.07, 7)
        ball = _sphere_points(600)
        radius = _relative_radius(ball, axes, bumps)
        return Tumour(np.asarray(centre, dtype=float), diameter_mm, axes, bumps, float(np.mean(radius**3) ** (-1 / 3)))

    @property
    def reach_mm(self) -> float:
        """The farthest that the surface gets from the centre."""
        relative = _relative_radius(_sphere_points(600), self.axes, self.bumps)
        return 0.5 * self.diameter_mm * self.scale * float(relative.max())

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance in mm to the surface, negative inside."""
        offset = np.stack(np.broadcast_arrays(x - self.centre[0], y - self.centre[1], z - self.centre[2]), axis=-1)
        length = np.linalg.norm(offset, axis=-1)
        direction = offset / np.maximum(length, 1e-6)[..., None]
        surface = 0.5 * self.diameter_mm * self.scale * _relative_radius(direction, self.axes, self.bumps)
        return (length - surface).astype(np.float32)


def _relative_radius(direction: np.ndarray, axes: np.ndarray, bumps: np.ndarray) -> np.ndarray:
    return 1 + (np.maximum(direction @ axes.T, 0) ** 3) @ bumps


def _sphere_points(count: int) -> np.ndarray:
    """Evenly spread unit vectors (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    return np.stack((np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z), axis=1)


VISIBILITIES = ("invisible", "faint", "visible")
_SHARES = (0.6, 0.25, 0.15)
_DARKER_HU = {"invisible": (0.0, 0.0), "faint": (6.0, 14.0), "visible": (25.0, 55.0)}


@dataclass(frozen=True)
class Look:
    """mr: signal, liver = 1. hu: what is added to the liver's attenuation in the CT. visibility: of VISIBILITIES."""

    mr: float
    hu: float
    visibility: str


def choose_looks(seed: int, count: int, mr_range: tuple[float, float], visibility: str | None = None) -> list[Look]:
    """mr_range: of the protocol. visibility: in the CT, of all tumours; drawn for each where it is None."""
    rng = random_stream(seed, "tumour looks")
    looks = []
    for _ in range(count):
        seen = visibility or str(rng.choice(VISIBILITIES, p=_SHARES))
        darker = rng.uniform(*_DARKER_HU[seen])
        sign = -1 if rng.random() < 0.85 else 1
        looks.append(Look(float(rng.uniform(*mr_range)), float(sign * darker), seen))
    return looks


def choose_diameters(seed: int, count: int | None = None) -> list[float]:
    """1 to 4 tumours, or so many, of 8 to 50 mm, small ones more often."""
    rng = random_stream(seed, "tumour diameters")
    drawn = int(rng.integers(1, 5))
    return [round(float(8 + 42 * rng.beta(1.2, 2.4)), 1) for _ in range(drawn if count is None else count)]


def place_tumours(
    canvas: Canvas,
    region: Region,
    liver: np.ndarray,
    segments: Sequence[Segment],
    diameters: Sequence[float],
    seed: int,
    *,
    may_shrink: bool = False,
) -> list[Tumour]:
    """Tumours inside the liver, the largest first, in the order of `diameters` again at the end.

    liver: distance in mm on the region. may_shrink: one that does not fit is made smaller until it does; without it
    InputError is raised.
    """
    rng = random_stream(seed, "tumours")
    step = max(1, round(3.0 / canvas.grid.spacing[0]))
    depth = -_true_distance(liver, canvas.grid.spacing)[::step, ::step, ::step]
    index = np.argwhere(depth > 5)
    depth = depth[depth > 5]
    axes = [axis.ravel()[::step] for axis in (region.x, region.y, region.z)]
    points = np.stack([axis[index[:, 2 - i]] for i, axis in enumerate(axes)], axis=1).astype(float)
    trunks = np.array([(*(0.5 * (a + b)), 0.5 * (r0 + r1)) for a, b, r0, r1 in segments if max(r0, r1) > 2.4]).reshape(
        -1, 4
    )

    placed: dict[int, Tumour] = {}
    for number in np.argsort(diameters)[::-1]:
        wanted_mm = float(diameters[number])
        while True:
            tumour = Tumour.of(np.zeros(3), wanted_mm, rng)
            reach = tumour.reach_mm
            room = depth - reach
            allowed = room > _CLEARANCE_MM
            for other in placed.values():
                allowed &= np.linalg.norm(points - other.centre, axis=1) > reach + other.reach_mm + _APART_MM
            if allowed.any() or not may_shrink or wanted_mm < 8:
                break
            wanted_mm *= 0.9
        if not allowed.any():
            raise InputError(
                f"Simulation: a tumour of {diameters[number]:g} mm does not fit into the liver beside the others; "
                "ask for fewer or smaller tumours."
            )
        # Large vessels are pushed aside by tumours, not swallowed: keep clear of the trunks where there is room.
        clear = allowed.copy()
        for x, y, z, radius in trunks:
            clear &= np.linalg.norm(points - (x, y, z), axis=1) > 0.9 * reach + radius
        choice = clear if clear.sum() > 20 else allowed
        subcapsular = rng.random() < 0.45
        wanted = choice & ((room < _SUBCAPSULAR_MM) if subcapsular else (room > 10))
        choice = wanted if wanted.any() else choice
        centre = points[rng.choice(np.flatnonzero(choice))]
        placed[int(number)] = Tumour(centre, tumour.diameter_mm, tumour.axes, tumour.bumps, tumour.scale)
    return [placed[number] for number in range(len(diameters))]


def _true_distance(distance: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Euclidean distance in mm from an implicit shape's first-order one, which is only right near the surface."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray((distance < 0).astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing])
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))
