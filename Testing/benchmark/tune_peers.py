"""Settings of the peers, tried on development patients: the peers are to show what they can.

Each variant registers the same patients (--cases of the development part of splits.json, evenly chosen); the one with
the smallest sum of median tumour error and median target error is the one to put into
`weaktumour.evaluation.methods.PEER_SETTINGS`.
A run that was stopped goes on where it was.

    python Testing/benchmark/tune_peers.py [--methods LIST] [--keep DIR] [--processes 2] [--out FILE.json]
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np

from common import (
    DisplacementField,
    Volume,
    carry_labels,
    markdown_table,
    parser,
    report,
    run_script,
    shared_data,
    work_folder,
)
from weaktumour.cases import read_case
from weaktumour.evaluation.benchmark import Plan, run_benchmark
from weaktumour.evaluation.cohort import of_splits, phantoms
from weaktumour.evaluation.measure import json_ready
from weaktumour.evaluation.methods import PeerSettings, engine, run_method
from weaktumour.evaluation.metrics import evaluate_case
from weaktumour.simulation import VERSION

VARIANTS: dict[str, dict[str, PeerSettings]] = {
    "convexadam": {
        "defaults, our affine": PeerSettings(3.0, True),
        "defaults, no start": PeerSettings(3.0, False),
        "2 mm": PeerSettings(2.0, True),
        "4 mm": PeerSettings(4.0, True),
        "smoothed twice": PeerSettings(3.0, True, {"selected_smooth": 3}),
        "lambda 4": PeerSettings(3.0, True, {"lambda_weight": 4.0}),
        "lambda 4, smoothed": PeerSettings(3.0, True, {"lambda_weight": 4.0, "selected_smooth": 5}),
        "small search": PeerSettings(3.0, True, {"disp_hw": 3, "grid_sp": 5}),
    },
    "syn": {
        "3 mm": PeerSettings(3.0, True),
        "more steps": PeerSettings(3.0, True, {"reg_iterations": [80, 60, 20]}),
        "smoother": PeerSettings(3.0, True, {"flow_sigma": 6, "total_sigma": 1}),
        "no start": PeerSettings(3.0, False),
    },
    "elastix": {
        "bending 20": PeerSettings(3.0, True, {"iterations": 250, "bending": 20.0}),
        "bending 200": PeerSettings(3.0, True, {"iterations": 250, "bending": 200.0}),
        "bending 2000": PeerSettings(3.0, True, {"iterations": 250, "bending": 2000.0}),
        "bending 10000": PeerSettings(3.0, True, {"iterations": 250, "bending": 10000.0}),
    },
}


def main() -> int:
    arguments = _arguments()
    chosen = [name.strip() for name in arguments.methods.split(",")]
    if arguments.smoke:
        patients, variants = phantoms(1), {"convexadam": {"8 mm": PeerSettings(8.0, True)}}
    else:
        splits = Path(__file__).with_name("splits.json")
        patients = of_splits(splits, "development", shared_data())
        patients = patients[:: max(1, len(patients) // arguments.cases)][: arguments.cases]
        variants = {name: VARIANTS[name] for name in chosen}
    with work_folder(arguments) as work:
        run_benchmark(Plan(tuple(patients), ("affine",), work, arguments.processes, arguments.threads))
        (work / "tuning").mkdir(exist_ok=True)
        tasks = [(work, p.name, m, v, s, arguments.threads)
                 for m, found in variants.items() for v, s in found.items() for p in patients]  # fmt: skip
        rows = []
        with ProcessPoolExecutor(arguments.processes) as pool:
            for future in as_completed([pool.submit(_tried, *task) for task in tasks]):
                rows.append(future.result())
                print(f"{len(rows)} of {len(tasks)}: {rows[-1]['method']}, {rows[-1]['variant']}", flush=True)
    tables = [_table(name, found, rows) for name, found in variants.items()]
    data = f"{len(patients)} simulated patients of the development part (simulated MR and CT, simulator {VERSION})"
    return report(arguments, "Settings of the peers", data, tables, {"rows": rows}, [])


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--methods", default=",".join(VARIANTS), help="comma-separated")
    options.add_argument("--cases", type=int, default=4, help="development patients (default: 4)")
    options.add_argument("--processes", type=int, default=2, help="registrations at a time (default: 2)")
    options.add_argument("--threads", type=int, default=1, help="of each of them (default: 1)")
    return options.parse_args()


def _tried(work: Path, patient: str, method: str, variant: str, settings: PeerSettings, threads: int) -> dict:
    """One row, made now or kept from before."""
    name = f"{patient}-{method}-{variant}".replace(" ", "_").replace(",", "")
    path = work / "tuning" / f"{name}.json"
    asked = json_ready({**asdict(settings), "simulator": VERSION, "start": engine()})
    if path.is_file():
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["settings"] == asked:
            return row
    folder = work / "cases" / f"{patient}-v{VERSION}"
    start = DisplacementField.read(work / "results" / f"{patient}-affine" / "transform.h5")
    outcome = run_method(method, folder, work / name, threads=threads, start=start, settings=settings)
    shutil.rmtree(work / name, ignore_errors=True)
    case = read_case(folder)
    carried = Volume(carry_labels(case.mr_labels, outcome.transform, case.ct.grid), case.ct.grid)
    figures = evaluate_case(carried, case.ct_labels, outcome.transform, case.truth_points)
    row = {"patient": patient, "method": method, "variant": variant, "settings": asked, "seconds": outcome.seconds,
           "figures": figures}  # fmt: skip
    path.write_text(json.dumps(json_ready(row)) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def _table(method: str, variants: dict[str, PeerSettings], rows: list[dict]) -> str:
    lines = []
    for variant in variants:
        found = [row for row in rows if (row["method"], row["variant"]) == (method, variant)]
        errors = [np.inf if t["centroid_error_mm"] is None else t["centroid_error_mm"]
                  for row in found for t in row["figures"]["tumours"]]  # fmt: skip
        points = [row["figures"]["points"]["median_mm"] for row in found]
        livers = [row["figures"]["liver"]["dice"] for row in found]
        tumour, target = float(np.median(errors)), float(np.median(points))
        seconds = float(np.median([row["seconds"] for row in found]))
        lines.append([variant, tumour, float(np.sort(errors)[int(0.9 * (len(errors) - 1))]), target,
                      float(np.median(livers)), seconds, tumour + target])  # fmt: skip
    header = [method, "tumour error mm", "p90 mm", "target error mm", "liver Dice", "s", "sum"]
    return markdown_table(header, sorted(lines, key=lambda line: line[-1]))


if __name__ == "__main__":
    run_script(main)
