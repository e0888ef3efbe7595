"""An analytic patient for the report's tests: ellipsoids in world space, sampled on any grid, a known displacement."""

from __future__ import annotations

import numpy as np

from weaktumour.deformation import DisplacementField
from weaktumour.report import ReportData
from weaktumour.result import (
    Candidate,
    Component,
    Displacement,
    InputFile,
    Jacobian,
    LabelResult,
    Model,
    Registration,
    RunResult,
    RunVerdict,
    Similarity,
    Truth,
    TumourResult,
)
from weaktumour.volumes import Grid, Volume

CENTRE = np.array([12.0, -35.0, 140.0])  # LPS mm, on purpose not at the origin


def _at(right_to_left: float, front_to_back: float, foot_to_head: float) -> np.ndarray:
    return CENTRE + np.array((right_to_left, front_to_back, foot_to_head))


# The liver lies on the patient's right (negative LPS x); radii in mm.
BODY = (CENTRE, (165.0, 115.0, 400.0))
LIVER = (_at(-55.0, -5.0, 0.0), (80.0, 70.0, 60.0))
TUMOURS = {2: (_at(-85.0, 10.0, 15.0), (14.0, 14.0, 14.0)), 3: (_at(-25.0, -25.0, -20.0), (9.0, 12.0, 9.0))}
SPLEEN = (_at(105.0, 40.0, 10.0), (32.0, 40.0, 45.0))
SPINE = (_at(0.0, 75.0, 0.0), (20.0, 22.0, 400.0))
START_SHIFT_MM = np.array([6.0, -9.0, 14.0])  # what the initial transform leaves


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    i, j = [a for a in range(3) if a != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def grid_around(extent_mm=(360.0, 260.0, 200.0), spacing=(2.0, 2.0, 2.5), axes=None) -> Grid:
    """A grid centred on the patient whose index axes are the columns of `axes` (flips and oblique ones included)."""
    axes = np.eye(3) if axes is None else np.asarray(axes, dtype=float)
    along = np.abs(axes).T @ np.asarray(extent_mm)
    size = np.maximum(2, np.round(along / np.asarray(spacing))).astype(int)
    origin = CENTRE - axes @ ((size - 1) / 2 * np.asarray(spacing))
    return Grid(tuple(size), spacing, tuple(origin), tuple(axes.ravel()))


def inside(points: np.ndarray, ellipsoid) -> np.ndarray:
    centre, radii = ellipsoid
    return (((points - centre) / radii) ** 2).sum(-1) < 1


def label_array(points: np.ndarray) -> np.ndarray:
    labels = inside(points, LIVER).astype(np.uint8)
    for value, tumour in TUMOURS.items():
        labels[inside(points, tumour)] = value
    return labels


def image_array(points: np.ndarray, modality: str, seed: int = 0) -> np.ndarray:
    """CT: the tumours are invisible; MR: they are dark."""
    air, fat, organ, liver, bone, tumour, noise = (
        (-1000, -90, 50, 60, 400, 60, 12) if modality == "ct" else (2, 500, 250, 330, 90, 150, 12)
    )
    values = np.full(points.shape[:-1], air, dtype=np.float32)
    values[inside(points, BODY)] = organ
    values[inside(points, BODY) & ~inside(points, (BODY[0], np.array(BODY[1]) - 14))] = fat
    values[inside(points, SPLEEN)] = liver
    values[inside(points, SPINE)] = bone
    labels = label_array(points)
    values[labels > 0] = liver
    values[labels > 1] = tumour
    texture = 0.15 * liver * np.sin(points / 9.0).prod(-1) if modality == "mr" else 25 * np.sin(points / 9.0).prod(-1)
    values = values + np.where(labels == 1, texture, 0).astype(np.float32)
    return values + np.random.default_rng(seed).normal(0, noise, values.shape).astype(np.float32)


def displacement(points: np.ndarray) -> np.ndarray:
    """A start's shift plus a smooth local push of 8 mm near the first tumour."""
    bump = np.exp(-((points - TUMOURS[2][0]) ** 2).sum(-1, keepdims=True) / (2 * 30.0**2))
    return START_SHIFT_MM + bump * np.array([0.0, -8.0, 0.0])


def make_data(
    grid: Grid | None = None,
    *,
    truth: bool = True,
    names: dict[int, str] | None = None,
    files=("mr.nii.gz", "ct.nii.gz"),
) -> ReportData:
    """Report data whose registration is right: `after` is the anatomy on the CT, `before` is the MR where it was."""
    grid = grid or grid_around()
    points = grid.points()
    moved = points - displacement(points)  # roughly the inverse: good enough for a picture of "before"
    field_grid = Grid.around(grid.corners(), 8.0, 8.0)
    names = names or {1: "Liver", 2: "Tumour 1", 3: "Tumour 2"}
    labels = Volume(label_array(points), grid)
    return ReportData(
        ct=Volume(image_array(points, "ct").astype(np.int16), grid),
        mr_before=Volume(image_array(moved, "mr", 1), grid),
        mr_after=Volume(image_array(points, "mr", 1), grid),
        labels=labels,
        label_names=names,
        labels_before=Volume(label_array(moved), grid),
        field=DisplacementField(field_grid, displacement(field_grid.points())),
        result=make_result(labels, names, files, truth=truth).to_dict(),
        truth_labels=Volume(label_array(points + np.array((2.0, 1.0, 0.0))), grid) if truth else None,
    )


def make_result(
    labels: Volume, names: dict[int, str], files=("mr.nii.gz", "ct.nii.gz"), *, truth: bool = True
) -> RunResult:
    voxel, world = labels.grid.voxel_volume_mm3, labels.grid.index_to_world
    measured = {}
    for value in names:
        index = np.argwhere(labels.array == value)[:, ::-1]
        measured[value] = (len(index), len(index) * voxel, world(index.mean(0)) if len(index) else None)
    tumours = [
        TumourResult(
            label=value,
            name=name,
            volume_mm3=measured[value][1],
            volume_ratio=1.02 if value == 2 else 1.31,
            jacobian_ratio=1.01,
            diameter_mm=(6 * measured[value][1] / np.pi) ** (1 / 3),
            centroid_lps_mm=measured[value][2],
            inside_ct_fraction=1.0,
            warnings=[] if value == 2 else [f"{name}: the volume changed by 31 %, the deformation explains 1 %."],
        )
        for value, name in names.items()
        if value > 1
    ]
    figures = {"dice": 0.953, "hd95_mm": 4.2, "assd_mm": 1.31, "centroid_error_mm": 2.27, "volume_ratio": 1.01}
    return RunResult(
        inputs={
            "mr": InputFile(files[0], "ab" * 32, (160, 140, 40), (1.7, 1.7, 4.0), "LPS"),
            "ct": InputFile(files[1], "cd" * 32, labels.grid.size, labels.grid.spacing, "LPS"),
            "mr_labels": InputFile("mr_labels.nii.gz", "ef" * 32, (160, 140, 40), (1.7, 1.7, 4.0), "LPS"),
        },
        settings={
            "preset": "balanced",
            "stages": ["alignment", "refinement"],
            "device": "cpu",
            "threads": 2,
            "seed": 0,
            "working_spacing_mm": 2.5,
            "refinement": {
                "levels": [{"control_mm": 32.0, "steps": 40}, {"control_mm": 16.0, "steps": 50}],
                "bending": 0.3,
            },
        },
        registration=Registration(
            start="body centroids",
            stages_kept=["alignment", "refinement"],
            candidates=[
                Candidate("as given", "start", 0.412),
                Candidate("body centroids", "start", 0.563, True),
                Candidate("affine", "alignment", 0.633, True),
                Candidate("instance optimisation", "refinement", 0.742, True),
            ],
            similarity=Similarity("MIND-SSC", 0.41, 0.74),
            jacobian=Jacobian(0.62, 0.81, 1.01, 1.22, 1.41, 0),
            displacement=Displacement(12.3, 27.1),
        ),
        labels={
            value: LabelResult(
                name,
                "liver" if value == 1 else "tumour",
                measured[value][1],
                [Component(measured[value][1], measured[value][2], 30.0)] if measured[value][0] else [],
            )
            for value, name in names.items()
        },
        tumours=tumours,
        run=RunVerdict(),
        timings_s={"read": 2.1, "align": 9.4, "refine": 31.0, "propagate": 1.7, "report": 2.0},
        metrics={"mutual_information_before": 0.31, "mutual_information_after": 0.52, "liver_overlap_dice": 0.94},
        models=[Model("unet-1", "unet.pt", "12" * 32, "segmentation")],
        peak_memory_mb=1432.0,
        truth=Truth(
            "simulated",
            {2: figures, 3: figures},
            figures,
            {"number": 400, "mean_mm": 2.1, "p95_mm": 4.4, "max_mm": 6.0},
        )
        if truth
        else None,
        warnings=["The MR does not cover the lowest 12 mm of the liver."],
    )
