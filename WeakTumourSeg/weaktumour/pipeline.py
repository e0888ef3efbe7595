"""The whole story on one page: an MRI with its labels and a CT in, labels on the CT out.

    read and check  ->  livers, where nobody drew them (UNet)  ->  alignment  ->  MSCGUNet's prediction  ->  refinement
    ->  one transform  ->  labels on the CT grid  ->  result folder  ->  how far off each tumour can be

The transform maps CT points to MRI points (LPS mm). A stage is kept only when the label-free score says so. The result
folder is whole before the last step, which can be stopped without losing it.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from . import result as results
from .deformation import Affine, DisplacementField
from .devices import choose_device
from .errors import InputError, ModelError
from .labels import (
    LIVER,
    TUMOUR,
    Label,
    LabelMap,
    components,
    equivalent_diameter,
    parse_label_map,
    read_labels,
    write_labels_json,
)
from .models import ModelEntry, default_id, find, shipped_folder
from .progress import Monitor
from .propagation import Carried, Propagation, propagate_labels, resample_mr
from .quality import (
    Thresholds,
    Visibility,
    displacement_in_liver,
    inverse_consistency_mm,
    jacobian_in_body,
    judge_place,
    judge_run,
    shows_same_vessels,
    visibility,
)
from .registration.alignment import Alignment, Scorer, align
from .registration.lesions import Seen, carried_roughly, corrected, find_in_ct
from .registration.prediction import Predicted, predict
from .registration.preparation import Scan, prepare_ct, prepare_mr
from .registration.refinement import Composed, Level, RefinementSettings, combine, refine
from .report import ReportData, write_report
from .segmentation import NoLiver, segment, with_liver
from .uncertainty.calibration import FILE as CALIBRATION_FILE
from .uncertainty.calibration import Calibration
from .uncertainty.ensemble import Ensemble, place_of, run_ensemble, tumour_points
from .uncertainty.evidence import evidence, whole
from .uncertainty.features import tumour_features
from .uncertainty.regions import covariance_mm2, probability
from .volumes import Grid, Volume, check_hounsfield, read_volume, round_to, write_volume
from .workspace import open_workspace, update_workspace

STAGES = ("alignment", "mscgunet", "refinement")
UNCERTAINTY = ("auto", "on", "off")
NO_MODEL = "none"
_SMALL_LIVER_ML = 300.0
# A CT's liver of another size than the MRI's by more than this is not its liver, or not all of it.
_LIKELY_VOLUME_RATIO = (0.25, 1.8)
ALIGNMENT_SPACING_MM = 4.0
_SURFACES_OFF = 0.1  # of 10 mm: by so much the livers may come apart where the images become more alike
FIELD_SPACING_MM = 2.5
FIELD_BYTES = 90e6
_SNAP_INITIAL, _SNAP_INITIAL_MM = 2.0**-20, 2.0**-10  # see Grid.snapped


@dataclass(frozen=True)
class Preset:
    """spacing_mm: working grid of the refinement. seconds: expected by stage, the first estimate of what remains."""

    spacing_mm: float
    refinement: RefinementSettings
    seconds: dict[str, float]


# In the order of the stages; the presets differ in the refinement alone.
_SECONDS = {
    "read": 1,
    "segmentation": 2,
    "alignment": 4,
    "mscgunet": 1,
    "refinement": 6,
    "propagation": 1,
    "write": 1,
    "report": 1,
}
_UNCERTAINTY_SECONDS = 10.0
PRESETS = {
    "fast": Preset(
        4.0,
        RefinementSettings(levels=(Level(2, 16.0, 25),)),
        {**_SECONDS, "refinement": 2},
    ),
    "balanced": Preset(
        2.5,
        RefinementSettings(),
        {**_SECONDS, "refinement": 15},
    ),
    "thorough": Preset(
        2.0,
        RefinementSettings(levels=(Level(2, 16.0, 45), Level(1, 8.0, 30, every=2))),
        {**_SECONDS, "refinement": 50},
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
    uncertainty: str = "auto"
    verdict_mm: str = "5,10"
    registration_model: str | None = None
    segmentation_model: str | None = None
    device: str = "auto"
    seed: int = 0


def register_and_propagate(arguments: RegisterArguments, monitor: Monitor) -> Path:
    """Carry the MRI's labels onto the CT and write the result folder; returns its path.

    Raises InputError (something given cannot be used), DeviceError, Cancelled. Nothing is left behind then, unless the
    monitor announced the folder before: that stays, without uncertainty.
    """
    preset, stages, device = _check_settings(arguments)
    networks = _choose_models(arguments, stages, monitor)
    thresholds = _read_thresholds(arguments.verdict_mm)
    calibration, why_not = _calibration(arguments, stages, networks)
    monitor.plan(preset.seconds | ({"uncertainty": _UNCERTAINTY_SECONDS} if calibration else {}))
    with open_workspace(arguments.out, arguments.overwrite) as folder:
        with monitor.stage("read"):
            inputs = read_inputs(arguments, monitor)
        with monitor.stage("segmentation"):
            inputs = find_livers(inputs, networks.segmentation, device, monitor)
        remarks = _remarks(arguments, inputs)
        for sentence in remarks:
            monitor.log(sentence)
        registration = register(inputs, networks, stages, preset, seed=arguments.seed, device=device, monitor=monitor)
        transform = in_world(registration.transform, inputs)
        with monitor.stage("propagation"):
            labels = propagate_labels(inputs.labels, transform, inputs.ct.grid, monitor)
            mr_on_ct = resample_mr(inputs.mr, transform, inputs.ct.grid)
        with monitor.stage("write"):
            _write_volumes(folder, inputs, labels, mr_on_ct, transform, monitor)
            content = _describe(arguments, inputs, registration, labels, networks, preset, stages, device, monitor)
            content["warnings"] += remarks
        with monitor.stage("report"):
            shown = _shown(inputs, labels, mr_on_ct, transform, content, monitor)
            write_report(folder / "report.html", shown)
        _write_result(folder, content, monitor)
        monitor.check()
    if why_not:
        monitor.log(f"No tumour's uncertainty is assessed. {why_not}")
    if calibration:
        monitor.announce(Path(arguments.out))
        with update_workspace(arguments.out, last="result.json") as folder:
            with monitor.stage("uncertainty"):
                measured = measure_uncertainty(inputs, registration, device, arguments.seed, monitor)
                same_vessels = shows_same_vessels(registration.vessels)
                likely = _assess(content, inputs, labels, measured, calibration, thresholds, same_vessels)
                write_volume(likely, folder / "tumour_probability.nii.gz")
                write_report(folder / "report.html", replace(shown, probability=likely))
            _write_result(folder, content, monitor)
    return Path(arguments.out)


# -- inputs -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Inputs:
    """Checked inputs. initial: CT point -> MRI point, identity unless given.

    labels: on the MRI; None, or without a liver, until `find_livers` has completed them. ct_liver: a mask, or the
    liver's probability, whose surface is at 0.5. found: which livers the UNet drew (mr, ct).
    """

    mr: Volume
    ct: Volume
    labels: LabelMap | None
    ct_liver: Volume | None
    initial: Affine
    found: tuple[str, ...] = ()

    @cached_property
    def ct_frame(self) -> np.ndarray:
        """(4, 4), rigid: from a frame with the CT's first voxel at 0 and its axes along LPS to the world."""
        grid = self.ct.grid.along_patient_axes()
        left, _, right = np.linalg.svd(grid.axes)  # headers are a little off the perpendicular
        frame = np.eye(4)
        frame[:3, :3], frame[:3, 3] = left @ right, grid.origin
        return frame

    def in_ct_frame(self) -> Inputs:
        """Everything turned so that the CT lies straight at 0: an oblique CT registers exactly like a straight one.

        Exactly, since the geometry is snapped: a difference in the last digit grows to millimetres in the result where
        it decides a near tie, between starts or for a voxel that lies on the border of another.
        """
        to_world = self.ct_frame
        from_world = np.linalg.inv(to_world)

        def turned(volume: Volume) -> Volume:
            straight = Volume(volume.array, volume.grid.moved(from_world)).along_patient_axes()
            return Volume(straight.array, straight.grid.snapped())

        initial = from_world @ self.initial.matrix @ to_world
        initial[:3, :3] = round_to(initial[:3, :3], _SNAP_INITIAL)
        initial[:3, 3] = round_to(initial[:3, 3], _SNAP_INITIAL_MM)
        return Inputs(
            turned(self.mr),
            turned(self.ct),
            None if self.labels is None else LabelMap(turned(self.labels.volume), self.labels.labels),
            None if self.ct_liver is None else turned(self.ct_liver),
            Affine(initial),
            self.found,
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
    if roles is not None and arguments.mr_labels is None:
        raise InputError("Label map: it says what the MRI's labels mean, but none were given; give --mr-labels too.")
    labels = read_labels(arguments.mr_labels, "MRI labels", roles) if arguments.mr_labels else None
    if labels is not None:
        _check_labels(labels, mr)
    ct_liver = _read_ct_liver(arguments.ct_liver, ct) if arguments.ct_liver else None
    return Inputs(mr, ct, labels, ct_liver, initial)


def _check_labels(labels: LabelMap, mr: Volume) -> None:
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


def _remarks(arguments: RegisterArguments, inputs: Inputs) -> list[str]:
    """What a person should know of these inputs before they believe the result, one sentence each."""
    remarks = []
    if arguments.mr_labels:
        drawn = inputs.labels.volume.grid
        if not drawn.same_as(inputs.mr.grid):
            remarks.append(_on_another_grid("MRI labels", drawn, "MRI", inputs.mr.grid))
        ml = float(inputs.labels.mask(LIVER, TUMOUR).sum()) * drawn.voxel_volume_mm3 / 1e3
        if "mr" not in inputs.found and ml < _SMALL_LIVER_ML:
            remarks.append(
                f"MRI labels: what is labelled liver, tumours included, has {ml:.0f} ml, little for a liver. If it is "
                "a tumour, say so with --mr-label-map (1=tumour); the network then looks for the liver."
            )
    elif inputs.labels.tumours:
        remarks.append(
            "Nobody drew these tumours: a network found them in the MRI. Look at them there (mr_labels.nii.gz) before "
            "you believe their places on the CT."
        )
    if arguments.ct_liver and not inputs.ct_liver.grid.same_as(inputs.ct.grid):
        remarks.append(_on_another_grid("CT liver", inputs.ct_liver.grid, "CT", inputs.ct.grid))
    return remarks


def _on_another_grid(what: str, grid: Grid, image: str, expected: Grid) -> str:
    sizes = ["x".join(map(str, g.size)) for g in (grid, expected)]
    how = f"{sizes[0]} instead of {sizes[1]} voxels" if sizes[0] != sizes[1] else "the same size in another place"
    return f"{what}: drawn on another grid than the {image} ({how}); check that the file belongs to this {image}."


# -- networks -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Networks:
    """The models of this run; None where one was declined."""

    registration: ModelEntry | None
    segmentation: ModelEntry | None


def _choose_models(arguments: RegisterArguments, stages: tuple[str, ...], monitor: Monitor) -> Networks:
    def chosen(name: str | None, task: str) -> ModelEntry | None:
        if name == NO_MODEL:
            return None
        if name is None and default_id(task) is None:
            monitor.log(f"No {task} model is installed: this run does without (weaktumour models import adds one).")
            return None
        return find(name, task)

    return Networks(
        chosen(arguments.registration_model, "registration") if "mscgunet" in stages else None,
        chosen(arguments.segmentation_model, "segmentation"),
    )


def find_livers(inputs: Inputs, model: ModelEntry | None, device: torch.device, monitor: Monitor) -> Inputs:
    """What nobody drew: the MRI's liver (and, without any labels, its tumours), the CT's liver.

    Raises InputError where the MRI's liver is neither given nor found.
    """
    labels, ct_liver, found = inputs.labels, inputs.ct_liver, []
    # In the CT's frame, so that a turned case gives the same livers (see Inputs.in_ct_frame).
    frame, turned = inputs.ct_frame, replace(inputs, labels=None).in_ct_frame()
    if labels is None or not labels.of_role(LIVER):
        if model is None:
            raise InputError(
                "MRI labels: the liver is not among them and there is no segmentation model to find it; "
                'label it 1, say which value it is with --mr-label-map "5=liver", or choose a --segmentation-model.'
            )
        segmentation = segment(turned.mr, "mr", model, device, monitor).moved(frame)
        try:
            labels = segmentation.labels_on(inputs.mr.grid) if labels is None else with_liver(labels, segmentation)
        except NoLiver as error:
            raise InputError("MRI: no liver could be found in it; give --mr-labels with the liver as 1.") from error
        found.append("mr")
    monitor.update(0.5)
    if ct_liver is None and model is not None:
        ct_liver = _find_ct_liver(turned.ct, labels, model, device, monitor)
        if ct_liver is not None:
            ct_liver = Volume(ct_liver.array, ct_liver.grid.moved(frame))
            found.append("ct")
    return replace(inputs, labels=labels, ct_liver=ct_liver, found=tuple(found))


def _find_ct_liver(
    ct: Volume, labels: LabelMap, model: ModelEntry, device: torch.device, monitor: Monitor
) -> Volume | None:
    """The CT's liver as a probability, None where it is not found or cannot be this patient's."""
    segmentation = segment(ct, "ct", model, device, monitor)
    try:
        liver = segmentation.liver()
    except NoLiver:
        monitor.log("No liver was found in the CT: registration goes by the images alone.")
        return None
    whole = labels.mask(LIVER, TUMOUR).sum() * labels.volume.grid.voxel_volume_mm3
    ratio = float((liver.array > 0.5).sum() * liver.grid.voxel_volume_mm3 / max(whole, 1.0))
    low, high = _LIKELY_VOLUME_RATIO
    if not low < ratio < high:
        monitor.log(
            f"The liver found in the CT has {ratio:.2f} times the volume of the MRI's: it is not used, "
            "registration goes by the images alone."
        )
        return None
    return liver


# -- registration -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Registered:
    """Fixed -> moving: the alignment after the deformation (None: of nothing). grid: that of the result's field.

    predicted: MSCGUNet's field, where it was kept. seen: tumours whose place was taken from the CT. vessels: see
    `Refinement`. All of it in the CT's frame; `in_world` turns a field back.
    """

    alignment: Alignment
    candidates: list[results.Candidate]
    stages_kept: list[str]
    deformation: DisplacementField | None
    grid: Grid
    scorer: Scorer
    fixed: Scan
    moving: Scan
    score_before: float
    score: float
    predicted: Predicted | None = None
    seen: tuple[Seen, ...] = ()
    vessels: float | None = None

    @property
    def total(self) -> Composed:
        """CT point -> MRI point, alignment and deformation, as exact as they are."""
        deformation = self.deformation or DisplacementField.of(Affine.identity(), self.fixed.grid)
        return Composed(self.alignment.transform, deformation)

    @cached_property
    def transform(self) -> DisplacementField:
        """The same in one, sampled."""
        return combine(self.alignment.transform, self.deformation, self.grid)


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


def register(
    inputs: Inputs,
    networks: Networks,
    stages: tuple[str, ...],
    preset: Preset,
    *,
    seed: int = 0,
    device: torch.device,
    monitor: Monitor,
) -> Registered:
    """Of inputs whose livers are settled (see `find_livers`). Raises InputError, DeviceError, Cancelled."""
    with monitor.stage("alignment"):
        registration = _align(inputs, stages, seed, monitor)
    with monitor.stage("mscgunet"):
        model = networks.registration if "mscgunet" in stages else None
        registration = _predict(registration, model, device, monitor)
    with monitor.stage("refinement"):
        registration = _refine(inputs, registration, stages, preset, device, monitor)
        return _follow_visible(inputs, registration, stages, monitor)


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
    return Registered(
        alignment,
        candidates,
        ["alignment"] if winner.stage != "start" or winner.name != "as given" else [],
        None,
        field_grid(inputs.ct.grid),
        scorer,
        fixed,
        moving,
        before,
        winner.score,
    )


def _predict(start: Registered, model: ModelEntry | None, device: torch.device, monitor: Monitor) -> Registered:
    """MSCGUNet's deformation on top of the alignment, kept as the refinement's start where the score improves."""
    if model is None:
        return start
    predicted = predict(start.fixed, start.moving, start.alignment.transform, model, device, monitor)
    judged = _judge(start, "mscgunet", "MSCGUNet's prediction", predicted.transform, predicted.min_jacobian, monitor)
    return replace(judged, predicted=predicted if judged.deformation is predicted.transform else None)


def _refine(
    inputs: Inputs, start: Registered, stages: tuple[str, ...], preset: Preset, device: torch.device, monitor: Monitor
) -> Registered:
    if "refinement" not in stages:
        return start
    fixed, moving = _scans(inputs.in_ct_frame(), preset.spacing_mm)
    refinement = refine(
        fixed,
        moving,
        start.alignment.transform,
        preset.refinement,
        start=start.predicted,
        device=device,
        monitor=monitor,
    )
    judged = _judge(start, "refinement", "Refinement", refinement.field, refinement.min_jacobian, monitor)
    return replace(judged, vessels=refinement.vessels)


def _follow_visible(inputs: Inputs, registration: Registered, stages: tuple[str, ...], monitor: Monitor) -> Registered:
    """Tumours that the CT shows are moved to where it shows them."""
    if "refinement" not in stages or registration.deformation is None:
        return registration
    straight = inputs.in_ct_frame()
    tumours = straight.labels.tumours
    if not tumours:
        return registration
    carried, grid = carried_roughly(straight.labels, registration.transform)
    seen = find_in_ct(straight.ct, carried, grid, len(tumours))
    field = registration.deformation
    for tumour in seen:
        field = corrected(field, tumour)
        monitor.log(f"{tumours[tumour.number].name}: {tumour.sentence}")
    return replace(registration, deformation=field, seen=tuple(seen)) if seen else registration


def _judge(
    start: Registered, stage: str, what: str, deformation: DisplacementField, min_jacobian: float, monitor: Monitor
) -> Registered:
    """A stage's deformation (applied before the alignment) in place of the former one, if it is the better one."""
    terms = start.scorer.terms(Composed(start.alignment.transform, deformation))
    score, better = sum(terms), sum(terms) < start.score
    if stage == "refinement" and start.fixed.liver_distance_mm is not None:
        # One of the two livers is a network's, or drawn by hand: surfaces a little farther apart say less than images
        # that are more alike.
        similarity, apart, _ = start.scorer.terms(start.total)
        better = terms[0] < similarity and terms[1] < apart + _SURFACES_OFF
    kept = better and min_jacobian > 0
    candidates = [*start.candidates, results.Candidate(start.alignment.winner.name, stage, score, kept)]
    if not kept:
        monitor.log(f"{what} did not improve the score and was dropped.")
        return replace(start, candidates=candidates)
    kept_stages = [*start.stages_kept, stage]
    return replace(start, candidates=candidates, stages_kept=kept_stages, deformation=deformation, score=score)


# -- uncertainty --------------------------------------------------------------------------------------------------
def _read_thresholds(text: str) -> Thresholds:
    try:
        localised, approximate = (float(part) for part in text.split(","))
    except ValueError:
        localised, approximate = 0.0, 0.0
    if not 0 < localised <= approximate < 1000:
        raise InputError(
            f'Verdict: "{text}" is not two rising distances in mm, such as "5,10": up to the first a tumour is '
            "localised, up to the second approximately."
        )
    return Thresholds(localised, approximate)


def _calibration(
    arguments: RegisterArguments, stages: tuple[str, ...], networks: Networks
) -> tuple[Calibration | None, str]:
    """The calibration for this run; None where the uncertainty is not wanted, or, with the reason, cannot be told.

    Raises InputError and ModelError where it was asked for and cannot be told.
    """
    wanted = arguments.uncertainty
    if wanted not in UNCERTAINTY:
        raise InputError(f'Uncertainty: "{wanted}" is not known; choose one of {", ".join(UNCERTAINTY)}.')
    if wanted == "off":
        return None, ""
    try:
        if arguments.preset == "fast":
            raise InputError("Uncertainty: it is not calibrated for the preset fast; choose balanced or thorough.")
        if set(stages) != set(STAGES):
            raise InputError("Uncertainty: it is calibrated for all stages together; leave --stages out.")
        calibration = Calibration.read(shipped_folder() / CALIBRATION_FILE)
        for task, entry in (("registration", networks.registration), ("segmentation", networks.segmentation)):
            if entry is None or entry.sha256 != calibration.models.get(task):
                raise InputError(f"Uncertainty: it is calibrated for another {task} model; leave that option out.")
        return calibration, ""
    except (InputError, ModelError) as error:
        if wanted == "on":
            raise
        return None, "" if arguments.preset == "fast" else str(error)


@dataclass(frozen=True)
class Measured:
    """What the uncertainty is told from, for each tumour in the labels' order; see `uncertainty.features`.

    ensemble: in the CT's frame.
    """

    features: list[dict[str, float]]
    ensemble: Ensemble


def measure_uncertainty(
    inputs: Inputs, registration: Registered, device: torch.device, seed: int, monitor: Monitor
) -> Measured:
    """Raises Cancelled."""
    labels = inputs.in_ct_frame().labels
    start, fixed, moving = registration.alignment.transform, registration.fixed, registration.moving
    ensemble = run_ensemble(
        fixed, moving, start, registration.predicted, labels, seed=seed, device=device, monitor=monitor
    )
    total = registration.total
    near, liver = evidence(fixed, moving, total, labels, registration.scorer.unrelated)
    all_of_it = whole(fixed, moving, total)
    seen = {tumour.number for tumour in registration.seen}
    similarity = registration.scorer.terms(total)[0]
    features = []
    for number, label in enumerate(labels.tumours):
        points = tumour_points(labels, label.value)
        place = np.rint(moving.grid.world_to_index(points.mean(0))).astype(int)
        x, y, z = np.clip(place, 0, np.asarray(moving.grid.size) - 1)
        features.append(
            tumour_features(
                ensemble.places_mm[:, number],
                place_of(total, points),
                near[number],
                liver,
                all_of_it,
                alignment=start,
                similarity=similarity,
                overlap=registration.alignment.overlap,
                depth_mm=-float(moving.liver_distance_mm[z, y, x]),
                seen=number in seen,
                aligned_mm=start.inverse().transform_points(points).mean(0),
                vessels=registration.vessels,
            )
        )
    return Measured(features, ensemble)


def _assess(
    content: results.Json,
    inputs: Inputs,
    propagation: Propagation,
    measured: Measured,
    calibration: Calibration,
    thresholds: Thresholds,
    same_vessels: bool,
) -> Volume:
    """Put uncertainty and verdicts into the content of result.json; returns the probability of tumour on the CT."""
    ct_labels = propagation.labels.volume
    likely = np.zeros(ct_labels.grid.shape, dtype=np.float32)
    run = results.RunVerdict(**content["run"])
    rotation = inputs.ct_frame[:3, :3]
    for number, (label, tumour) in enumerate(zip(inputs.labels.tumours, content["tumours"], strict=True)):
        if tumour["verdict"] == "outside_ct":
            continue
        features = measured.features[number]
        p50, p95 = calibration.radius_mm(features)
        covariance = rotation @ covariance_mm2(measured.ensemble.places_mm[:, number], p95) @ rotation.T
        verdict, reason = judge_place(p95, calibration.is_doubtful(features), same_vessels, run, thresholds)
        tumour |= {
            "p50_mm": p50, "p95_mm": p95, "covariance_mm2": covariance.tolist(), "verdict": verdict,
            "verdict_reason": reason,
        }  # fmt: skip
        probability(likely, ct_labels.array == label.value, ct_labels.grid, covariance)
    content["models"].append(
        {"id": "uncertainty", "file": CALIBRATION_FILE, "sha256": calibration.sha256, "role": "uncertainty"}
    )
    return Volume(likely, ct_labels.grid)


def _before(inputs: Inputs, monitor: Monitor) -> tuple[Volume, Volume]:
    """MRI and labels where the initial transform alone puts them: their grids moved if it is rigid, else resampled."""
    to_ct = np.linalg.inv(inputs.initial.matrix)
    if np.allclose(to_ct[:3, :3] @ to_ct[:3, :3].T, np.eye(3), atol=1e-6):
        return tuple(Volume(v.array, v.grid.moved(to_ct)) for v in (inputs.mr, inputs.labels.volume))
    initial = DisplacementField.of(inputs.initial, field_grid(inputs.ct.grid))
    labels = propagate_labels(inputs.labels, initial, inputs.ct.grid, monitor).labels.volume
    return resample_mr(inputs.mr, initial, inputs.ct.grid), labels


def _shown(
    inputs: Inputs,
    labels: Propagation,
    mr_on_ct: Volume,
    transform: DisplacementField,
    content: results.Json,
    monitor: Monitor,
) -> ReportData:
    mr_before, labels_before = _before(inputs, monitor)
    return ReportData(
        ct=inputs.ct,
        mr_before=mr_before,
        mr_after=mr_on_ct,
        labels=labels.labels.volume,
        labels_before=labels_before,
        label_names={label.value: label.name for label in labels.labels.labels},
        field=transform,
        result=content,
    )


def _write_result(folder: Path, content: results.Json, monitor: Monitor) -> None:
    content["timings_s"] = {**monitor.seconds, "total": sum(monitor.seconds.values())}
    content["peak_memory_mb"] = results.peak_memory_mb()
    results.write_result(folder / "result.json", content)


# -- the result folder --------------------------------------------------------------------------------------------
def _write_volumes(
    folder: Path, inputs: Inputs, labels: Propagation, mr_on_ct: Volume, transform: DisplacementField, monitor: Monitor
) -> None:
    if "mr" in inputs.found:  # to be looked at, corrected, and given to the next run
        write_volume(inputs.labels.volume, folder / "mr_labels.nii.gz")
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
    networks: Networks,
    preset: Preset,
    stages: tuple[str, ...],
    device: torch.device,
    monitor: Monitor,
) -> results.Json:
    """The content of result.json. Timings cover what is done when it is written: all but the report."""
    winner = registration.alignment.winner
    run = judge_run(registration.alignment, registration.score)
    seen = {inputs.labels.tumours[tumour.number].value: tumour for tumour in registration.seen}
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
            "mr_labels": results.InputFile.of(arguments.mr_labels, inputs.labels.volume.grid)
            if arguments.mr_labels
            else None,
            "ct_liver": results.InputFile.of(arguments.ct_liver, inputs.ct_liver.grid) if arguments.ct_liver else None,
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
            "livers_found_by_network": list(inputs.found),
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
        tumours=[
            _tumour(propagation.carried[label.value], inputs, propagation, seen.get(label.value))
            for label in propagation.labels.tumours
        ],
        run=run,
        timings_s=dict(monitor.seconds),
        peak_memory_mb=results.peak_memory_mb(),
        models=[
            results.Model(entry.id, entry.file, entry.sha256, role)
            for role, entry in (("registration", networks.registration), ("segmentation", networks.segmentation))
            if entry is not None
        ],
        metrics={
            "liver_inside_ct_fraction": registration.alignment.overlap,
            "unlikeness": registration.scorer.terms(registration.total)[0],
            "vessel_agreement": registration.vessels,
            "inverse_consistency_mm": inverse_consistency_mm(registration.transform, registration.moving),
            **_liver_agreement(inputs, propagation),
        },
        warnings=[],
    )
    return content.to_dict()


def _parts(propagation: Propagation, value: int) -> list[results.Component]:
    volume = propagation.labels.volume
    return [
        results.Component(part["volume_mm3"], part["centroid_lps_mm"], part["diameter_mm"])
        for part in components(volume.array == value, volume.grid)
    ]


def _liver_agreement(inputs: Inputs, propagation: Propagation) -> dict[str, float | None]:
    """The liver that was carried over against the one that is known in the CT, drawn or found by the UNet."""
    known = inputs.ct_liver
    if known is None:
        return {"liver_agreement_dice": None}
    grid = known.grid
    whole = propagation.labels.whole_liver()
    carried = Volume(whole.array.astype(np.float32), whole.grid).resample_to(grid).array >= 0.5
    mask = known.array > 0.5
    return {"liver_agreement_dice": 2.0 * float((carried & mask).sum()) / max(float(carried.sum() + mask.sum()), 1.0)}


def _visibilities(label: Label, labels: LabelMap, image: Volume) -> Visibility | None:
    """Of a tumour in the image that the labels are drawn on."""
    array = labels.volume.array
    index = np.argwhere(array == label.value)
    if not len(index):
        return None
    # A part of the image is enough, and for the MRI it may lie on another grid than the labels.
    box = labels.volume.grid.index_to_world(np.stack((index.min(0), index.max(0)))[:, ::-1])
    grid, part = labels.volume.grid.crop_to(box, 20.0)
    piece = LabelMap(Volume(array[part], grid), labels.labels)
    values = image.array[part] if image.grid.same_as(labels.volume.grid) else image.resample_to(grid).array
    return visibility(Volume(values, grid), piece.volume.array == label.value, piece.mask(LIVER))


def _tumour(carried: Carried, inputs: Inputs, propagation: Propagation, seen: Seen | None) -> results.TumourResult:
    volume = propagation.labels.volume
    in_mr = _visibilities(carried.label, inputs.labels, inputs.mr)
    in_ct = _visibilities(carried.label, propagation.labels, inputs.ct)
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
        visibility_mr=in_mr and in_mr.contrast,
        visibility_ct=in_ct and in_ct.contrast,
        cnr_mr=in_mr and in_mr.cnr,
        cnr_ct=in_ct and in_ct.cnr,
        verdict="outside_ct" if carried.inside_ct_fraction < 0.5 else "not_assessed",
        warnings=[*carried.warnings, *([seen.sentence] if seen else [])],
    )
