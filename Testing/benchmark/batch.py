"""`weaktumour batch` on two workers of which one is killed on the way: are all results those of a serial run?

Twelve coarse simulated patients and a corrupt case go through a local cluster of two workers; when both are at work,
one is killed. The same cases then run one after the other without Dask, and each label map is compared voxel by voxel.
Last, two of the cases run on a cluster that is started apart, scheduler and two workers, and one worker is killed for
good.

    python Testing/benchmark/batch.py [--cases 12] [--preset fast] [--out FILE.json] [--page FILE.md]
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from dask import distributed

from common import (
    ENVIRONMENT,
    Bar,
    check_page_options,
    command_line,
    markdown_table,
    page_options,
    parser,
    read_volume,
    report,
    run_script,
    use_cores,
    work_folder,
    write_page,
)
from weaktumour.cases import write_case
from weaktumour.evaluation.methods import engine
from weaktumour.evaluation.peers import child_environment
from weaktumour.simulation import VERSION, simulate_patient

FIRST_SEED = 910_000  # neither trained on nor in any table
WAIT_S = 300.0


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    number = 2 if arguments.smoke else arguments.cases
    with work_folder(arguments) as folder:
        work = folder.resolve()  # paths in a table count from the table
        table = _write_cases(work, number)
        options = {"preset": arguments.preset, "threads": 1, "device": "cpu"}
        if arguments.smoke:
            options |= {"stages": "alignment", "segmentation_model": "none"}
        batch = _run(table, work / "parallel", kill=True, processes=2, **options)
        serial = _run(table, work / "serial", scheduler="none", **options)
        with _cluster(work) as address:
            few = _first_lines(table, 2)
            apart = _run(few, work / "apart", kill=True, scheduler=address, **options)
        same = sum(_same_labels(work / "parallel", work / "serial", name) for name in _names(table))
        same_apart = sum(_same_labels(work / "apart", work / "serial", name) for name in _names(few))
        failed = [row["id"] for row in _summary(work / "parallel") if row["state"] == "failed"]

    rows = [
        ["cases, the corrupt one left out", number],
        ["workers killed on the way", int(batch["killed"])],
        ["label maps that are the serial run's", same],
        ["cases reported as failed", ", ".join(failed)],
        ["seconds, two workers of one thread", batch["seconds"]],
        ["seconds, one after the other", serial["seconds"]],
        ["cluster started apart, one of two workers killed for good: label maps that are the serial run's", same_apart],
    ]
    bars = [
        Bar("identical label maps", same, number, in_smoke=True),
        Bar("identical label maps of the cluster started apart", same_apart, 2, in_smoke=True),
        Bar("workers killed", batch["killed"] + apart["killed"], 2),
        Bar("failed cases", len(failed), 1, at_least=False, in_smoke=True),
        Bar("the corrupt case is reported", float(failed == ["corrupt"]), 1, in_smoke=True),
    ]
    data = f"{number} phantoms at 3 to 5 mm (simulated MR and CT), seeds from {FIRST_SEED}, simulator {VERSION}"
    found = markdown_table(["what", ""], rows)
    if arguments.page:
        told = f"preset {arguments.preset}, one thread a run; code {engine('batch/*.py')['code']}"
        introduction = [f"`python Testing/benchmark/batch.py`: {data}; {told}."]
        write_page(arguments, "Many cases on workers that die", introduction, bars, [found])
    figures = {"parallel": batch, "serial": serial, "apart": apart, "failed": failed, "options": options}
    return report(arguments, "Batch", data, [found], figures, bars)


# -- cases --------------------------------------------------------------------------------------------------------
def _write_cases(work: Path, number: int) -> Path:
    """cases.csv with so many patients, and a corrupt one in second place."""
    lines = []
    for seed in range(FIRST_SEED, FIRST_SEED + number):
        folder = work / "cases" / f"case-{seed}"
        if not (folder / "case.json").is_file():
            patient = simulate_patient(
                seed, ct_spacing_mm=(3, 3, 4), mr_spacing_mm=(3, 3, 5), anatomy_spacing_mm=2.5, needle=False
            )
            write_case(folder, patient)
        lines.append([folder.name, *(str(folder / f"{name}.nii.gz") for name in ("mr", "ct", "mr_labels"))])
    broken = work / "cases" / "broken.nii.gz"
    whole = Path(lines[0][2]).read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    lines.insert(1, ["corrupt", lines[0][1], str(broken), lines[0][3]])
    path = work / "cases.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "mr", "ct", "mr_labels"], *lines])
    return path


def _first_lines(table: Path, number: int) -> Path:
    header, *lines = table.read_text().splitlines()
    path = table.with_name("few.csv")
    path.write_text("\n".join([header, *[line for line in lines if not line.startswith("corrupt")][:number]]) + "\n")
    return path


def _names(table: Path) -> list[str]:
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    return [name for name in names if name != "corrupt"]


# -- runs ---------------------------------------------------------------------------------------------------------
def _run(table: Path, out: Path, kill: bool = False, **options: object) -> dict[str, object]:
    """{seconds, killed, told}. kill: end a Dask worker once two runs are under way."""
    argv = command_line("batch", out=out, **options)
    argv.insert(4, str(table))
    begun = time.monotonic()
    process = subprocess.Popen(argv, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        try:
            killed = kill and _kill_a_worker(process, out)
            told, _ = process.communicate()
        finally:
            process.kill()
    if process.returncode not in (0, 1):
        raise RuntimeError(f"weaktumour batch ended with {process.returncode}:\n{told[-2000:]}")
    return {"seconds": time.monotonic() - begun, "killed": bool(killed), "told": told}


def _kill_a_worker(batch: subprocess.Popen, out: Path) -> bool:
    """The Dask worker that runs a case is the parent of that case's `python -m weaktumour.worker`."""
    end = time.monotonic() + WAIT_S
    while batch.poll() is None and time.monotonic() < end:
        runs = _runs_into(out / "results")
        if len(runs) >= 2:
            runs[-1].parent().kill()
            return True
        time.sleep(0.05)
    return False


def _runs_into(results: Path) -> list[psutil.Process]:
    """The worker.py processes, of those that this script started, whose result goes into this folder."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
            if "weaktumour.worker" in words and words[-1].endswith("request.json"):
                out = Path(json.loads(Path(words[-1]).read_text())["out"])
                found += [process] if out.parent == results.resolve() else []
        except (psutil.Error, OSError, ValueError):
            continue
    return found


@contextmanager
def _cluster(work: Path) -> Iterator[str]:
    """A Dask scheduler and two workers without nannies, as on two machines; the scheduler's address."""
    file = work / "scheduler.json"
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": _environment()}
    started = [subprocess.Popen([*dask, "scheduler", *common, "--port", "0", "--host", "127.0.0.1"], **quiet)]
    try:
        for _ in range(2):
            started.append(subprocess.Popen([*dask, "worker", *common, "--nthreads", "1", "--no-nanny"], **quiet))
        end = time.monotonic() + WAIT_S
        while not file.is_file() or not file.read_text().strip():
            if time.monotonic() > end:
                raise RuntimeError("the Dask scheduler did not start")
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        with distributed.Client(address, timeout=WAIT_S) as client:
            client.wait_for_workers(2, timeout=WAIT_S)
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, **child_environment(1)}


# -- results ------------------------------------------------------------------------------------------------------
def _same_labels(one: Path, other: Path, name: str) -> bool:
    paths = [out / "results" / name / "ct_labels.nii.gz" for out in (one, other)]
    if not all(path.is_file() for path in paths):
        return False
    a, b = (read_volume(path, "labels") for path in paths)
    return a.grid.same_as(b.grid) and np.array_equal(a.array, b.array)


def _summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _arguments():
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--cases", type=int, default=12)
    arguments.add_argument("--preset", default="fast")
    page_options(arguments)
    options = arguments.parse_args()
    check_page_options(options)
    return options


if __name__ == "__main__":
    run_script(main)
