"""What lies between the two scans: the table, breathing, and everything that settles differently.

A point of one scan is carried to the frame in which the anatomy is known by a rigid movement of the whole patient, then
by breathing and a random smooth deformation, both functions of the place in the body. The sum is sampled once on a
coarse grid, and that sampled field *is* the truth: images and labels are rendered through it. Anatomies that were drawn
are known in the MR frame, a real CT's in its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import InputError
from ..volumes import Grid, Volume
from .shapes import Profile, random_stream, signed_distance

if TYPE_CHECKING:
    from ..deformation import DisplacementField

FIELD_SPACING_MM = 3.0
_SMALLEST_JACOBIAN = 0.15
# Wavelength in mm, share of the random deformation, number of waves.
_SCALES = ((220.0, 1.0, 14), (110.0, 0.6, 14), (65.0, 0.3, 14))


class Frame(Protocol):
    """A body as motion sees it: what is tied down, and where the diaphragm is."""

    seed: int
    origin: np.ndarray  # (3,) LPS mm: in the midline, 92 mm below the right dome

    def from_spine(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> (...) mm from the spinal canal, across the body."""

    def below_skin(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> (...) mm."""


@dataclass(frozen=True)
class MappedFrame:
    """The frame of a body that is known voxel by voxel.

    spine: (n, 3) x, y, z along the canal, from below. skin: depth in mm on a coarse grid.
    """

    seed: int
    origin: np.ndarray
    spine: np.ndarray
    skin: Volume

    @staticmethod
    def of(body: np.ndarray, bone: np.ndarray, liver: np.ndarray, grid: Grid, seed: int) -> MappedFrame:
        """body, bone, liver: (z, y, x) bool along the patient axes. Raises InputError where one is missing."""
        step = max(1, round(4.0 / grid.spacing[0]))
        size = tuple(-(-n // step) for n in grid.size)
        coarse = Grid(size, tuple(step * s for s in grid.spacing), grid.origin)
        body, bone, liver = (mask[::step, ::step, ::step] for mask in (body, bone, liver))
        if not body.any() or not bone.any() or not liver.any():
            raise InputError("Simulation: body, bones or liver are not in the picture; give a CT of the upper abdomen.")
        x, y, z = (origin + spacing * np.arange(n)
                   for n, spacing, origin in zip(coarse.size, coarse.spacing, coarse.origin, strict=True))  # fmt: skip
        middle = coarse.index_to_world(np.argwhere(body).mean(0)[::-1])
        behind = bone & (np.abs(x - middle[0]) < 45) & (y[:, None] > middle[1])
        levels = np.flatnonzero(behind.any(axis=(1, 2)))
        if not len(levels):
            raise InputError("Simulation: the spine is not in the picture; give a CT that shows the whole body across.")
        place = np.array([np.argwhere(behind[k]).mean(0) for k in levels])  # y, x
        line = [np.interp(np.arange(len(z)), levels, place[:, i]) for i in (1, 0)]
        width = min(15, len(z))
        line = [np.convolve(np.pad(v, width, mode="edge"), np.ones(width) / width, mode="same")[width:-width]
                for v in line]  # fmt: skip
        spine = np.stack((x[0] + line[0] * coarse.spacing[0], y[0] + line[1] * coarse.spacing[1], z), axis=1)
        # The ends of the picture are no skin.
        padded = np.pad(body, ((40, 40), (0, 0), (0, 0)), mode="edge")
        depth = -signed_distance(padded, coarse.spacing)[40:-40]
        top = z[np.flatnonzero(liver.any(axis=(1, 2)))[-1]]
        at = int(np.argmin(np.abs(z - top)))
        origin = np.array([spine[at, 0], middle[1], top - 92])
        return MappedFrame(seed, origin, spine, Volume(depth, coarse))

    def from_spine(self, points: np.ndarray) -> np.ndarray:
        x, y = (np.interp(points[..., 2], self.spine[:, 2], self.spine[:, i]) for i in (0, 1))
        return np.hypot((points[..., 0] - x) / 1.1, points[..., 1] - y)

    def below_skin(self, points: np.ndarray) -> np.ndarray:
        from ..deformation import trilinear  # imports torch: not before it is needed

        flat = points.reshape(-1, 3)
        depth = trilinear(self.skin.array[..., None], self.skin.grid.world_to_index(flat))
        return depth[:, 0].reshape(points.shape[:-1])


@dataclass(frozen=True)
class Motion:
    """Parameters of one patient's motion; the same at every resolution.

    rotation (3, 3) and offset_mm (3,): point of the other scan -> rotation @ (point - offset). breathing_mm: the
    diaphragm's shift along the body axis, positive where the organs lie nearer to the feet in the anatomy's frame.
    deformation_mm: root mean square of the random part.
    """

    frame: Frame
    rotation: np.ndarray
    offset_mm: np.ndarray
    breathing_mm: float
    deformation_mm: float
    waves: tuple[np.ndarray, np.ndarray, np.ndarray]  # (k, 3) rad/mm, (k,) phase, (k, 3) mm

    def rigid(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points of the other scan -> (..., 3) the anatomy's frame, without breathing and deformation."""
        return (points - self.offset_mm) @ self.rotation.T

    def rigid_inverse(self, points: np.ndarray) -> np.ndarray:
        return points @ self.rotation + self.offset_mm

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points of the other scan -> (..., 3) mm to the same tissue in the anatomy's frame."""
        place = self.rigid(points)
        mobility = _smooth_step(self.frame.from_spine(place), 38, 92)
        moved = place + self._breathing(place, mobility)
        if self.deformation_mm > 0:
            moved += self._random(place, mobility)
        return moved - points

    def _breathing(self, place: np.ndarray, mobility: np.ndarray) -> np.ndarray:
        y, z = (place[..., i] - self.frame.origin[i] for i in (1, 2))
        # Largest at the diaphragm, gone in the pelvis and at the top of the lungs; the ribs take little part.
        along = Profile([-235, -150, -80, -25, 95, 160, 240], [0, 0.16, 0.7, 0.93, 1, 0.6, 0.1], 50)(z)
        inside = 0.2 + 0.8 * _smooth_step(self.frame.below_skin(place), 10, 55)
        result = np.zeros_like(place)
        result[..., 2] = -self.breathing_mm * along * inside * mobility
        # Breathing in lowers the diaphragm and pushes the belly forward.
        front = _smooth_step(-y, -60, 80)
        result[..., 1] = -0.22 * self.breathing_mm * along * front * mobility
        return result

    def _random(self, place: np.ndarray, mobility: np.ndarray) -> np.ndarray:
        vectors, phases, amplitudes = self.waves
        phase = place.astype(np.float32) @ vectors.T.astype(np.float32) + phases.astype(np.float32)
        shift = np.sin(phase) @ amplitudes.astype(np.float32)
        return self.deformation_mm * shift * (0.15 + 0.85 * mobility)[..., None]


def _smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def choose_motion(
    frame: Frame,
    *,
    breathing_mm: float | None = None,
    deformation_mm: float | None = None,
    world_offset_mm: float | Sequence[float] | None = None,
    tilt_degrees: float | None = None,
) -> Motion:
    """The motion of one patient; what is not given is drawn: breathing 5 to 30 mm either way, deformation 1.5 to 3 mm,
    offset 5 to 40 mm in a random direction, tilt 1 to 6 degrees about a random axis.
    """
    rng = random_stream(frame.seed, "motion")
    drawn = {
        "breathing": rng.uniform(5, 30) * rng.choice([-1, 1]),
        "deformation": rng.uniform(1.5, 3.0),
        "offset": rng.uniform(5, 40),
        "tilt": rng.uniform(1, 6),
    }
    way = rng.normal(0, 1, 3)
    axis = rng.normal(0, 1, 3)
    waves = [], [], []
    for wavelength, share, count in _SCALES:
        direction = rng.normal(0, 1, (count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        waves[0].append(direction * 2 * np.pi / wavelength * rng.uniform(0.8, 1.0, (count, 1)))
        waves[1].append(rng.uniform(0, 2 * np.pi, count))
        # Transverse waves carry no divergence: tissue gives way sideways, it is not compressed.
        push = rng.normal(0, 1, (count, 3))
        push -= np.sum(push * direction, axis=1, keepdims=True) * direction
        waves[2].append(share * push)
    vectors, phases, amplitudes = (np.concatenate(part) for part in waves)
    # Waves add up in square, half an amplitude's square each: unit root mean square vector length.
    amplitudes = amplitudes / np.sqrt(0.5 * np.sum(amplitudes**2))
    if world_offset_mm is None:
        world_offset_mm = float(drawn["offset"])
    offset = np.asarray(world_offset_mm, dtype=float)
    if offset.ndim == 0:
        offset = offset * way / np.linalg.norm(way)
    return Motion(
        frame,
        _rotation(axis, float(drawn["tilt"] if tilt_degrees is None else tilt_degrees)),
        offset,
        float(drawn["breathing"] if breathing_mm is None else breathing_mm),
        float(drawn["deformation"] if deformation_mm is None else deformation_mm),
        (vectors, phases, amplitudes),
    )


def _rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def truth_field(motion: Motion, corners_mm: np.ndarray, check: Callable[[], None] = lambda: None) -> DisplacementField:
    """The motion sampled every 3 mm over the corners' box and a margin, invertible by construction.

    The samples lie at multiples of the spacing, so that two grids of one patient share one truth.
    Raises ValueError where the motion folds space.
    """
    from ..deformation import DisplacementField  # imports torch: not before it is needed

    grid = Grid.around(corners_mm, FIELD_SPACING_MM, 3 * FIELD_SPACING_MM)
    displacement = np.empty((*grid.shape, 3))
    for k in range(0, grid.size[2], 8):
        check()
        slab = grid.crop((0, 0, k), (*grid.size[:2], min(8, grid.size[2] - k)))
        displacement[k : k + 8] = motion.displacement(slab.points())
    field = DisplacementField(grid, displacement)
    smallest = float(field.jacobian_determinant().min())
    if smallest < _SMALLEST_JACOBIAN:
        raise ValueError(f"the simulated motion folds or nearly folds space (Jacobian determinant {smallest:.2f})")
    return field
