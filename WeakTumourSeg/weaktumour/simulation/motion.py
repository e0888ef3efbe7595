"""What lies between the two scans: the table, breathing, and everything that settles differently.

A CT point is carried to the MR frame by a rigid movement of the whole patient, then by breathing and a random smooth
deformation, both functions of the place in the body. The sum is sampled once on a coarse grid, and that sampled field
*is* the truth: images and labels are rendered through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..volumes import Grid
from .body import Body
from .shapes import Profile, random_stream

if TYPE_CHECKING:
    from ..deformation import DisplacementField

FIELD_SPACING_MM = 3.0
_SMALLEST_JACOBIAN = 0.15
# Wavelength in mm, share of the random deformation, number of waves.
_SCALES = ((220.0, 1.0, 14), (110.0, 0.6, 14), (65.0, 0.3, 14))


@dataclass(frozen=True)
class Motion:
    """Parameters of one patient's motion; the same at every resolution.

    rotation (3, 3) and offset_mm (3,): CT point -> rotation @ (point - offset). breathing_mm: the diaphragm's shift
    along the body axis, positive where the organs lie nearer to the feet in the MR than in the CT.
    deformation_mm: root mean square of the random part.
    """

    body: Body
    rotation: np.ndarray
    offset_mm: np.ndarray
    breathing_mm: float
    deformation_mm: float
    waves: tuple[np.ndarray, np.ndarray, np.ndarray]  # (k, 3) rad/mm, (k,) phase, (k, 3) mm

    def rigid(self, ct_points: np.ndarray) -> np.ndarray:
        """(..., 3) CT points -> (..., 3) MR frame, without breathing and deformation."""
        return (ct_points - self.offset_mm) @ self.rotation.T

    def rigid_inverse(self, points: np.ndarray) -> np.ndarray:
        return points @ self.rotation + self.offset_mm

    def displacement(self, ct_points: np.ndarray) -> np.ndarray:
        """(..., 3) CT points -> (..., 3) mm to the same tissue in the MR."""
        place = self.rigid(ct_points)
        moved = place + self._breathing(place)
        if self.deformation_mm > 0:
            moved += self._random(place)
        return moved - ct_points

    def _mobility(self, place: np.ndarray) -> np.ndarray:
        """0 at the spine, 1 away from it."""
        x, y, z = np.moveaxis(place, -1, 0)
        from_spine = np.hypot(x / 1.1, y - self.body.spine_y(z) - 18)
        return _smooth_step(from_spine, 38, 92)

    def _breathing(self, place: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(place, -1, 0)
        # Largest at the diaphragm, gone in the pelvis and at the top of the lungs.
        along = Profile([-235, -150, -80, -25, 95, 160, 240], [0, 0.16, 0.7, 0.93, 1, 0.6, 0.1], 50)(z)
        inside = 0.2 + 0.8 * _smooth_step(self.body.depth(x, y, z), 10, 55)
        result = np.zeros_like(place)
        result[..., 2] = -self.breathing_mm * along * inside * self._mobility(place)
        # Breathing in lowers the diaphragm and pushes the belly forward.
        front = _smooth_step(-y, -60, 80)
        result[..., 1] = -0.22 * self.breathing_mm * along * front * self._mobility(place)
        return result

    def _random(self, place: np.ndarray) -> np.ndarray:
        vectors, phases, amplitudes = self.waves
        phase = place.astype(np.float32) @ vectors.T.astype(np.float32) + phases.astype(np.float32)
        shift = np.sin(phase) @ amplitudes.astype(np.float32)
        return self.deformation_mm * shift * (0.15 + 0.85 * self._mobility(place))[..., None]


def _smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def choose_motion(
    body: Body,
    *,
    breathing_mm: float | None = None,
    deformation_mm: float | None = None,
    world_offset_mm: float | Sequence[float] | None = None,
    tilt_degrees: float | None = None,
) -> Motion:
    """The motion of one patient; what is not given is drawn: breathing 5 to 20 mm either way, deformation 1.5 to 3 mm,
    offset 5 to 40 mm in a random direction, tilt 1 to 6 degrees about a random axis.
    """
    rng = random_stream(body.seed, "motion")
    drawn = {
        "breathing": rng.uniform(5, 20) * rng.choice([-1, 1]),
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
        body,
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
