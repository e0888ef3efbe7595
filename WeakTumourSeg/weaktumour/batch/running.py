"""A batch: each case is one run of `register` in a process of its own, on this machine or on a Dask cluster.

    OUT/results/ID      the result folder, as `weaktumour register` writes it
    OUT/rows/ID.json    what came of it, with the key of everything it depends on
    OUT/summary.csv, summary.md

A batch can be stopped and started again: a result whose key is still that of its inputs' content, the settings and this
program is kept. A case that fails is one row with its error. A worker that dies takes nothing with it: the run it had
started ends with it (worker.py watches the parent), what was unfinished is removed, and Dask gives the case to another.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from .. import __version__
from ..errors import InputError
from ..models import TASKS, find, shipped_folder
from ..uncertainty.calibration import FILE as CALIBRATION_FILE
from ..workspace import remove_tree
from .table import PATHS, BatchCase

Row = dict[str, object]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
_NEEDS_DASK = (
    "Batch: Dask is not installed; in the checkout of WeakTumourSeg: pip install -e '.[cohort]', or use --scheduler "
    "none."
)
SUMMARY = ("id", "state", "run", "tumours", "verdicts", "seconds", "error")


@dataclass(frozen=True)
class Batch:
    """settings: options of `register` for all cases. processes: cases at a time. threads: of each.

    scheduler: address of a Dask scheduler, "local" for a cluster on this machine, "none" for one case after the other
    without Dask. gpus: CUDA devices to share out among local workers, as CUDA_VISIBLE_DEVICES names them; with none of
    them each run sees what its worker sees.
    """

    cases: tuple[BatchCase, ...]
    out: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    scheduler: str = "local"
    processes: int = 1
    threads: int = 1
    gpus: tuple[str, ...] = ()

    def result(self, case: BatchCase) -> Path:
        return self.out / "results" / case.id

    def row_path(self, case: BatchCase) -> Path:
        return self.out / "rows" / f"{case.id}.json"


def run_batch(batch: Batch, report: Callable[[str], None] = print) -> list[Row]:
    """A row for each case, in their order; writes the summary. Raises InputError: OUT or the scheduler is unusable."""
    try:
        for name in ("results", "rows"):
            (batch.out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {batch.out} cannot be made ({error.strerror}); choose another folder.") from error
    others = {path.name for path in (batch.out / "results").iterdir()} - {case.id for case in batch.cases}
    if others:
        report(f"{len(others)} results of other cases are in {batch.out / 'results'}; the summary leaves them out.")
    rows: dict[str, Row] = {}
    for row in _performed(batch):
        rows[str(row["id"])] = row
        said = row["error"] or ("kept from before" if row["kept"] else f"{row['seconds']:.0f} s")
        report(f"{len(rows)} of {len(batch.cases)}  {row['id']}: {said}")
    ordered = [rows[case.id] for case in batch.cases]
    write_summary(ordered, batch.out)
    return ordered


def _performed(batch: Batch) -> Iterator[Row]:
    if batch.scheduler == "none":
        for case in batch.cases:
            try:
                yield perform(batch, case)
            except Exception as error:  # as with Dask: no case stops the others
                told = f"it could not be done ({type(error).__name__}: {error})"[:300]
                yield _kept_row(batch, case, _row(case, error=f"{told}; the same command tries it again."))
        return
    try:
        from dask import distributed
    except ImportError as error:
        raise InputError(_NEEDS_DASK) from error
    with _client(batch, distributed) as client:
        # What is wrong with a case becomes its row: Dask does again only what a lost worker had begun.
        alone = replace(batch, cases=())  # a task need not know of the others
        tasks = {
            client.submit(perform_on_worker, alone, case, key=f"register-{case.id}-{os.getpid()}", pure=False): case
            for case in batch.cases
        }
        for task in distributed.as_completed(list(tasks)):
            try:
                yield task.result()
            except Exception as error:  # KilledWorker after several deaths, or a worker without this program
                yield _row(tasks[task], error=f"no worker could do it ({type(error).__name__}: {error})"[:300])


def _client(batch: Batch, distributed):
    try:
        if batch.scheduler == "local":
            return distributed.Client(n_workers=batch.processes, threads_per_worker=1, dashboard_address=None)
        return distributed.Client(batch.scheduler, timeout=30)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--scheduler: nothing answers at {batch.scheduler}; start a Dask scheduler there.") from error


# -- one case -----------------------------------------------------------------------------------------------------
def perform_on_worker(batch: Batch, case: BatchCase) -> Row:
    """`perform`, with the GPU that is this Dask worker's own."""
    gpu = None
    if batch.gpus:
        from dask import distributed

        name = str(distributed.get_worker().name)  # of a local cluster: 0, 1, ...
        gpu = batch.gpus[int(name) % len(batch.gpus)] if name.isdigit() else None
    return perform(batch, case, gpu)


def perform(batch: Batch, case: BatchCase, gpu: str | None = None) -> Row:
    """Register one case, unless its result is there already; its row, which is written too."""
    if case.error is not None:
        return _kept_row(batch, case, _row(case, error=case.error))
    try:
        key = key_of(batch, case)
    except OSError as error:
        name = Path(str(error.filename or "")).name or case.id
        return _kept_row(batch, case, _row(case, error=f"{name} cannot be read ({error.strerror}); check the path."))
    former = _former(batch, case)
    if former.get("key") == key and not former.get("error") and (batch.result(case) / "result.json").is_file():
        return {**former, "kept": True}
    begun = time.monotonic()
    error = _register(batch, case, gpu)
    row = _row(case, key=key, error=error, seconds=time.monotonic() - begun)
    if error is not None:
        remove_tree(batch.result(case))  # a former one would not belong to these inputs
    else:
        row |= _told(json.loads((batch.result(case) / "result.json").read_text(encoding="utf-8")))
    return _kept_row(batch, case, row)


def key_of(batch: Batch, case: BatchCase) -> str:
    """What a result depends on: content of the inputs and models, settings, threads, this program. Raises OSError."""
    inputs = {name: _checksum(Path(value)) if name in PATHS else value for name, value in case.inputs.items()}
    settings = {name: value for name, value in batch.settings.items() if value is not None}
    models = {task: _model(task, batch.settings.get(f"{task}_model")) for task in TASKS}
    return json.dumps([inputs, settings, models, batch.threads, _program()], sort_keys=True)


def _model(task: str, chosen: object) -> str:
    """Checksum of the weights that a run would use now: under one id there may be others than a while ago."""
    try:
        return find(None if chosen is None else str(chosen), task).sha256
    except InputError as error:  # "none"; or the run says what is wrong
        return str(error)


def _register(batch: Batch, case: BatchCase, gpu: str | None) -> str | None:
    """Run the worker on a case, in a process that ends with this one. What went wrong in one sentence, or None."""
    arguments = {**{n: v for n, v in batch.settings.items() if v is not None}, **case.inputs, "overwrite": True}
    request = {"schema": 1, "operation": "register", "arguments": arguments, "out": str(batch.result(case)),
               "parent_pid": os.getpid()}  # fmt: skip
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(batch.threads))}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with tempfile.TemporaryDirectory(prefix="weaktumour-batch-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "weaktumour.worker", str(path)]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode == 0:
        return None
    return _last_error(done.stdout) or f"the run ended with exit code {done.returncode}"


def _last_error(events: bytes) -> str | None:
    for line in reversed(events.splitlines()):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "error":
            return str(event.get("message"))
    return None


def _checksum(path: Path) -> str:
    """Of a file, or of the files of a DICOM folder, by content."""
    digest = sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_dir():
            continue
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


@cache
def _program() -> str:
    """Version and checksum of the code: while one works on it the version says little."""
    package = Path(__file__).resolve().parents[1]
    digest = sha256()
    with suppress(OSError):
        digest.update((shipped_folder() / CALIBRATION_FILE).read_bytes())
    for pattern in ("*.py", "registration/*.py", "networks/*.py", "report/*.py", "uncertainty/*.py"):
        for path in sorted(package.glob(pattern)):
            if path.name != "cli.py":
                digest.update(path.read_bytes())
    return f"{__version__} {digest.hexdigest()[:12]}"


# -- rows and the summary -----------------------------------------------------------------------------------------
def _row(case: BatchCase, *, key: str | None = None, error: str | None = None, seconds: float | None = None) -> Row:
    return {"id": case.id, "key": key, "error": error, "seconds": seconds, "kept": False}


def _told(result: Mapping) -> Row:
    """What the summary says of a result."""
    return {
        "run": result["run"]["verdict"],
        "reasons": result["run"]["reasons"],
        "tumours": len(result["tumours"]),
        "verdicts": [tumour["verdict"] for tumour in result["tumours"]],
    }


def _former(batch: Batch, case: BatchCase) -> Row:
    try:
        row = json.loads(batch.row_path(case).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def _kept_row(batch: Batch, case: BatchCase, row: Row) -> Row:
    path = batch.row_path(case)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return row


_RESEARCH = "For research only. Not a medical device; not for diagnosis or treatment."


def write_summary(rows: Sequence[Row], out: Path) -> None:
    """summary.csv and summary.md: a line a case."""
    from ..evaluation.measure import markdown_table

    lines = [_summary_line(row) for row in rows]
    with (out / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([SUMMARY, *lines])
    failed = sum(bool(row["error"]) for row in rows)
    text = f"# Batch\n\n{len(rows)} cases, {failed} failed.\n\n{markdown_table(SUMMARY, lines)}\n\n{_RESEARCH}\n"
    (out / "summary.md").write_text(text, encoding="utf-8")


def _summary_line(row: Row) -> list[object]:
    verdicts = ", ".join(str(v).replace("_", " ") for v in row.get("verdicts") or [])
    seconds = f"{row['seconds']:.1f}" if isinstance(row.get("seconds"), float) else ""
    cells = [row["id"], "failed" if row["error"] else "done", row.get("run") or "", row.get("tumours", ""), verdicts]
    return [*cells, seconds, " ".join(str(row["error"] or "").replace("|", "/").split())]
