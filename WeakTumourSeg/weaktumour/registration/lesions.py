"""A tumour that the CT does show: its place is taken from there.

The refinement leaves lesions out of what it compares, since most cannot be seen in the CT and their edge would pull
the field the wrong way. Some can. Round the place where the registration puts a tumour its shape is tried at every
shift: the mean attenuation inside less that of a ring round it. A response is believed where it stands out from those
that the same shape finds anywhere else in this liver, and the more so the farther it is; otherwise nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..deformation import DisplacementField
from ..labels import LIVER, TUMOUR, LabelMap
from ..volumes import Grid, Volume

_REACH_MM = 10.0
_RING_MM = (1.0, 7.0)  # from the tumour's surface
_SOFT_HU = 80.0  # what differs more from the liver's median is no parenchyma
_STANDS_OUT = 6.0  # in spreads of the responses elsewhere; the more, the farther away
_BEYOND_OTHERS = 1.25  # times the largest half per cent of them
_NEAR_MM = 5.0  # shifts are likelier the smaller they are: this is the prior's spread
_FEWEST_PLACES = 200
_THICK_VOXELS = 2  # what an opening of so many leaves is too thick for a vessel
_RIGID_MM, _FADE_MM = 3.0, 20.0  # a correction is full so far beyond the tumour, and gone so much further


@dataclass(frozen=True)
class Seen:
    """A tumour found in the CT; number: from 0.

    centre_mm: where the registration had put it; shift_mm: from there to where it is; both (3,) in the frame of the CT
    given. radius_mm: of a ball of its volume. contrast_hu: against its ring. stands_out: how many spreads of the
    responses elsewhere in the liver.
    """

    number: int
    centre_mm: np.ndarray
    radius_mm: float
    shift_mm: np.ndarray
    contrast_hu: float
    stands_out: float

    @property
    def sentence(self) -> str:
        moved = np.linalg.norm(self.shift_mm)
        return (
            f"It can be seen in the CT ({self.contrast_hu:+.0f} HU); its place was taken from there, "
            f"{moved:.1f} mm from where it had been put."
        )


def carried_roughly(labels: LabelMap, transform: DisplacementField) -> tuple[np.ndarray, Grid]:
    """(z, y, x) on the transform's grid round the liver, and that grid: 1 liver, 2 and above the tumours in turn.

    transform: CT point -> MRI point; labels: on the MRI; both in one frame.
    """
    own = labels.volume.grid
    codes = np.zeros(int(labels.volume.array.max()) + 1, dtype=np.uint8)
    codes[[label.value for label in labels.of_role(LIVER)]] = 1
    codes[[label.value for label in labels.tumours]] = np.arange(len(labels.tumours)) + 2
    # Where the liver comes to lie: the inverse of the affine part will do for a box.
    index = np.argwhere(labels.mask(LIVER, TUMOUR))[::97, ::-1]
    box = transform.best_affine.inverse().transform_points(own.index_to_world(index))
    last = np.asarray(transform.grid.size) - 1
    box = transform.grid.index_to_world(np.clip(transform.grid.world_to_index(box), 0, last))
    grid, part = transform.grid.crop_to(box, 2 * _REACH_MM)
    place = np.round(own.world_to_index(grid.points() + transform.displacement_mm[part])).astype(int)
    within = ((place >= 0) & (place < own.size)).all(-1)
    x, y, z = np.where(within[..., None], place, 0).transpose(3, 0, 1, 2)
    return np.where(within, codes[labels.volume.array[z, y, x]], 0), grid


def find_in_ct(ct: Volume, labels: np.ndarray, grid: Grid, tumours: int) -> list[Seen]:
    """The tumours that can be seen in the CT.

    labels: (z, y, x) on `grid`, isotropic, as the registration carries them: liver 1, tumours from 2 on, so many of
    them. The CT is read on that grid.
    """
    image = ct.resample_to(grid, outside=-1000.0).array.astype(np.float32)
    liver = labels > 0
    inner = _eroded(liver, 1)
    if not inner.any():
        return []
    median = float(np.median(image[inner]))
    use = (inner & (np.abs(image - median) < _SOFT_HU) & ~_vessels(image, median, inner)).astype(np.float32)
    spectra = np.fft.rfftn((image - median) * use), np.fft.rfftn(use)
    near_tumours = _dilated(labels > 1, round(_REACH_MM / grid.spacing[0]))
    found = []
    for number in range(tumours):
        seen = _find(spectra, use, labels == number + 2, near_tumours, grid, number)
        if seen is not None:
            found.append(seen)
    return found


def corrected(field: DisplacementField, seen: Seen) -> DisplacementField:
    """The field with the tumour, and less and less of what surrounds it, moved to where it was seen.

    field: CT -> aligned space, in the frame of `seen`. Invertible, since the correction falls off slowly.
    """
    fade = max(_FADE_MM, 2.5 * float(np.linalg.norm(seen.shift_mm)))
    points = field.grid.points()
    # What lies at the tumour's true place is what the field had at the false one.
    beyond = np.linalg.norm(points - (seen.centre_mm + seen.shift_mm), axis=-1) - seen.radius_mm - _RIGID_MM
    share = 0.5 + 0.5 * np.cos(np.pi * np.clip(beyond / fade, 0, 1))
    place = points - share[..., None] * seen.shift_mm
    return DisplacementField(field.grid, place + field.displacement_at(place) - points)


def _vessels(image: np.ndarray, median: float, inner: np.ndarray) -> np.ndarray:
    """What stands out in the smoothed image and is thin."""
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(image), 1.0))
    off = np.abs(smooth - median)
    strange = sitk.GetImageFromArray(((off > 3 * 1.4826 * np.median(off[inner])) & inner).astype(np.uint8))
    thick = sitk.BinaryMorphologicalOpening(strange, [_THICK_VOXELS] * 3)
    # What is cut off a thick thing's rim is not thin: the opening is grown back over it.
    thick = sitk.And(sitk.BinaryDilate(thick, [1] * 3), strange)
    return sitk.GetArrayFromImage(sitk.And(strange, sitk.Equal(thick, 0))) > 0


def _find(
    spectra: tuple[np.ndarray, np.ndarray], use: np.ndarray, tumour: np.ndarray, near_tumours: np.ndarray, grid: Grid,
    number: int,
) -> Seen | None:  # fmt: skip
    count = int(tumour.sum())
    if count < 8:
        return None
    spacing = grid.spacing[0]
    low, high = (round(v / spacing) for v in _RING_MM)
    ring = _dilated(tumour, high) & ~_dilated(tumour, low)
    index = np.argwhere(tumour)
    centre = index.mean(0)
    inside, inside_used = (_correlated(s, tumour, use.shape) for s in spectra)
    around, around_used = (_correlated(s, ring, use.shape) for s in spectra)
    # The response at lag s: the shape moved by s. Lags wrap round, so shapes that would leave the grid are not valid.
    valid = (inside_used > 0.8 * count) & (around_used > 0.4 * ring.sum())
    response = np.where(valid, inside / np.maximum(inside_used, 1) - around / np.maximum(around_used, 1), 0.0)

    place = [np.fft.fftfreq(n, 1.0 / n) for n in use.shape]  # lags in voxels, z, y, x
    middle = np.round(centre).astype(int)
    target = tuple(
        (middle[a] + place[a])
        .round()
        .astype(int)
        .clip(0, use.shape[a] - 1)
        .reshape([-1 if b == a else 1 for b in range(3)])
        for a in range(3)
    )
    elsewhere = valid & ~near_tumours[target]
    others = np.abs(response[elsewhere])
    if len(others) < _FEWEST_PLACES:
        return None
    spread = 1.4826 * float(np.median(others))
    bound = max(_STANDS_OUT * spread, _BEYOND_OTHERS * float(np.percentile(others, 99.5)))
    z, y, x = np.meshgrid(*place, indexing="ij", sparse=True)
    squared = spacing**2 * (z**2 + y**2 + x**2)
    likely = np.where(squared <= _REACH_MM**2, np.abs(response) * np.exp(-squared / (2 * _NEAR_MM**2)), 0.0)
    best = np.unravel_index(int(likely.argmax()), likely.shape)
    if not likely[best] > bound:
        return None
    # The prior chose the hill; its top is the response's own.
    strength = np.where(squared <= _REACH_MM**2, np.abs(response), 0.0)
    best = _uphill(strength, best)
    lag = np.array([place[a][best[a]] for a in range(3)]) + _peak(strength, best)
    return Seen(
        number,
        grid.index_to_world(centre[::-1]),
        float((3 * count * spacing**3 / (4 * np.pi)) ** (1 / 3)),
        grid.axes @ (spacing * lag[::-1]),
        float(response[best]),
        float(abs(response[best]) / max(spread, 1e-6)),
    )


def _correlated(spectrum: np.ndarray, shape: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """At lag s the sum of the image over the shape moved by s."""
    return np.fft.irfftn(spectrum * np.conj(np.fft.rfftn(shape.astype(np.float32))), size, axes=(0, 1, 2))


def _uphill(values: np.ndarray, start: tuple[int, ...]) -> tuple[int, ...]:
    """The local maximum above a place; indices wrap round."""
    place = np.array(start)
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    while True:
        around = (place + steps) % values.shape
        best = around[values[tuple(around.T)].argmax()]
        if np.array_equal(best, place):
            return tuple(int(i) for i in place)
        place = best


def _peak(values: np.ndarray, best: tuple[int, ...]) -> np.ndarray:
    """(3,) z, y, x: from a maximum to that of the parabola through its neighbours, within half a voxel."""
    result = np.zeros(3)
    for axis in range(3):
        before, after = list(best), list(best)
        before[axis], after[axis] = best[axis] - 1, (best[axis] + 1) % values.shape[axis]
        a, b, c = values[tuple(before)], values[best], values[tuple(after)]
        curve = a - 2 * b + c
        result[axis] = np.clip(0.5 * (a - c) / curve, -0.5, 0.5) if curve < 0 else 0.0
    return result


def _dilated(mask: np.ndarray, voxels: int) -> np.ndarray:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryDilate(image, [voxels] * 3)) > 0


def _eroded(mask: np.ndarray, voxels: int) -> np.ndarray:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryErode(image, [voxels] * 3)) > 0
