"""Simulated patients: one call gives an MRI with labels, a CT, and the truth that links them.

From the phantom, from a label map of a real liver, or from a real CT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from json import dumps
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..cases import Case
from ..errors import InputError
from ..progress import Monitor
from ..volumes import Grid, Volume
from .anatomy import Anatomy, Wanted, build_anatomy
from .composed import anatomy_of_ct, anatomy_of_map
from .contrast import CT_PHASES, MR_PROTOCOLS, BiasField, ct_noise, rician
from .motion import FIELD_SPACING_MM, Motion, choose_motion, truth_field
from .needle import Needle
from .shapes import random_stream
from .tissue_maps import composed_map
from .tumours import VISIBILITIES, choose_diameters

if TYPE_CHECKING:
    from ..deformation import DisplacementField

VERSION = 2  # raise it with every change that alters a simulated patient

_SLAB_VOXELS = 4_000_000
_TRUTH_POINTS = 200
Spacing = float | Sequence[float]
# Of the fields of view's middles from the anatomy's centre, LPS mm.
_CT_BELOW, _MR_ABOUT = np.array([0.0, 0, -14]), np.array([-12.0, 0, 12])
_MR_EXTENT_MM = (330.0, 250.0, 210.0)
_CUT_MM = 45.0  # of the MR's extent along the body, where dome or tip are cut off
_COVERAGE_SHARES = (0.75, 0.125, 0.125)
_PROTOCOL_SHARES = (0.35, 0.25, 0.2, 0.2)  # of MR_PROTOCOLS
_PHASE_SHARES = (0.7, 0.18, 0.12)  # of CT_PHASES


def simulate_patient(
    seed: int = 0,
    *,
    label_map: Volume | None = None,
    label_map_name: str = "label map",
    ct_spacing_mm: Spacing = (1.5, 1.5, 2.0),
    mr_spacing_mm: Spacing | None = None,
    ct_extent_mm: Sequence[float] = (340.0, 260.0, 280.0),
    mr_extent_mm: Sequence[float] | None = None,
    ct_grid: Grid | None = None,
    mr_grid: Grid | None = None,
    tumour_diameters_mm: Sequence[float] | None = None,
    tumour_count: int | None = None,
    tumours_in_ct: str | None = None,
    mr_protocol: str | None = None,
    ct_phase: str | None = None,
    breathing_mm: float | None = None,
    deformation_mm: float | None = None,
    world_offset_mm: float | Sequence[float] | None = None,
    tilt_degrees: float | None = None,
    mr_oblique_degrees: float | None = None,
    ct_noise_hu: float | None = None,
    mr_noise: float | None = None,
    needle: bool | None = None,
    anatomy_spacing_mm: float = 1.5,
    monitor: Monitor | None = None,
) -> Case:
    """A patient who depends on the seed (and the label map) alone; the same patient on whatever grids are asked for.

    label_map: a real liver, or torso, in the place of the phantom's (see `tissue_maps.LABEL_TISSUES`); its name goes
    into case.json. ct_grid, mr_grid: render on exactly these grids instead of spacing and extent (an MR grid lies in
    the MR frame, whose origin is the patient's centre). anatomy_spacing_mm: of the grid on which the organs are drawn;
    2.5 is quick and coarse, and another patient in detail.

    What is not given is drawn by the seed: mr_spacing_mm (1.2 to 1.7 mm in plane, 3 to 6 mm slices), mr_extent_mm (the
    whole liver, or without dome or tip now and then, never without a tumour), tumour_diameters_mm (1 to 4, or
    tumour_count, of 8 to 50 mm; smaller where they do not fit), tumours_in_ct (invisible, faint or visible; drawn for
    each: invisible ones have the liver's mean, texture and noise), mr_protocol and ct_phase (of `contrast`),
    breathing_mm (signed), deformation_mm (root mean square), world_offset_mm (length, or x, y, z: where the patient's
    centre lies in the CT), tilt_degrees (patient turned between the scans), see `choose_motion`; mr_oblique_degrees (of
    the MR slices, 5 to 15), ct_noise_hu (8 to 18, or low dose: to 30), mr_noise (share of the liver's signal, 0.02 to
    0.06), needle (an ablation needle with its streaks in the CT, one patient in six).

    Raises InputError for a tumour that does not fit, an unknown protocol, phase or visibility, and an unusable map.
    """
    check = monitor.check if monitor else (lambda: None)
    wanted = _wanted(seed, tumour_diameters_mm, tumour_count, tumours_in_ct, mr_protocol, ct_phase)
    if label_map is None:
        anatomy = build_anatomy(seed, wanted, anatomy_spacing_mm, check)
    else:
        anatomy = anatomy_of_map(composed_map(label_map, seed, label_map_name), seed, wanted, anatomy_spacing_mm, check)
    motion = _motion(anatomy, breathing_mm, deformation_mm, world_offset_mm, tilt_degrees)
    scan = _Scan.drawn(seed, mr_spacing_mm, mr_extent_mm, ct_noise_hu, mr_noise, needle)
    ct_grid = ct_grid or _grid_about(
        motion.rigid_inverse(anatomy.centre + _CT_BELOW), ct_extent_mm, ct_spacing_mm, np.eye(3)
    )
    mr_grid = mr_grid or scan.mr_grid(seed, anatomy, anatomy.centre, mr_oblique_degrees)
    liver_box = motion.rigid_inverse(anatomy.liver.grid.corners())
    truth = truth_field(motion, np.vstack((ct_grid.corners(), liver_box)), check)

    ct_to_mr, identity = truth.to_sitk(), sitk.Transform(3, sitk.sitkIdentity)
    mr = _render_mr(anatomy, mr_grid, identity, anatomy.centre, scan.mr_noise, seed, check)
    metal = Needle.drawn(seed, truth.inverse_points(_target(anatomy))[0]) if scan.needle else None
    ct = _render_ct(anatomy, ct_grid, ct_to_mr, scan.ct_noise_hu, metal, seed, check)
    mr_labels = _render_labels(anatomy, mr_grid, identity, np.asarray, check)
    ct_labels = _render_labels(anatomy, ct_grid, ct_to_mr, truth.inverse_points, check)
    points = truth.inverse_points(_truth_points(anatomy, seed))
    settings = {
        **_settings(seed, wanted, anatomy, motion, scan),
        "ct_phase": wanted.phase,
        "ct_noise_hu": round(scan.ct_noise_hu, 3),
        "needle": scan.needle,
        "anatomy_spacing_mm": anatomy_spacing_mm,
    }
    source = "phantom" if label_map is None else label_map_name
    return _case(
        (mr, ct, mr_labels, ct_labels), truth, np.hstack((points, truth.transform_points(points))), source, settings
    )


def simulate_from_ct(
    ct: Volume,
    labels: Volume,
    seed: int = 0,
    *,
    name: str = "real CT",
    mr_spacing_mm: Spacing | None = None,
    tumour_diameters_mm: Sequence[float] | None = None,
    tumour_count: int | None = None,
    mr_protocol: str | None = None,
    breathing_mm: float | None = None,
    deformation_mm: float | None = None,
    world_offset_mm: float | Sequence[float] | None = None,
    tilt_degrees: float | None = None,
    mr_oblique_degrees: float | None = None,
    mr_noise: float | None = None,
    anatomy_spacing_mm: float = 1.5,
    monitor: Monitor | None = None,
) -> Case:
    """A real CT, untouched, with a simulated MRI of the same patient: other contrast, position and breathing, and
    tumours that the CT does not have.

    labels: 1 liver, further values tumours in it, on the CT's grid. name: for case.json. The rest as in
    `simulate_patient`; the MRI covers no more than the CT does. Raises InputError where the CT cannot be used.
    """
    check = monitor.check if monitor else (lambda: None)
    if not labels.grid.same_as(ct.grid):
        raise InputError("Simulation: the labels are not on the CT's grid; resample them to it.")
    wanted = _wanted(seed, tumour_diameters_mm, tumour_count, "invisible", mr_protocol, "portal venous")
    anatomy = anatomy_of_ct(ct, labels.array > 0, seed, wanted, anatomy_spacing_mm, check)
    motion = _motion(anatomy, breathing_mm, deformation_mm, world_offset_mm, tilt_degrees)
    extent = np.ptp(ct.grid.corners(), axis=0)
    scan = _Scan.drawn(seed, mr_spacing_mm, np.minimum(_MR_EXTENT_MM, extent - [0, 0, 8]), 0.0, mr_noise, False)
    # Here the anatomy's frame is the CT's, and it is the MRI that is rendered through the motion.
    centre = motion.rigid_inverse(anatomy.centre)
    mr_grid = scan.mr_grid(seed, anatomy, centre, mr_oblique_degrees)
    liver_box = motion.rigid_inverse(anatomy.liver.grid.corners())
    to_ct = truth_field(motion, np.vstack((mr_grid.corners(), liver_box)), check)
    check()
    truth = to_ct.inverse(Grid.around(ct.grid.corners(), FIELD_SPACING_MM, 3 * FIELD_SPACING_MM))
    check()
    mr = _render_mr(anatomy, mr_grid, to_ct.to_sitk(), centre, scan.mr_noise, seed, check)
    mr_labels = _render_labels(anatomy, mr_grid, to_ct.to_sitk(), to_ct.inverse_points, check)
    ct_labels = _render_labels(anatomy, ct.grid, sitk.Transform(3, sitk.sitkIdentity), np.asarray, check)
    # The liver as it was given, not as it was resampled.
    outlines = np.where(labels.array > 0, np.maximum(ct_labels.array, 1), 0).astype(np.uint8)
    points = _truth_points(anatomy, seed)
    settings = {**_settings(seed, wanted, anatomy, motion, scan), "anatomy_spacing_mm": anatomy_spacing_mm}
    return _case(
        (mr, ct, mr_labels, Volume(outlines, ct.grid)), truth, np.hstack((points, truth.transform_points(points))),
        name, settings,
    )  # fmt: skip


# -- what is drawn --------------------------------------------------------------------------------------------------
def _wanted(
    seed: int, diameters: Sequence[float] | None, count: int | None, visibility: str | None, protocol: str | None,
    phase: str | None,
) -> Wanted:  # fmt: skip
    drawn = diameters is None
    if count is not None and (not drawn or not 1 <= count <= 12):
        raise InputError(f"Simulation: {count} tumours; give 1 to 12, and no diameters with their number.")
    diameters = [float(d) for d in (choose_diameters(seed, count) if drawn else diameters)]
    if any(not 1 <= d <= 80 for d in diameters):
        raise InputError(f"Simulation: tumour diameters {diameters} mm are not all between 1 and 80; correct them.")
    rng = random_stream(seed, "protocol")
    drawn_protocol = str(rng.choice(list(MR_PROTOCOLS), p=_PROTOCOL_SHARES))
    drawn_phase = str(rng.choice(list(CT_PHASES), p=_PHASE_SHARES))
    choices = ((protocol, MR_PROTOCOLS, "MR protocol"), (phase, CT_PHASES, "CT phase"),
               (visibility, VISIBILITIES, "visibility"))  # fmt: skip
    for given, known, what in choices:
        if given is not None and given not in known:
            raise InputError(f"Simulation: {given!r} is no {what}; choose one of {', '.join(known)}.")
    return Wanted(diameters, drawn, protocol or drawn_protocol, phase or drawn_phase, visibility)


@dataclass(frozen=True)
class _Scan:
    """How the two scanners are set. mr_extent_mm: None for a drawn one."""

    mr_spacing_mm: Spacing
    mr_extent_mm: Sequence[float] | None
    mr_noise: float
    ct_noise_hu: float
    needle: bool

    @staticmethod
    def drawn(
        seed: int, spacing: Spacing | None, extent: Sequence[float] | None, ct_noise: float | None,
        mr_noise: float | None, needle: bool | None,
    ) -> _Scan:  # fmt: skip
        rng = random_stream(seed, "scan")
        plane, slices = round(float(rng.uniform(1.2, 1.7)), 2), round(float(rng.uniform(3, 6)), 1)
        noise = float(rng.uniform(18, 30) if rng.random() < 0.2 else rng.uniform(8, 18))
        of_mr, metal = float(rng.uniform(0.02, 0.06)), bool(rng.random() < 1 / 6)
        return _Scan(
            (plane, plane, slices) if spacing is None else spacing,
            extent,
            of_mr if mr_noise is None else mr_noise,
            noise if ct_noise is None else ct_noise,
            metal if needle is None else needle,
        )

    def mr_grid(self, seed: int, anatomy: Anatomy, centre: np.ndarray, oblique_degrees: float | None) -> Grid:
        """About the upper abdomen; now and then the dome or the tip of the liver is cut off."""
        extent = _MR_EXTENT_MM if self.mr_extent_mm is None else self.mr_extent_mm
        whole = _mr_grid(seed, centre, extent, self.mr_spacing_mm, oblique_degrees)
        rng = random_stream(seed, "coverage")
        cut = rng.choice(["whole", "dome", "tip"], p=_COVERAGE_SHARES)
        if self.mr_extent_mm is not None or cut == "whole":
            return whole
        shift = _CUT_MM * (-1 if cut == "dome" else 1)
        part = _grid_about(
            centre + _MR_ABOUT + np.array([0, 0, shift / 2]),
            (*extent[:2], extent[2] - _CUT_MM),
            self.mr_spacing_mm,
            whole.axes,
        )
        reach = [tumour.reach_mm + 8 for tumour in anatomy.tumours]
        inside = all(
            part.contains(tumour.centre + r * np.eye(3)[axis] * side)
            for tumour, r in zip(anatomy.tumours, reach, strict=True) for axis in range(3) for side in (-1, 1)
        )  # fmt: skip
        return part if inside else whole


def _motion(anatomy: Anatomy, breathing, deformation, offset, tilt) -> Motion:
    if offset is not None and not np.isscalar(offset):
        offset = tuple(offset)
    return choose_motion(anatomy.frame, breathing_mm=breathing, deformation_mm=deformation, world_offset_mm=offset,
                         tilt_degrees=tilt)  # fmt: skip


def _target(anatomy: Anatomy) -> np.ndarray:
    """(1, 3) where a needle would be aimed: the first tumour, or the liver's middle."""
    if anatomy.tumours:
        return anatomy.tumours[0].centre[None]
    return anatomy.liver.grid.index_to_world(np.argwhere(anatomy.liver.array < -5).mean(0)[::-1])[None]


def _settings(seed: int, wanted: Wanted, anatomy: Anatomy, motion: Motion, scan: _Scan) -> dict[str, object]:
    return {
        "seed": seed,
        "tumour_diameters_mm": [round(tumour.diameter_mm, 2) for tumour in anatomy.tumours],
        "tumours_in_ct": [look.visibility for look in anatomy.looks],
        "mr_protocol": wanted.protocol,
        "breathing_mm": round(motion.breathing_mm, 3),
        "deformation_mm": round(motion.deformation_mm, 3),
        "world_offset_mm": [round(float(v), 3) for v in motion.offset_mm],
        "rotation": [round(float(v), 6) for v in motion.rotation.ravel()],
        "mr_noise": round(scan.mr_noise, 4),
    }


def _case(
    volumes: tuple[Volume, Volume, Volume, Volume], truth: DisplacementField, points: np.ndarray, source: str,
    settings: dict[str, object],
) -> Case:  # fmt: skip
    mr, ct, mr_labels, ct_labels = volumes
    names = {1: "Liver"} | {2 + i: f"Tumour {i + 1}" for i in range(len(settings["tumour_diameters_mm"]))}
    digest = sha256(dumps([source, settings], sort_keys=True).encode()).hexdigest()[:6]
    return Case(
        mr=mr,
        ct=ct,
        mr_labels=mr_labels,
        ct_labels=ct_labels,
        label_names=names,
        truth=truth,
        truth_points=points,
        info={
            "id": f"sim-v{VERSION}-{settings['seed']:05d}-{digest}",
            "kind": "simulated",
            "source": f"weaktumour.simulation, {source}",
            "simulator_version": VERSION,
            "ct_labels": "truth",
            "simulation": settings,
        },
    )


# -- grids ----------------------------------------------------------------------------------------------------------
def _grid_about(centre: np.ndarray, extent: Sequence[float], spacing: Spacing, axes: np.ndarray) -> Grid:
    spacing = np.broadcast_to(np.asarray(spacing, dtype=float), 3)
    size = np.maximum(np.round(np.asarray(extent, dtype=float) / spacing).astype(int), 2)
    origin = centre - axes @ (spacing * (size - 1) / 2)
    return Grid(tuple(size), tuple(spacing), tuple(origin), tuple(axes.ravel()))


def _mr_grid(
    seed: int, about: np.ndarray, extent: Sequence[float], spacing: Spacing, oblique_degrees: float | None
) -> Grid:
    """Centred on the upper abdomen, its slices tilted about two axes as a technologist would."""
    rng = random_stream(seed, "mr grid")
    angle = rng.uniform(5, 15)
    about_x, about_y = np.radians(angle if oblique_degrees is None else oblique_degrees) * np.array([1, 0.6]) / 1.17
    about_x *= rng.choice([-1, 1])
    about_y *= rng.choice([-1, 1])
    cx, sx, cy, sy = np.cos(about_x), np.sin(about_x), np.cos(about_y), np.sin(about_y)
    axes = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    centre = about + _MR_ABOUT + rng.normal(0, [5, 4, 6])
    return _grid_about(centre, extent, spacing, axes)


# -- rendering ------------------------------------------------------------------------------------------------------
def _resample(image: sitk.Image, grid: Grid, transform: sitk.Transform, outside: float) -> np.ndarray:
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image,
            list(grid.size),
            transform,
            sitk.sitkLinear,
            grid.origin,
            grid.spacing,
            grid.direction,
            outside,
            sitk.sitkFloat32,
            True,  # beyond its end an image goes on as it ended: a real CT may be short
        )
    )


def _supersampled(
    image: sitk.Image, grid: Grid, transform: sitk.Transform, outside: float, fine_mm: float
) -> np.ndarray:
    """The mean over each voxel (partial volume) where it is larger than the anatomy's own grid."""
    factor = np.maximum(1, np.round(np.asarray(grid.spacing) / (1.2 * fine_mm)).astype(int))
    if np.all(factor == 1):
        return _resample(image, grid, transform, outside)
    spacing = np.asarray(grid.spacing) / factor
    origin = np.asarray(grid.origin) - grid.axes @ (spacing * (factor - 1) / 2)
    fine = Grid(tuple(np.asarray(grid.size) * factor), tuple(spacing), tuple(origin), grid.direction)
    array = _resample(image, fine, transform, outside)
    z, y, x = grid.shape
    return array.reshape(z, factor[2], y, factor[1], x, factor[0]).mean(axis=(1, 3, 5))


def _slabs(grid: Grid, fine_mm: float) -> Iterator[tuple[int, Grid]]:
    """First slice and grid of pieces along z that stay small at clinical size."""
    fine = np.prod(np.maximum(1, np.asarray(grid.spacing) / (1.2 * fine_mm)))
    rows = max(1, int(_SLAB_VOXELS / fine / (grid.shape[1] * grid.shape[2])))
    for start in range(0, grid.shape[0], rows):
        yield start, grid.crop((0, 0, start), (*grid.size[:2], min(rows, grid.shape[0] - start)))


def _render_ct(
    anatomy: Anatomy, grid: Grid, ct_to_mr: sitk.Transform, noise_hu: float, needle: Needle | None, seed: int,
    check: Callable,
) -> Volume:  # fmt: skip
    image = anatomy.ct.to_image()
    result = np.empty(grid.shape, dtype=np.int16)
    for start, slab in _slabs(grid, anatomy.ct.grid.spacing[0]):
        check()
        values = _supersampled(image, slab, ct_to_mr, -1000.0, anatomy.ct.grid.spacing[0])
        if needle is not None:
            values = needle.in_ct(values, slab)
        if noise_hu > 0:
            values += ct_noise(grid, start, slab.shape[0], noise_hu, seed)
        result[start : start + slab.shape[0]] = np.clip(np.round(values), -1024, 3071)
    return Volume(result, grid)


def _render_mr(
    anatomy: Anatomy, grid: Grid, to_own: sitk.Transform, centre: np.ndarray, noise: float, seed: int, check: Callable
) -> Volume:
    image = anatomy.mr.to_image()
    bias = BiasField(seed)
    scale = float(random_stream(seed, "mr scale").uniform(180, 900))
    result = np.empty(grid.shape, dtype=np.int16)
    for start, slab in _slabs(grid, anatomy.mr.grid.spacing[0]):
        check()
        values = _supersampled(image, slab, to_own, 0.0, anatomy.mr.grid.spacing[0]) * bias(slab.points() - centre)
        values = rician(np.abs(values), noise, start, seed)  # the magnitude, also of what is out of phase
        result[start : start + slab.shape[0]] = np.round(scale * values)
    return Volume(result, grid)


def _render_labels(anatomy: Anatomy, grid: Grid, to_mr: sitk.Transform, from_mr: Callable, check: Callable) -> Volume:
    """0, 1 liver, 2 and above the tumours: what each voxel's centre lies in.

    from_mr: (n, 3) points of the MR frame -> points of the grid's frame; tells where to look.
    """
    result = np.zeros(grid.shape, dtype=np.uint8)
    shapes = [anatomy.liver]
    shapes += [anatomy.tumour_distance(i, 0.5 * anatomy.ct.grid.spacing[0]) for i in range(len(anatomy.tumours))]
    for value, shape in enumerate(shapes, start=1):
        step = max(1, round(6.0 / shape.grid.spacing[0]))
        near = np.argwhere(shape.array[::step, ::step, ::step] < 2) * step
        try:
            part, slices = grid.crop_to(from_mr(shape.grid.index_to_world(near[:, ::-1])), 12.0)
        except InputError:  # not in the field of view
            continue
        view, image = result[slices], shape.to_image()
        for start, slab in _slabs(part, max(part.spacing)):
            check()
            view[start : start + slab.shape[0]][_resample(image, slab, to_mr, 1e3) < 0] = value
    return Volume(result, grid)


def _truth_points(anatomy: Anatomy, seed: int) -> np.ndarray:
    """(n, 3) LPS mm in the anatomy's frame: each tumour's centroid, then random points inside the liver."""
    rng = random_stream(seed, "truth points")
    inside = np.argwhere(anatomy.liver.array < -2)
    chosen = inside[rng.choice(len(inside), max(0, _TRUTH_POINTS - len(anatomy.tumours)), replace=False)]
    points = [anatomy.liver.grid.index_to_world(chosen[:, ::-1] + rng.uniform(-0.5, 0.5, (len(chosen), 3)))]
    for i in range(len(anatomy.tumours) - 1, -1, -1):
        shape = anatomy.tumour_distance(i, 1.0)
        points.insert(0, shape.grid.points()[shape.array < 0].mean(0)[None])
    return np.vstack(points)
