"""The whole story on one page: an MRI with its labels and a CT in, labels on the CT out.

    read and check  ->  alignment  ->  refinement  ->  one transform  ->  labels on the CT grid  ->  result folder

The transform maps CT points to MRI points (LPS mm). A stage is kept only when the label-free score improves.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import result as results
from .deformation import Affine, DisplacementField
from .devices import choose_device
from .errors import InputError
from .labels import (
    LIVER,
    TUMOUR,
    LabelMap,
    components,
    equivalent_diameter,
    parse_label_map,
    read_labels,
    write_labels_json,
)
from .progress import Monitor
from .propagation import Carried, Propagation, propagate_labels, resample_mr
from .quality import displacement_in_liver, jacobian_in_body, judge_run
from .registration.alignment import Alignment, Scorer, align
from .registration.preparation import Scan, prepare_ct, prepare_mr
from .registration.refinement import Level, RefinementSettings, combine, refine
from .report import ReportData, write_report
from .volumes import Grid, Volume, check_hounsfield, read_volume, write_volume
from .workspace import open_workspace

STAGES = ("alignment", "refinement")
ALIGNMENT_SPACING_MM = 4.0
FIELD_SPACING_MM = 2.5
FIELD_BYTES = 90e6


@dataclass(frozen=True)
class Preset:
    """spacing_mm: working grid of the refinement. seconds: expected by stage, the first estimate of what remains."""

    spacing_mm: float
    refinement: RefinementSettings
    seconds: dict[str, float]


PRESETS = {
    "fast": Preset(
        4.0,
        RefinementSettings(levels=(Level(2, 64.0, 15), Level(2, 32.0, 20), Level(2, 16.0, 25))),
        {"read": 1, "alignment": 5, "refinement": 3, "propagation": 1, "write": 1, "report": 2},
    ),
    "balanced": Preset(
        3.0,
        RefinementSettings(),
        {"read": 1, "alignment": 5, "refinement": 7, "propagation": 1, "write": 1, "report": 2},
    ),
    "thorough": Preset(
        2.5,
        RefinementSettings(levels=(Level(2, 64.0, 30), Level(2, 32.0, 35), Level(2, 16.0, 45), Level(2, 10.0, 45))),
        {"read": 1, "alignment": 5, "refinement": 18, "propagation": 1, "write": 1, "report": 2},
    ),
}


@dataclass(frozen=True)
class RegisterArguments:
    """The command line's options of `register`, with underscores."""

    mr: str
    ct: str
    out: str
    overwrite: bool = False
    mr_labels: str | None = None
    mr_label_map: str | None = None
    ct_liver: str | None = None
    initial_transform: str | None = None
    preset: str = "balanced"
    stages: str = ",".join(STAGES)
    device: str = "auto"
    seed: int = 0


def register_and_propagate(arguments: RegisterArguments, monitor: Monitor) -> Path:
    """Carry the MRI's labels onto the CT and write the result folder; returns its path.

    Raises InputError (something given cannot be used), DeviceError, Cancelled. Nothing is left behind then.
    """
    preset, stages, device = _check_settings(arguments)
    monitor.plan(preset.seconds)
    with open_workspace(arguments.out, arguments.overwrite) as folder:
        with monitor.stage("read"):
            inputs = read_inputs(arguments, monitor)
        with monitor.stage("alignment"):
            registration = _align(inputs, stages, arguments.seed, monitor)
        with monitor.stage("refinement"):
            registration = _refine(inputs, registration, stages, preset, device, monitor)
        transform = in_world(registration.transform, inputs)
        with monitor.stage("propagation"):
            labels = propagate_labels(inputs.labels, transform, inputs.ct.grid, monitor)
            mr_on_ct = resample_mr(inputs.mr, transform, inputs.ct.grid)
        with monitor.stage("write"):
            _write_volumes(folder, labels, mr_on_ct, transform, monitor)
            content = _describe(arguments, inputs, registration, labels, preset, stages, device, monitor)
        with monitor.stage("report"):
            mr_before, labels_before = _before(inputs, monitor)
            write_report(
                folder / "report.html",
                ReportData(
                    ct=inputs.ct,
                    mr_before=mr_before,
                    mr_after=mr_on_ct,
                    labels=labels.labels.volume,
                    labels_before=labels_before,
                    label_names={label.value: label.name for label in labels.labels.labels},
                    field=transform,
                    result=content,
                ),
            )
        content["timings_s"] = {**monitor.seconds, "total": sum(monitor.seconds.values())}
        results.write_result(folder / "result.json", content)
        monitor.check()
    return Path(arguments.out)


# -- inputs -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inputs:
    """Checked inputs. initial: CT point -> MRI point, identity unless given."""

    mr: Volume
    ct: Volume
    labels: LabelMap
    ct_liver: Volume | None
    initial: Affine

    @property
    def ct_frame(self) -> np.ndarray:
        """(4, 4): from a frame whose axes are the CT's (in the order nearest to LPS) to the world."""
        frame = np.eye(4)
        frame[:3, :3] = self.ct.along_patient_axes().grid.axes
        return frame

    def in_ct_frame(self) -> Inputs:
        """Everything turned so that the CT lies straight: an oblique CT registers exactly like a straight one."""
        from_world = np.linalg.inv(self.ct_frame)

        def turned(volume: Volume) -> Volume:
            return Volume(volume.array, volume.grid.moved(from_world))

        return Inputs(
            turned(self.mr),
            turned(self.ct),
            LabelMap(turned(self.labels.volume), self.labels.labels),
            None if self.ct_liver is None else turned(self.ct_liver),
            Affine(from_world @ self.initial.matrix @ self.ct_frame),
        )


def _check_settings(arguments: RegisterArguments) -> tuple[Preset, tuple[str, ...], torch.device]:
    if arguments.preset not in PRESETS:
        raise InputError(f'Preset: "{arguments.preset}" is not known; choose one of {", ".join(PRESETS)}.')
    stages = tuple(stage.strip() for stage in arguments.stages.split(",") if stage.strip())
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise InputError(
            f'Stages: "{arguments.stages}" is not a list of {", ".join(STAGES)}; name at least one of them.'
        )
    return PRESETS[arguments.preset], stages, choose_device(arguments.device)


def read_inputs(arguments: RegisterArguments, monitor: Monitor) -> Inputs:
    """Read everything and check that it fits together. Raises InputError."""
    roles = parse_label_map(arguments.mr_label_map)
    initial = Affine.read(arguments.initial_transform) if arguments.initial_transform else Affine.identity()
    ct = read_volume(arguments.ct, "CT")
    check_hounsfield(ct)
    monitor.update(0.4)
    mr = read_volume(arguments.mr, "MRI")
    monitor.update(0.6)
    if arguments.mr_labels is None:
        raise InputError(
            "MRI labels: none were given, and this version has no network to find the liver; give --mr-labels."
        )
    labels = read_labels(arguments.mr_labels, "MRI labels", roles)
    _check_labels(labels, mr)
    ct_liver = _read_ct_liver(arguments.ct_liver, ct) if arguments.ct_liver else None
    return Inputs(mr, ct, labels, ct_liver, initial)


def _check_labels(labels: LabelMap, mr: Volume) -> None:
    if not labels.of_role(LIVER):
        found = ", ".join(str(label.value) for label in labels.labels)
        raise InputError(
            f"MRI labels: no value is the liver (found {found}); "
            'label the liver 1, or say which value it is with --mr-label-map "5=liver".'
        )
    index = np.argwhere(labels.mask(LIVER, TUMOUR))
    points = labels.volume.grid.index_to_world(index[:: max(1, len(index) // 20_000), ::-1])
    inside = float(mr.grid.contains(points).mean())
    if inside < 0.5:
        raise InputError(
            f"MRI labels: only {100 * inside:.0f} % of the liver label lies inside the MRI; "
            "give the labels that belong to this MRI."
        )


def _read_ct_liver(path: str, ct: Volume) -> Volume:
    """The CT's whole liver: every value of the map, since its tumours are liver too."""
    labels = read_labels(path, "CT liver")
    mask = Volume(labels.volume.array > 0, labels.volume.grid)
    index = np.argwhere(mask.array)
    if float(ct.grid.contains(mask.grid.index_to_world(index[:: max(1, len(index) // 20_000), ::-1])).mean()) < 0.5:
        raise InputError("CT liver: the mask does not lie inside the CT; give the mask that belongs to this CT.")
    return mask


# -- registration -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Registered:
    """transform: CT point -> MRI point on the result's field grid.

    All of it in the CT's frame; `in_world` turns a field back.
    """

    alignment: Alignment
    candidates: list[results.Candidate]
    stages_kept: list[str]
    transform: DisplacementField
    scorer: Scorer
    fixed: Scan
    moving: Scan
    score_before: float
    score: float


def in_world(field: DisplacementField, inputs: Inputs) -> DisplacementField:
    """A field of the CT's frame in world coordinates."""
    frame = inputs.ct_frame
    return DisplacementField(field.grid.moved(frame), field.displacement_mm @ frame[:3, :3].T)


def field_grid(ct: Grid) -> Grid:
    """The grid of transform.h5: about 2.5 mm, one field voxel beyond every CT voxel, small enough to store."""
    spacing = FIELD_SPACING_MM
    while True:
        inner = ct.with_spacing(spacing)
        grid = inner.crop((-1, -1, -1), tuple(n + 2 for n in inner.size))
        if 24.0 * np.prod(grid.size, dtype=float) <= FIELD_BYTES:
            return grid
        spacing *= 1.05


def _scans(inputs: Inputs, spacing_mm: float) -> tuple[Scan, Scan]:
    lesion = inputs.labels.mask(TUMOUR)
    lesions = Volume(lesion, inputs.labels.volume.grid) if lesion.any() else None
    return (
        prepare_ct(inputs.ct, spacing_mm, inputs.ct_liver),
        prepare_mr(inputs.mr, spacing_mm, inputs.labels.whole_liver(), lesions),
    )


def _align(inputs: Inputs, stages: tuple[str, ...], seed: int, monitor: Monitor) -> Registered:
    inputs = inputs.in_ct_frame()
    fixed, moving = _scans(inputs, ALIGNMENT_SPACING_MM)
    scorer = Scorer(fixed, moving)
    before = scorer(inputs.initial)
    if "alignment" in stages:
        alignment = align(fixed, moving, inputs.initial, scorer=scorer, seed=seed, monitor=monitor)
    else:
        alignment = Alignment.as_given(inputs.initial, scorer)
    winner = alignment.winner
    candidates = [results.Candidate(c.name, c.stage, c.score, c is winner) for c in alignment.candidates]
    grid = field_grid(inputs.ct.grid)
    return Registered(
        alignment,
        candidates,
        ["alignment"] if winner.stage != "start" or winner.name != "as given" else [],
        DisplacementField.of(alignment.transform, grid),
        scorer,
        fixed,
        moving,
        before,
        winner.score,
    )


def _refine(
    inputs: Inputs, start: Registered, stages: tuple[str, ...], preset: Preset, device: torch.device, monitor: Monitor
) -> Registered:
    if "refinement" not in stages:
        return start
    fixed, moving = _scans(inputs.in_ct_frame(), preset.spacing_mm)
    refinement = refine(fixed, moving, start.alignment.transform, preset.refinement, device=device, monitor=monitor)
    transform = combine(start.alignment.transform, refinement.field, start.transform.grid)
    score = start.scorer(transform)
    kept = score < start.score and refinement.min_jacobian > 0
    name = start.alignment.winner.name
    candidates = [*start.candidates, results.Candidate(name, "refinement", score, kept)]
    if not kept:
        monitor.log("Refinement did not improve the score and was dropped.")
        return replace(start, candidates=candidates)
    return replace(
        start,
        candidates=candidates,
        stages_kept=[*start.stages_kept, "refinement"],
        transform=transform,
        score=score,
    )


def _before(inputs: Inputs, monitor: Monitor) -> tuple[Volume, Volume]:
    """MRI and labels where the initial transform alone puts them: their grids moved if it is rigid, else resampled."""
    to_ct = np.linalg.inv(inputs.initial.matrix)
    if np.allclose(to_ct[:3, :3] @ to_ct[:3, :3].T, np.eye(3), atol=1e-6):
        return tuple(Volume(v.array, v.grid.moved(to_ct)) for v in (inputs.mr, inputs.labels.volume))
    initial = DisplacementField.of(inputs.initial, field_grid(inputs.ct.grid))
    labels = propagate_labels(inputs.labels, initial, inputs.ct.grid, monitor).labels.volume
    return resample_mr(inputs.mr, initial, inputs.ct.grid), labels


# -- the result folder --------------------------------------------------------------------------------------------
def _write_volumes(
    folder: Path, labels: Propagation, mr_on_ct: Volume, transform: DisplacementField, monitor: Monitor
) -> None:
    write_volume(labels.labels.volume, folder / "ct_labels.nii.gz")
    write_labels_json(folder / "labels.json", labels.labels.labels)
    monitor.update(0.2)
    transform.write(folder / "transform.h5")
    monitor.update(0.4)
    write_volume(mr_on_ct, folder / "mr_on_ct.nii.gz")
    monitor.update(0.9)


def _describe(
    arguments: RegisterArguments,
    inputs: Inputs,
    registration: Registered,
    propagation: Propagation,
    preset: Preset,
    stages: tuple[str, ...],
    device: torch.device,
    monitor: Monitor,
) -> results.Json:
    """The content of result.json. Timings cover what is done when it is written: all but the report."""
    winner = registration.alignment.winner
    run = judge_run(registration.alignment, registration.score)
    labels = {
        label.value: results.LabelResult(
            label.name, label.role, propagation.carried[label.value].ct_volume_mm3, _parts(propagation, label.value)
        )
        for label in propagation.labels.labels
    }
    content = results.RunResult(
        inputs={
            "mr": results.InputFile.of(arguments.mr, inputs.mr.grid),
            "ct": results.InputFile.of(arguments.ct, inputs.ct.grid),
            "mr_labels": results.InputFile.of(arguments.mr_labels, inputs.labels.volume.grid),
            "ct_liver": results.InputFile.of(arguments.ct_liver, inputs.ct_liver.grid) if inputs.ct_liver else None,
            "initial_transform": results.InputFile.of(arguments.initial_transform)
            if arguments.initial_transform
            else None,
        },
        settings={
            "preset": arguments.preset,
            "stages": list(stages),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "seed": arguments.seed,
            "working_spacing_mm": preset.spacing_mm,
            "alignment_spacing_mm": ALIGNMENT_SPACING_MM,
            "mr_label_map": arguments.mr_label_map,
            "refinement": asdict(preset.refinement),
            "machine": platform.machine(),
        },
        registration=results.Registration(
            winner.name,
            registration.stages_kept,
            registration.candidates,
            results.Similarity(
                "Self-similarity cost in and around the liver with its penalties; about 1 for unrelated tissue",
                registration.score_before,
                registration.score,
                "lower",
            ),
            jacobian_in_body(registration.transform, registration.fixed),
            displacement_in_liver(registration.transform, registration.moving),
        ),
        labels=labels,
        tumours=[_tumour(propagation.carried[label.value], propagation) for label in propagation.labels.tumours],
        run=run,
        timings_s=dict(monitor.seconds),
        metrics={"liver_inside_ct_fraction": registration.alignment.overlap},
        warnings=[],
    )
    return content.to_dict()


def _parts(propagation: Propagation, value: int) -> list[results.Component]:
    volume = propagation.labels.volume
    return [
        results.Component(part["volume_mm3"], part["centroid_lps_mm"], part["diameter_mm"])
        for part in components(volume.array == value, volume.grid)
    ]


def _tumour(carried: Carried, propagation: Propagation) -> results.TumourResult:
    volume = propagation.labels.volume
    index = np.argwhere(volume.array == carried.label.value)
    centroid = volume.grid.index_to_world(index[:, ::-1].mean(0)).tolist() if len(index) else None
    return results.TumourResult(
        label=carried.label.value,
        name=carried.label.name,
        volume_mm3=carried.ct_volume_mm3,
        volume_ratio=carried.volume_ratio,
        jacobian_ratio=carried.jacobian_ratio,
        diameter_mm=equivalent_diameter(carried.ct_volume_mm3),
        centroid_lps_mm=centroid,
        inside_ct_fraction=carried.inside_ct_fraction,
        verdict="outside_ct" if carried.inside_ct_fraction < 0.5 else "not_assessed",
        warnings=carried.warnings,
    )
