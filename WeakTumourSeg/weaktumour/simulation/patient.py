"""Simulated patients: one call gives an MRI with labels, a CT, and the truth that links them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from json import dumps
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..cases import Case
from ..errors import InputError
from ..progress import Monitor
from ..volumes import Grid, Volume
from .anatomy import Anatomy, build_anatomy
from .contrast import BiasField, ct_noise, rician
from .motion import choose_motion, truth_field
from .shapes import random_stream
from .tumours import choose_diameters

if TYPE_CHECKING:
    from ..deformation import DisplacementField

VERSION = 1  # raise it with every change that alters a simulated patient

_SLAB_VOXELS = 4_000_000
_TRUTH_POINTS = 200
Spacing = float | Sequence[float]


def simulate_patient(
    seed: int = 0,
    *,
    ct_spacing_mm: Spacing = (1.5, 1.5, 2.0),
    mr_spacing_mm: Spacing = (1.5, 1.5, 4.0),
    ct_extent_mm: Sequence[float] = (340.0, 260.0, 280.0),
    mr_extent_mm: Sequence[float] = (320.0, 240.0, 200.0),
    ct_grid: Grid | None = None,
    mr_grid: Grid | None = None,
    tumour_diameters_mm: Sequence[float] | None = None,
    breathing_mm: float | None = None,
    deformation_mm: float | None = None,
    world_offset_mm: float | Sequence[float] | None = None,
    tilt_degrees: float | None = None,
    mr_oblique_degrees: float | None = None,
    ct_noise_hu: float = 12.0,
    mr_noise: float = 0.035,
    anatomy_spacing_mm: float = 1.5,
    monitor: Monitor | None = None,
) -> Case:
    """A patient who depends on the seed alone; the same patient on whatever grids are asked for.

    ct_grid, mr_grid: render on exactly these grids instead of spacing and extent (an MR grid lies in the MR frame,
    whose origin is the patient's centre). tumour_diameters_mm: by default 1 to 4 tumours of 10 to 40 mm.
    breathing_mm (signed), deformation_mm (root mean square), world_offset_mm (length, or x, y, z: where the patient's
    centre lies in the CT), tilt_degrees (patient turned between the scans): by default drawn, see `choose_motion`.
    mr_oblique_degrees: tilt of the MR slices, drawn from 5 to 15 by default. ct_noise_hu, mr_noise (share of the
    liver's signal): standard deviations, 0 for none. anatomy_spacing_mm: of the grid on which the organs are drawn;
    2.5 is quick and coarse, and another patient in detail.

    The tumours are invisible in the CT: there they have the mean, the texture and the noise of the liver.
    Raises InputError when a tumour does not fit.
    """
    check = monitor.check if monitor else (lambda: None)
    if tumour_diameters_mm is None:
        tumour_diameters_mm = choose_diameters(seed)
    diameters = [float(d) for d in tumour_diameters_mm]
    if any(not 1 <= d <= 80 for d in diameters):
        raise InputError(f"Simulation: tumour diameters {diameters} mm are not all between 1 and 80; correct them.")
    anatomy = build_anatomy(seed, diameters, anatomy_spacing_mm, check)
    motion = choose_motion(
        anatomy.body,
        breathing_mm=breathing_mm,
        deformation_mm=deformation_mm,
        world_offset_mm=world_offset_mm
        if world_offset_mm is None or np.isscalar(world_offset_mm)
        else tuple(world_offset_mm),
        tilt_degrees=tilt_degrees,
    )
    ct_grid = ct_grid or _grid_about(
        motion.rigid_inverse(np.array([0.0, 0, -14])), ct_extent_mm, ct_spacing_mm, np.eye(3)
    )
    mr_grid = mr_grid or _mr_grid(seed, mr_extent_mm, mr_spacing_mm, mr_oblique_degrees)
    liver_box = motion.rigid_inverse(anatomy.liver.grid.corners())
    truth = truth_field(motion, np.vstack((ct_grid.corners(), liver_box)), check)

    ct_to_mr = truth.to_sitk()
    identity = sitk.Transform(3, sitk.sitkIdentity)
    mr = _render_mr(anatomy, mr_grid, mr_noise, seed, check)
    ct = _render_ct(anatomy, ct_grid, ct_to_mr, ct_noise_hu, seed, check)
    mr_labels = _render_labels(anatomy, mr_grid, identity, np.asarray, check)
    ct_labels = _render_labels(anatomy, ct_grid, ct_to_mr, truth.inverse_points, check)
    settings = {
        "seed": seed,
        "tumour_diameters_mm": diameters,
        "breathing_mm": round(motion.breathing_mm, 3),
        "deformation_mm": round(motion.deformation_mm, 3),
        "world_offset_mm": [round(float(v), 3) for v in motion.offset_mm],
        "rotation": [round(float(v), 6) for v in motion.rotation.ravel()],
        "ct_noise_hu": ct_noise_hu,
        "mr_noise": mr_noise,
        "anatomy_spacing_mm": anatomy_spacing_mm,
    }
    return Case(
        mr=mr,
        ct=ct,
        mr_labels=mr_labels,
        ct_labels=ct_labels,
        label_names={1: "Liver"} | {2 + i: f"Tumour {i + 1}" for i in range(len(diameters))},
        truth=truth,
        truth_points=_truth_points(anatomy, truth, seed),
        info={
            "id": f"sim-v{VERSION}-{seed:05d}-{sha256(dumps(settings, sort_keys=True).encode()).hexdigest()[:6]}",
            "kind": "simulated",
            "source": "weaktumour.simulation",
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


def _mr_grid(seed: int, extent: Sequence[float], spacing: Spacing, oblique_degrees: float | None) -> Grid:
    """Centred on the upper abdomen, its slices tilted about two axes as a technologist would."""
    rng = random_stream(seed, "mr grid")
    angle = rng.uniform(5, 15)
    about_x, about_y = np.radians(angle if oblique_degrees is None else oblique_degrees) * np.array([1, 0.6]) / 1.17
    about_x *= rng.choice([-1, 1])
    about_y *= rng.choice([-1, 1])
    cx, sx, cy, sy = np.cos(about_x), np.sin(about_x), np.cos(about_y), np.sin(about_y)
    axes = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    centre = np.array([-12.0, 0, 12]) + rng.normal(0, [5, 4, 6])
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
    anatomy: Anatomy, grid: Grid, ct_to_mr: sitk.Transform, noise_hu: float, seed: int, check: Callable
) -> Volume:
    image = anatomy.ct.to_image()
    result = np.empty(grid.shape, dtype=np.int16)
    for start, slab in _slabs(grid, anatomy.ct.grid.spacing[0]):
        check()
        values = _supersampled(image, slab, ct_to_mr, -1000.0, anatomy.ct.grid.spacing[0])
        if noise_hu > 0:
            values += ct_noise(grid, start, slab.shape[0], noise_hu, seed)
        result[start : start + slab.shape[0]] = np.clip(np.round(values), -1024, 3071)
    return Volume(result, grid)


def _render_mr(anatomy: Anatomy, grid: Grid, noise: float, seed: int, check: Callable) -> Volume:
    image = anatomy.mr.to_image()
    bias = BiasField(seed)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    scale = float(random_stream(seed, "mr scale").uniform(180, 900))
    result = np.empty(grid.shape, dtype=np.int16)
    for start, slab in _slabs(grid, anatomy.mr.grid.spacing[0]):
        check()
        values = _supersampled(image, slab, identity, 0.0, anatomy.mr.grid.spacing[0]) * bias(slab.points())
        values = rician(values, noise, start, seed)
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


def _truth_points(anatomy: Anatomy, truth: DisplacementField, seed: int) -> np.ndarray:
    """(n, 6): CT x, y, z and MR x, y, z of each tumour's centroid, then of random points inside the liver, LPS mm."""
    rng = random_stream(seed, "truth points")
    inside = np.argwhere(anatomy.liver.array < -2)
    chosen = inside[rng.choice(len(inside), max(0, _TRUTH_POINTS - len(anatomy.tumours)), replace=False)]
    points = [anatomy.liver.grid.index_to_world(chosen[:, ::-1] + rng.uniform(-0.5, 0.5, (len(chosen), 3)))]
    for i in range(len(anatomy.tumours) - 1, -1, -1):
        shape = anatomy.tumour_distance(i, 1.0)
        points.insert(0, shape.grid.points()[shape.array < 0].mean(0)[None])
    ct = truth.inverse_points(np.vstack(points))
    return np.hstack((ct, truth.transform_points(ct)))
