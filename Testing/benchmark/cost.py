"""What registration costs on the demo's simulated patient: ours against ConvexAdam, side by side in one run.

All run as processes of their own from the same files, in turn, so that a busy machine hits all; each figure is the
median over the rounds. ConvexAdam runs twice: as the benchmark has it, with the settings that were best on development
patients (its affine start is not counted), and with its package's defaults at 3 mm and no start. It
reads the images, resamples and registers them and writes a displacement field; ours reads, aligns, refines, carries
labels, and writes the result folder with its report. Also how long `python -m weaktumour.worker` takes to print its
first line.

    python Testing/benchmark/cost.py [--rounds 3] [--out FILE.json]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from common import (
    ENVIRONMENT,
    Bar,
    DisplacementField,
    markdown_table,
    parser,
    read_result,
    read_volume,
    report,
    run_ours,
    run_script,
    use_cores,
    work_folder,
)
from weaktumour.cases import Case, read_case
from weaktumour.evaluation.measure import seconds_to_first_line
from weaktumour.evaluation.methods import _REGISTRATION, PEER_SETTINGS
from weaktumour.evaluation.metrics import evaluate_case, summary_of_points, target_registration_error
from weaktumour.evaluation.peers import run_peer
from weaktumour.simulation import VERSION

MEMORY_BAR_MB = 2000.0
DEFAULT_SPACING_MM = 3.0
FIRST_LINE_BAR_S = 5.0


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    rounds = 1 if arguments.smoke else arguments.rounds
    presets = ("fast",) if arguments.smoke else ("balanced", "fast")
    with work_folder(arguments) as work:
        case_folder = work / "case"
        run_ours("simulate", out=case_folder, seed=arguments.seed, tumours_in_ct="invisible", overwrite=True)
        files = {name: case_folder / f"{name}.nii.gz" for name in ("mr", "ct", "mr_labels")}
        run_ours("register", **files, out=work / "alignment", stages="alignment", device="cpu", overwrite=True)
        affine = DisplacementField.read(work / "alignment" / "transform.h5").best_affine.matrix
        ours: dict[str, list] = {preset: [] for preset in presets}
        theirs: dict[str, list] = {"as in the benchmark": [], "defaults": []}
        tuned = PEER_SETTINGS["convexadam"]
        how = {
            "as in the benchmark": {"spacing_mm": tuned.spacing_mm, "options": tuned.options, "start": affine},
            "defaults": {"spacing_mm": DEFAULT_SPACING_MM},
        }
        for number in range(rounds):
            for preset in presets:
                ours[preset].append(
                    run_ours("register", **files, out=work / preset, preset=preset, device="cpu", uncertainty="off",
                             overwrite=True)
                )  # fmt: skip
            for name in ("defaults",) if arguments.smoke else theirs:
                theirs[name].append(run_peer("convexadam", files["ct"], files["mr"], **how[name]))
            print(f"round {number + 1} of {rounds}", flush=True)
        first_lines = [_first_line(work, files) for _ in range(rounds)]
        case = read_case(case_folder)
        results = {preset: _accuracy(work / preset, case) for preset in presets}
        timings = {preset: read_result(work / preset)["timings_s"] for preset in presets}

    peer_points = {
        name: summary_of_points(target_registration_error(runs[-1].field, case.truth_points))
        for name, runs in theirs.items()
        if runs
    }
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in (ours | theirs).items() if runs}
    memory = {name: statistics.median(run.peak_mb for run in runs) for name, runs in (ours | theirs).items() if runs}
    alone = {preset: _registration_seconds(timings[preset]) for preset in presets}
    alone |= {name: statistics.median(run.method_seconds for run in runs) for name, runs in theirs.items() if runs}
    errors = {preset: results[preset]["points"]["mean_mm"] for preset in presets}
    errors |= {name: points["mean_mm"] for name, points in peer_points.items()}
    first_line = statistics.median(first_lines)
    peers = [name for name in theirs if name in seconds]
    rows = [
        [f"ours, {name}" if name in presets else f"ConvexAdam, {name}", seconds[name],
         *(seconds[name] / seconds[peer] for peer in peers), alone[name], memory[name], errors[name]]
        for name in seconds
    ]  # fmt: skip
    header = ["", "wall time s", *(f"ratio to ConvexAdam, {peer}" for peer in peers), "registration alone s", "peak MB",
              "mean error of the truth's points mm"]  # fmt: skip
    bars = []
    if not arguments.smoke:
        bound = seconds["as in the benchmark"]
        bars = [
            Bar("balanced: wall time against ConvexAdam's in the benchmark, s", seconds["balanced"], bound, False),
            Bar("fast: wall time against half of it, s", seconds["fast"], 0.5 * bound, at_least=False),
            Bar("balanced: peak memory, MB", memory["balanced"], MEMORY_BAR_MB, at_least=False),
            Bar("worker's first line, s", first_line, FIRST_LINE_BAR_S, at_least=False),
        ]
    version = next(runs[-1].version for runs in theirs.values() if runs)
    figures = {
        "convexadam_version": version,
        "rounds": {name: [{"seconds": run.seconds, "peak_mb": run.peak_mb} for run in runs]
                   for name, runs in (ours | theirs).items()},
        "first_line_s": first_lines,
        "timings_s": timings,
        "accuracy": {"ours": results, "peer_points": peer_points},
    }  # fmt: skip
    data = (
        f"one simulated patient, simulated MR and CT (seed {arguments.seed}, simulator version {VERSION}), "
        f"MR {case.mr.grid.size}, CT {case.ct.grid.size}; ConvexAdam {version}; median of {rounds} round(s); "
        f"worker's first line after {first_line:.2f} s"
    )
    return report(arguments, "Cost on the demo pair", data, [markdown_table(header, rows)], figures, bars)


def _accuracy(result: Path, case: Case) -> dict:
    labels, field = read_volume(result / "ct_labels.nii.gz", "labels"), DisplacementField.read(result / "transform.h5")
    return evaluate_case(labels, case.ct_labels, field, case.truth_points)


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def _first_line(work: Path, files: dict[str, Path]) -> float:
    """Seconds until the worker's first line; it is ended then."""
    request = work / "request.json"
    content = {
        "schema": 1,
        "operation": "register",
        "arguments": {name: str(path) for name, path in files.items()},
        "out": str(work / "first-line"),
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    argv = [sys.executable, "-m", "weaktumour.worker", str(request)]
    seconds, line = seconds_to_first_line(argv, environment=ENVIRONMENT)
    if json.loads(line).get("event") not in ("progress", "log"):
        raise RuntimeError(f"the worker did not begin its work: {line}")
    return seconds


def _registration_seconds(timings: dict[str, float]) -> float:
    return sum(timings.get(stage) or 0.0 for stage in _REGISTRATION)


if __name__ == "__main__":
    run_script(main)
