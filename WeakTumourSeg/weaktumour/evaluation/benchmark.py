"""A cohort through several methods: each pair of patient and method is one task, one process, one row kept as JSON.

A run that was stopped goes on where it was; a task that fails is kept as such and the others go on. Tasks run one after
the other (for timings), in several processes, or on a Dask cluster that sees the same folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..cases import read_case
from ..deformation import DisplacementField
from ..errors import InputError, WeakTumourError
from ..simulation import VERSION
from ..volumes import Grid, Volume
from .cohort import Patient, motion_mm, prepared
from .measure import json_ready, machine
from .methods import NAMES, PEER_SETTINGS, engine, run_method, wants_affine
from .metrics import evaluate_case

Row = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """methods: of methods.NAMES. processes: tasks at a time; more than one spoils the timings. threads: of each task,
    None for all cores. scheduler: address of a Dask scheduler, or "local" for one on this machine.
    """

    patients: tuple[Patient, ...]
    methods: tuple[str, ...]
    out: Path
    processes: int = 1
    threads: int | None = None
    scheduler: str | None = None
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in NAMES]
        if unknown or not self.methods:
            raise InputError(f"--methods: {', '.join(unknown) or 'none'}; choose from {', '.join(NAMES)}.")
        if self.processes < 1:
            raise InputError(f"--processes: {self.processes}; give 1 or more.")


# What ends one task and not the others.
_OF_ONE_TASK = (WeakTumourError, OSError, RuntimeError, ValueError)


def run_benchmark(plan: Plan, report: Callable[[str], None] = print) -> list[Row]:
    """Every row, those of former calls included. Raises InputError for a folder that cannot be used."""
    try:
        for name in ("cases", "rows", "results"):
            (plan.out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {plan.out} cannot be made ({error.strerror}); choose another folder.") from error
    # The affine alignment is some peers' start: it comes first.
    first = ["affine"] if "affine" in plan.methods or any(map(wants_affine, plan.methods)) else []
    stages = [first, [name for name in plan.methods if name != "affine"]]
    rows: list[Row] = []
    for methods in stages:
        tasks = [(plan, patient, method) for patient in plan.patients for method in methods]
        waiting = [task for task in tasks if (_kept(*task) or {"error": ""}).get("error") is not None]  # failed: again
        if waiting:
            report(f"{len(waiting)} of {len(tasks)} tasks to run ({', '.join(methods)})")
        for done, row in enumerate(_performed(plan, waiting), start=1):
            said = row.get("error") or f"{row['seconds']:.0f} s"
            report(f"{done} of {len(waiting)}  {row['patient']}  {row['method']}: {said}")
        rows += [row for task in tasks if (row := _kept(*task)) is not None]
    return rows


def _performed(plan: Plan, tasks: Sequence[tuple[Plan, Patient, str]]) -> Iterator[Row]:
    if not tasks:
        return
    if plan.scheduler:
        yield from _on_cluster(plan, tasks)
    elif plan.processes == 1:
        yield from map(_task, tasks)
    else:
        # Patients first, so that no two tasks make the same one.
        with ProcessPoolExecutor(plan.processes) as pool:
            list(pool.map(_prepare, {task[1].name: task for task in tasks}.values()))
            for future in as_completed([pool.submit(_task, task) for task in tasks]):
                yield future.result()


def _on_cluster(plan: Plan, tasks: Sequence[tuple[Plan, Patient, str]]) -> Iterator[Row]:
    try:
        from dask import distributed
    except ImportError as error:
        raise InputError("--scheduler needs Dask; install it with: pip install distributed") from error
    try:
        if plan.scheduler == "local":
            client = distributed.Client(n_workers=plan.processes, threads_per_worker=1, dashboard_address=None)
        else:
            client = distributed.Client(plan.scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--scheduler: nothing answers at {plan.scheduler}; start a Dask scheduler there.") from error
    with client:
        client.gather([client.submit(_prepare, t, pure=False) for t in {task[1].name: task for task in tasks}.values()])
        for _, row in distributed.as_completed(
            [client.submit(_task, task, pure=False) for task in tasks], with_results=True
        ):
            yield row


# -- one task -----------------------------------------------------------------------------------------------------
def _prepare(task: tuple[Plan, Patient, str]) -> None:
    plan, patient, _ = task
    with suppress(*_OF_ONE_TASK):  # the tasks of this patient will say so
        prepared(patient, plan.out / "cases")


def _task(task: tuple[Plan, Patient, str]) -> Row:
    plan, patient, method = task
    row: Row = {"patient": patient.name, "kind": patient.kind, "method": method, "key": _key(plan, patient, method)}
    try:
        row |= _measured(plan, patient, method)
    except _OF_ONE_TASK as error:
        row |= {"error": str(error) or type(error).__name__}
    path = _row_path(plan, patient, method)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(json_ready(row), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return row


def _measured(plan: Plan, patient: Patient, method: str) -> Row:
    folder = prepared(patient, plan.out / "cases")
    result = plan.out / "results" / f"{patient.name}-{method}"
    start, start_seconds = None, 0.0
    if wants_affine(method):
        start = DisplacementField.read(plan.out / "results" / f"{patient.name}-affine" / "transform.h5")
        affine = _kept(plan, patient, "affine") or {}
        start_seconds = float((affine.get("settings") or {}).get("registration_s") or 0.0)
    outcome = run_method(method, folder, result, threads=plan.threads, start=start, timeout_s=plan.timeout_s)
    case = read_case(folder)
    carried = carry_labels(case.mr_labels, outcome.transform, case.ct.grid)
    present = {int(v) for v in np.unique(case.mr_labels.array)} & {int(v) for v in np.unique(case.ct_labels.array)}
    figures = evaluate_case(
        Volume(carried, case.ct.grid),
        case.ct_labels,
        outcome.transform,
        case.truth_points,
        tumour_values=sorted(v for v in present if v >= 2),
    )
    looks = (case.info.get("simulation") or {}).get("tumours_in_ct") or []
    for tumour in figures["tumours"]:
        number = int(tumour["label"]) - 2
        tumour["in_ct"] = looks[number] if number < len(looks) else None
    if method != "affine":  # what a peer may start from is kept, the rest is large
        shutil.rmtree(result, ignore_errors=True)
    return {
        "simulator": case.info.get("simulator_version"),
        "simulation": case.info.get("simulation"),
        "motion_mm": motion_mm(case.truth_points),
        "ct_voxels": int(np.prod(case.ct.grid.size)),
        "seconds": outcome.seconds,
        "seconds_with_start": outcome.seconds + start_seconds,
        "peak_mb": outcome.peak_mb,
        "version": outcome.version,
        "settings": outcome.settings,
        "alone": plan.processes == 1 and plan.scheduler is None,
        "machine": machine(),
        "figures": figures,
    }


def carry_labels(labels: Volume, field: DisplacementField, grid: Grid) -> np.ndarray:
    """MR labels on the CT grid: each label's indicator read linearly by SimpleITK; the one with more than half of a
    voxel has it.

    One way for every method, so that transforms are compared and not resamplers.
    """
    transform = field.to_sitk()
    best = np.full(grid.shape, 0.5, dtype=np.float32)
    result = np.zeros(grid.shape, dtype=labels.array.dtype)
    for value in np.unique(labels.array):
        if value == 0:
            continue
        indicator = Volume((labels.array == value).astype(np.float32), labels.grid).to_image()
        share = sitk.GetArrayFromImage(
            sitk.Resample(
                indicator, list(grid.size), transform, sitk.sitkLinear, grid.origin, grid.spacing, grid.direction, 0.0
            )
        )
        wins = share > best
        result[wins], best[wins] = value, share[wins]
    return result


# -- what is kept -------------------------------------------------------------------------------------------------
def _key(plan: Plan, patient: Patient, method: str) -> str:
    """What a row depends on: with another key it is made anew."""
    settings = asdict(PEER_SETTINGS[method]) if method in PEER_SETTINGS else engine()
    if wants_affine(method):
        settings["start"] = engine()
    files = []
    if patient.kind == "case":  # corrected in the meantime?
        stats = [(path.name, path.stat()) for path in sorted(Path(patient.source).iterdir()) if path.is_file()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return json.dumps([VERSION, patient.kind, patient.seed, method, settings, *files], sort_keys=True)


def _row_path(plan: Plan, patient: Patient, method: str) -> Path:
    return plan.out / "rows" / f"{patient.name}-{method}.json"


def _kept(plan: Plan, patient: Patient, method: str) -> Row | None:
    try:
        row = json.loads(_row_path(plan, patient, method).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if row.get("key") == _key(plan, patient, method) else None
