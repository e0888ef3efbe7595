"""result.json: its structure, its builders, and the check that every result passes before it is written.

The schema for outsiders is `result.schema.json` (draft 2020-12, `load_schema`); the tests hold both against each other.
At run time `check_result` needs the standard library only, and also knows what a schema cannot say (a tumour has a
label, p50 <= p95, ...). Lengths in mm, volumes in mm3, points in LPS mm; what is unknown is null, never NaN.

    {
      "schema": 1,
      "software":     {"weaktumour", "python", "simpleitk", "numpy": str, "torch": str|null},
      "inputs":       {"mr", "ct": INPUT, "mr_labels", "ct_liver", "initial_transform": INPUT|null}
                      INPUT: {"file": name without folder, "sha256", "size": [x,y,z]|null, "spacing_mm": [3]|null,
                              "orientation": "LPS"..|null}
      "settings":     {"preset", "stages": [asked for], "device", "threads", "seed", "working_spacing_mm": number|null,
                       further values}
      "models":       [{"id", "file", "sha256", "role": registration|segmentation|uncertainty}]
      "registration": {"start": name of the winner, "stages_kept": [...],
                       "candidates": [{"name", "stage", "score": number|null, "kept": bool}],
                       "similarity": {"measure", "better": higher|lower, "before", "after"},
                       "jacobian": {"min", "p01", "p50", "p99", "max", "folds_in_body": int|null},
                       "displacement": {"median_mm", "max_mm"}}
      "timings_s":    {stage: seconds, ..., "total": seconds}
      "peak_memory_mb": number|null
      "labels":       {"1": {"name", "role": liver|tumour|other, "volume_mm3": number|null,
                             "components": [{"volume_mm3", "centroid_lps_mm", "diameter_mm"}]}, ...}
      "tumours":      [{"label", "name", "volume_mm3", "volume_ratio", "jacobian_ratio", "diameter_mm",
                        "centroid_lps_mm", "inside_ct_fraction", "p50_mm", "p95_mm", "covariance_mm2": 3x3,
                        "visibility_mr", "visibility_ct", "cnr_mr", "cnr_ct", "verdict", "verdict_reason": str|null,
                        "warnings": [str]}]
      "run":          {"verdict": ok|check_alignment, "reasons": [sentence, ...]}
      "metrics":      {name: number|null}           figures that need no truth
      "truth":        null | {"kind": simulated|annotated, "labels": {"1": {name: number|null}},
                              "whole_liver": {name: number|null}, "points": {name: number|null}}
      "warnings":     [sentence, ...]
    }

volume_ratio is the label's volume on the CT over its volume in the MR; jacobian_ratio is what the transform alone makes
of it. Where the two differ, the tumour's `warnings` say so. `truth` holds what `evaluation.metrics.evaluate_case` found
(`Truth.of`): dice, hd95_mm, assd_mm, centroid_error_mm, volume_ratio, coverage_5mm per label and for the whole liver,
and the target registration error (number, mean_mm, median_mm, p95_mm, max_mm) as points.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__

SCHEMA = 1
TUMOUR_VERDICTS = ("localised", "approximate", "cannot_be_localised", "outside_ct", "not_assessed")
RUN_VERDICTS = ("ok", "check_alignment")
ROLES = ("liver", "tumour", "other")

Json = dict[str, Any]


# -- builders -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class InputFile:
    """One input: its name without folder, its checksum and, for volumes, its geometry as stored."""

    file: str
    sha256: str
    size: tuple[int, int, int] | None = None  # voxels, x y z
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None  # three letters towards which the axes run, as DICOM and ITK: "LPS"

    @staticmethod
    def of(path: str | Path, grid: Any = None) -> InputFile:
        """Describe a file or DICOM folder; grid: the `weaktumour.volumes.Grid` it was read to, if it is a volume."""
        path = Path(path)
        name, digest = path.resolve().name, sha256_of(path)
        if grid is None:
            return InputFile(name, digest)
        return InputFile(name, digest, grid.size, grid.spacing, orientation_code(grid.direction))


@dataclass(frozen=True)
class Candidate:
    """A start or stage that was tried, its label-free score, and whether it was kept."""

    name: str
    stage: str
    score: float | None
    kept: bool = False


@dataclass(frozen=True)
class Similarity:
    """The label-free score of the pair before (as loaded or with the initial transform) and after registration."""

    measure: str
    before: float | None
    after: float | None
    better: str = "higher"  # or "lower"


@dataclass(frozen=True)
class Jacobian:
    """Jacobian determinant of the transform inside the body; folds_in_body: voxels where it is not positive."""

    min: float | None = None
    p01: float | None = None
    p50: float | None = None
    p99: float | None = None
    max: float | None = None
    folds_in_body: int | None = None


@dataclass(frozen=True)
class Displacement:
    median_mm: float | None = None
    max_mm: float | None = None


@dataclass(frozen=True)
class Registration:
    start: str
    stages_kept: Sequence[str]
    candidates: Sequence[Candidate]
    similarity: Similarity
    jacobian: Jacobian = field(default_factory=Jacobian)
    displacement: Displacement = field(default_factory=Displacement)


@dataclass(frozen=True)
class Component:
    """One connected piece of a label on the CT (see `weaktumour.labels.components`)."""

    volume_mm3: float
    centroid_lps_mm: Sequence[float]
    diameter_mm: float


@dataclass(frozen=True)
class LabelResult:
    name: str
    role: str
    volume_mm3: float | None = None
    components: Sequence[Component] = ()


@dataclass(frozen=True)
class TumourResult:
    """One tumour on the CT. Uncertainty and visibility stay None, verdict `not_assessed`, until they are assessed.

    visibility: how well a threshold tells the tumour from the ring round it, 0 not at all, 1 clearly (|2 AUC - 1|);
    cnr: its contrast to that ring, in standard deviations of the ring. verdict_reason: a sentence.
    """

    label: int
    name: str
    volume_mm3: float
    volume_ratio: float | None = None
    jacobian_ratio: float | None = None
    diameter_mm: float | None = None
    centroid_lps_mm: Sequence[float] | None = None
    inside_ct_fraction: float | None = None
    p50_mm: float | None = None
    p95_mm: float | None = None
    covariance_mm2: Sequence[Sequence[float]] | None = None
    visibility_mr: float | None = None
    visibility_ct: float | None = None
    cnr_mr: float | None = None
    cnr_ct: float | None = None
    verdict: str = "not_assessed"
    verdict_reason: str | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class RunVerdict:
    verdict: str = "ok"
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Model:
    id: str
    file: str
    sha256: str
    role: str  # registration, segmentation or uncertainty


@dataclass(frozen=True)
class Truth:
    """Figures against a known truth (a simulated patient, an annotated CT)."""

    kind: str = "simulated"
    labels: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    whole_liver: Mapping[str, float | None] = field(default_factory=dict)
    points: Mapping[str, float | None] = field(default_factory=dict)

    @staticmethod
    def of(evaluation: Mapping[str, Any], kind: str = "simulated") -> Truth:
        """From what `evaluation.metrics.evaluate_case` returns."""

        def figures(entry: Mapping[str, Any] | None) -> dict[str, float]:
            kept = {k: v for k, v in (entry or {}).items() if k != "label" and not isinstance(v, list)}
            return {"true_diameter_mm" if name == "diameter_mm" else name: value for name, value in kept.items()}

        labels = {tumour["label"]: figures(tumour) for tumour in evaluation["tumours"]}
        return Truth(kind, labels, figures(evaluation["liver"]), figures(evaluation.get("points")))


@dataclass(frozen=True)
class RunResult:
    """Everything result.json holds. `to_dict` gives the checked dictionary."""

    inputs: Mapping[str, InputFile | None]  # mr, ct, and optionally mr_labels, ct_liver, initial_transform
    settings: Mapping[str, Any]
    registration: Registration
    labels: Mapping[int, LabelResult]
    tumours: Sequence[TumourResult]
    run: RunVerdict
    timings_s: Mapping[str, float]  # by stage; "total" is added as their sum where it is missing
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    models: Sequence[Model] = ()
    peak_memory_mb: float | None = None
    truth: Truth | None = None
    warnings: Sequence[str] = ()
    software: Mapping[str, str | None] = field(default_factory=lambda: software_versions())

    def to_dict(self) -> Json:
        """The content of result.json: plain types, NaN and infinity as None. Raises ValueError where not valid."""
        result = _plain(dataclasses.asdict(self))
        result = {"schema": SCHEMA, **result}
        for name in ("mr_labels", "ct_liver", "initial_transform"):
            result["inputs"].setdefault(name, None)
        result["timings_s"].setdefault("total", sum(result["timings_s"].values()))
        check_result(result)
        return result


def high_water_bytes(pid: int | str = "self") -> int | None:
    """Most resident memory that a process has had; None where the kernel does not tell (not Linux, or it is gone).

    Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def peak_memory_mb() -> float | None:
    """Of this process so far, 10^6 bytes of resident memory; None where it is not known."""
    most = high_water_bytes()
    return None if most is None else most / 1e6


def software_versions() -> dict[str, str | None]:
    """Versions of everything that has a say in the numbers. Does not import torch."""
    import numpy
    import SimpleITK

    torch = sys.modules.get("torch")
    try:
        torch_version = str(torch.__version__) if torch is not None else metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = None
    return {
        "weaktumour": __version__,
        "python": platform.python_version(),
        "torch": torch_version,
        "simpleitk": SimpleITK.Version.VersionString(),
        "numpy": numpy.__version__,
    }


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file; of a folder: of the sorted checksums of its files, so that names do not matter."""
    path = Path(path)
    if path.is_dir():
        digests = sorted(sha256_of(file) for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def orientation_code(direction: Sequence[float]) -> str:
    """Nine row-major direction cosines (LPS) -> letters towards which the axes run, the nearest for oblique ones."""
    import SimpleITK

    return SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(list(direction))


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays, tuples and integer keys -> what JSON knows; NaN and infinity -> None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool)) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return value


# -- reading and writing --------------------------------------------------------------------------------------------
def write_result(path: str | Path, result: RunResult | Json) -> Json:
    """Check and write result.json (ASCII, two-space indent); returns the dictionary. Raises ValueError."""
    content = result.to_dict() if isinstance(result, RunResult) else _plain(result)
    check_result(content)
    Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="ascii")
    return content


def read_result(path: str | Path) -> Json:
    """Read and check result.json. Raises ValueError where it is not valid, OSError where it cannot be read."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    check_result(content)
    return content


def load_schema() -> Json:
    """The JSON Schema (draft 2020-12) of result.json."""
    return json.loads(Path(__file__).with_name("result.schema.json").read_text(encoding="utf-8"))


# -- checking -----------------------------------------------------------------------------------------------------
class _Problems(list):
    def unless(self, condition: Any, sentence: str) -> None:
        if not condition:
            self.append(sentence)


def check_result(result: Json) -> None:
    """Raise ValueError that lists what in a result.json dictionary breaks its contract."""
    problems = _Problems()
    try:
        json.dumps(result, allow_nan=False)
        _check_parts(result, problems)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problems.append(f"malformed: {type(error).__name__} {error}")
    if problems:
        raise ValueError("result.json: " + "; ".join(problems))


def _check_parts(result: Json, problems: _Problems) -> None:
    expected = {"schema", *(f.name for f in dataclasses.fields(RunResult))}
    problems.unless(set(result) == expected, f"keys differ from the contract: {sorted(set(result) ^ expected)}")
    problems.unless(result["schema"] == SCHEMA, f"schema is {result['schema']}, not {SCHEMA}")
    for name in ("mr", "ct"):
        problems.unless(result["inputs"].get(name), f"inputs.{name} is missing")
    for name, item in result["inputs"].items():
        if item is not None:
            problems.unless(not set(item["file"]) & set("/\\"), f"inputs.{name}.file holds a folder")
            problems.unless(len(item["sha256"]) == 64, f"inputs.{name}.sha256 is not a SHA-256")
    for stage, seconds in result["timings_s"].items():
        problems.unless(seconds >= 0, f"timings_s.{stage} is negative")
    _check_registration(result["registration"], problems)
    _check_labels_and_tumours(result["labels"], result["tumours"], problems)
    run = result["run"]
    problems.unless(run["verdict"] in RUN_VERDICTS, f"run.verdict is {run['verdict']!r}")
    problems.unless(run["verdict"] == "ok" or run["reasons"], "run.verdict is not ok but gives no reason")


def _check_registration(registration: Json, problems: _Problems) -> None:
    kept = {candidate["name"] for candidate in registration["candidates"] if candidate["kept"]}
    problems.unless(registration["start"] in kept, "registration.start is not among the kept candidates")
    problems.unless(
        registration["similarity"]["better"] in ("higher", "lower"),
        "registration.similarity.better is neither higher nor lower",
    )
    jacobian = registration["jacobian"]
    order = [jacobian[name] for name in ("min", "p01", "p50", "p99", "max") if jacobian[name] is not None]
    problems.unless(order == sorted(order), "registration.jacobian: percentiles out of order")


def _check_labels_and_tumours(labels: Json, tumours: list[Json], problems: _Problems) -> None:
    for value, label in labels.items():
        problems.unless(value.isdecimal() and int(value) > 0, f"labels: {value!r} is not a label value")
        problems.unless(label["role"] in ROLES, f"labels.{value}.role is {label['role']!r}")
    with_role = sorted(int(value) for value, label in labels.items() if label["role"] == "tumour")
    listed = sorted(tumour["label"] for tumour in tumours)
    problems.unless(with_role == listed, f"tumours {listed} are not the labels with role tumour {with_role}")
    for tumour in tumours:
        _check_tumour(tumour, problems)


def _check_tumour(tumour: Json, problems: _Problems) -> None:
    where = f"tumour {tumour['label']}"
    problems.unless(
        set(tumour) == {f.name for f in dataclasses.fields(TumourResult)}, f"{where}: keys differ from the contract"
    )
    problems.unless(tumour["verdict"] in TUMOUR_VERDICTS, f"{where}: verdict is {tumour['verdict']!r}")
    problems.unless(tumour["volume_mm3"] >= 0, f"{where}: negative volume")
    for name in ("volume_ratio", "jacobian_ratio", "diameter_mm"):
        problems.unless(tumour[name] is None or tumour[name] >= 0, f"{where}: negative {name}")
    inside = tumour["inside_ct_fraction"]
    problems.unless(inside is None or 0 <= inside <= 1, f"{where}: inside_ct_fraction {inside} is not in 0..1")
    problems.unless(
        tumour["volume_mm3"] == 0 or tumour["centroid_lps_mm"] is not None, f"{where}: has a volume but no centroid"
    )
    p50, p95, covariance = tumour["p50_mm"], tumour["p95_mm"], tumour["covariance_mm2"]
    if tumour["verdict"] == "not_assessed":
        problems.unless(
            p50 is None and p95 is None and covariance is None, f"{where}: not assessed, yet with an uncertainty"
        )
    if tumour["verdict"] in ("localised", "approximate"):
        problems.unless(p50 is not None and p95 is not None, f"{where}: {tumour['verdict']} without p50_mm and p95_mm")
    problems.unless(p50 is None or p95 is None or 0 <= p50 <= p95, f"{where}: p50_mm {p50} above p95_mm {p95}")
    if covariance is not None:
        symmetric = len(covariance) == 3 and all(
            math.isclose(covariance[i][j], covariance[j][i], rel_tol=1e-6, abs_tol=1e-9)
            for i in range(3)
            for j in range(3)
        )
        problems.unless(symmetric, f"{where}: covariance_mm2 is not a symmetric 3x3 matrix")
