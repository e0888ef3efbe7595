"""Cases on the networks' working grids, kept as small files: read once, then the same in every round and session.

Everything of one case lies in its CT's frame (`pipeline.Inputs.in_ct_frame`). Three kinds of files:

    cases/NAME.npz            both images, the MRI's labels; made once
    round-N/pairs/NAME.npz    the alignment, and the CT's liver as the newest UNet finds it
    round-N/pseudo_labels/    NAME.nii.gz, NAME_confidence.nii.gz (per cent), NAME.json: see `pseudo_labels`
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .. import pipeline
from ..cases import Case
from ..deformation import Affine
from ..errors import InputError
from ..labels import TUMOUR
from ..registration.preparation import DISTANCE_LIMIT_MM, Scan, prepare_ct, prepare_mr
from ..volumes import Grid, Volume
from .cohort import Member, labels_of
from .pseudo_labels import classes_of, shown_in_ct

# Tissues of an unlabelled body: as many grey levels of the MRI, each painted as some organ or other (see `weak_tasks`).
LEVELS = 6


@dataclass(frozen=True)
class Prepared:
    """ct, mr: on isotropic grids of the UNet's spacing, (z, y, x) float32 in [0, 1], 0 where nothing was measured.

    mr_target: classes 0 background, 1 liver, 2 tumour. mr_tissues: 0 air, 1 to LEVELS grey levels of the body, with the
    simulator's codes for liver and tumour added to LEVELS. moving: (4, z, y, x) float32 on moving_grid, of
    MSCGUNet's spacing: value, measured (0 or 1), signed distance to the liver's surface (mm), the same to the
    nearest tumour's. fixed: (2, z, y, x) on fixed_grid: value, measured.
    truth: the CT's classes where a person drew or corrected them (or a simulation knows them); only corrected ones of
    cases that are learnt from may be learnt.
    frame: (4, 4), from the CT's frame to the world.
    """

    ct: np.ndarray
    ct_measured: np.ndarray
    ct_grid: Grid
    mr: np.ndarray
    mr_measured: np.ndarray
    mr_target: np.ndarray
    mr_tissues: np.ndarray
    fixed: np.ndarray
    fixed_grid: Grid
    moving: np.ndarray
    moving_grid: Grid
    truth: np.ndarray | None
    frame: np.ndarray

    @property
    def world_grid(self) -> Grid:
        """ct_grid where it lies in the world."""
        return self.ct_grid.moved(self.frame)


LIVER_LEVEL, TUMOUR_LEVEL = LEVELS + 1, LEVELS + 2


def prepare(case: Case, spacing_mm: float, registration_mm: float) -> Prepared:
    """spacing_mm: of the UNet; registration_mm: of MSCGUNet."""
    inputs = pipeline.Inputs(case.mr, case.ct, labels_of(case), None, Affine.identity())
    straight = inputs.in_ct_frame()
    labels = straight.labels
    lesion = labels.mask(TUMOUR)
    lesions = Volume(lesion, labels.volume.grid) if lesion.any() else None
    ct = prepare_ct(straight.ct, spacing_mm, None)
    mr = prepare_mr(straight.mr, spacing_mm, None, None)
    fixed = prepare_ct(straight.ct, registration_mm, None)
    moving = prepare_mr(straight.mr, registration_mm, labels.whole_liver(), lesions)
    target = _share(labels.whole_liver(), mr.grid) > 0.5
    target = target.astype(np.uint8)
    if lesions is not None:
        target[_share(lesions, mr.grid) > 0.5] = 2
    distance = moving.lesion_distance_mm
    return Prepared(
        ct=_seen(ct),
        ct_measured=ct.inside > 0.5,
        ct_grid=ct.grid,
        mr=_seen(mr),
        mr_measured=mr.inside > 0.5,
        mr_target=target,
        mr_tissues=_grey_levels(mr, target),
        fixed=np.stack([_seen(fixed), fixed.inside]),
        fixed_grid=fixed.grid,
        moving=np.stack(
            [
                _seen(moving),
                moving.inside,
                np.where(moving.inside > 0.5, moving.liver_distance_mm, DISTANCE_LIMIT_MM).astype(np.float32),
                np.full_like(moving.value, DISTANCE_LIMIT_MM) if distance is None else distance,
            ]
        ),
        moving_grid=moving.grid,
        truth=_truth(case, ct.grid.moved(inputs.ct_frame)),
        frame=inputs.ct_frame,
    )


def _seen(scan: Scan) -> np.ndarray:
    return np.where(scan.inside > 0.5, scan.value, 0.0).astype(np.float32)


def _share(mask: Volume, grid: Grid) -> np.ndarray:
    return Volume(mask.array.astype(np.uint8), mask.grid).along_patient_axes().resample_to(grid).array


def _truth(case: Case, grid: Grid) -> np.ndarray | None:
    """(z, y, x) classes on a grid of the world, of the labels on the CT."""
    if case.ct_labels is None:
        return None
    labels = labels_of(case, "ct_labels")
    classes = classes_of(labels, shown_in_ct(case.ct, labels, grid))
    liver = _share(Volume(classes > 0, case.ct.grid), grid) > 0.5
    tumour = _share(Volume(classes == 2, case.ct.grid), grid) > 0.5
    return np.where(tumour, 2, liver).astype(np.uint8)


def not_shown(case: Case, grid: Grid) -> np.ndarray:
    """(z, y, x) bool on a grid of the world: tumours that somebody put on the CT and that its image does not show."""
    labels = labels_of(case, "ct_labels")
    shown = shown_in_ct(case.ct, labels, grid)
    hidden = [label.value for label in labels.tumours if label.value not in shown]
    return _share(Volume(np.isin(labels.volume.array, hidden), case.ct.grid), grid) > 0


def _grey_levels(scan: Scan, target: np.ndarray) -> np.ndarray:
    """A body without an atlas as a map of tissues: quantiles of its smoothed values, the liver and its tumours apart.

    As Billot et al. (SynthSeg, 2023) do with the parts of an image that nobody labelled.
    """
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(scan.value), 1.0))
    body = (scan.body > 0.5) & (scan.inside > 0.5)
    result = np.zeros(scan.value.shape, dtype=np.uint8)
    if body.any():
        edges = np.quantile(smooth[body][::7], np.linspace(0, 1, LEVELS + 1)[1:-1])
        result[body] = 1 + np.searchsorted(edges, smooth[body])
    result[target == 1], result[target == 2] = LIVER_LEVEL, TUMOUR_LEVEL
    return result


@dataclass(frozen=True)
class Pair:
    """alignment: (4, 4), CT point -> MRI point in the CT's frame.

    ct_liver: (z, y, x) probability of the whole liver on `Prepared.ct_grid`, and ct_distance the signed distance to its
    surface (mm) on `Prepared.fixed_grid`; None where the UNet finds no liver.
    """

    alignment: np.ndarray
    ct_liver: np.ndarray | None = None
    ct_distance: np.ndarray | None = None


# -- files ----------------------------------------------------------------------------------------------------------
def write_arrays(path: Path, content: Mapping[str, np.ndarray | Grid | None]) -> None:
    """Whole or not at all; fractions in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if isinstance(value, Grid):
            stored[name] = np.concatenate([value.size, value.spacing, value.origin, value.direction])
        elif value is not None:
            stored[name] = value.astype(np.float16) if value.dtype == np.float32 else value
    # A name of its own: two runs may share a folder of cases.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **stored)
    partial.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray | Grid]:
    """What `write_arrays` wrote. Raises InputError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content: dict[str, np.ndarray | Grid] = dict(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Training: {path} cannot be read; delete it and start again to make it anew.") from error
    for name, value in content.items():
        if name.endswith("grid"):
            content[name] = Grid(tuple(value[:3].astype(int)), tuple(value[3:6]), tuple(value[6:9]), tuple(value[9:]))
        elif value.dtype == np.float16:
            content[name] = value.astype(np.float32)
    return content


def write_prepared(path: Path, prepared: Prepared) -> None:
    write_arrays(path, {f.name: getattr(prepared, f.name) for f in fields(prepared)})


def read_prepared(path: Path) -> Prepared:
    """Raises InputError."""
    return Prepared(**{"truth": None, **read_arrays(path)})


def write_pair(path: Path, pair: Pair) -> None:
    write_arrays(path, {f.name: getattr(pair, f.name) for f in fields(pair)})


def read_pair(path: Path) -> Pair:
    """Raises InputError."""
    return Pair(**read_arrays(path))


def prepare_member(member: Member, path: Path, spacing_mm: float, registration_mm: float) -> None:
    """Write a case's file where it is missing. Raises InputError that names the case."""
    if not path.exists():
        write_prepared(path, prepare(member.read(), spacing_mm, registration_mm))
