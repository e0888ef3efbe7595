"""What registration costs on the demo's simulated patient: ours against ConvexAdam, side by side in one run.

Both run as processes of their own from the same files, in turn, so that a busy machine hits both; each figure is the
median over the rounds. ConvexAdam works at our working spacing, reads the images, resamples and registers them and
writes a displacement field; ours reads, aligns, refines, carries labels, and writes the result folder with its report.
Also how long `python -m weaktumour.worker` takes to print its first line.

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
from weaktumour.cases import read_case
from weaktumour.evaluation.measure import seconds_to_first_line
from weaktumour.evaluation.metrics import evaluate_case, summary_of_points, target_registration_error
from weaktumour.evaluation.peers import run_peer
from weaktumour.simulation import VERSION

MEMORY_BAR_MB = 2000.0
FIRST_LINE_BAR_S = 5.0


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    rounds = 1 if arguments.smoke else arguments.rounds
    preset = "fast" if arguments.smoke else arguments.preset
    with work_folder(arguments) as work:
        case_folder, out = work / "case", work / "result"
        run_ours("simulate", out=case_folder, seed=arguments.seed, tumours_in_ct="invisible", overwrite=True)
        files = {name: case_folder / f"{name}.nii.gz" for name in ("mr", "ct", "mr_labels")}
        ours, theirs = [], []
        for number in range(rounds):
            ours.append(run_ours("register", **files, out=out, preset=preset, device="cpu", overwrite=True))
            spacing = read_result(out)["settings"]["working_spacing_mm"]
            theirs.append(run_peer("convexadam", files["ct"], files["mr"], spacing_mm=spacing))
            print(f"round {number + 1} of {rounds}: {ours[-1].seconds:.1f} s, {theirs[-1].seconds:.1f} s", flush=True)
        first_lines = [_first_line(work, files) for _ in range(rounds)]
        case = read_case(case_folder)
        labels, field = read_volume(out / "ct_labels.nii.gz", "labels"), DisplacementField.read(out / "transform.h5")
        timings = read_result(out)["timings_s"]

    accuracy = evaluate_case(labels, case.ct_labels, field, case.truth_points)
    peer_points = summary_of_points(target_registration_error(theirs[-1].field, case.truth_points))
    seconds, peer_seconds = (statistics.median(run.seconds for run in runs) for runs in (ours, theirs))
    memory, peer_memory = (statistics.median(run.peak_mb for run in runs) for runs in (ours, theirs))
    first_line = statistics.median(first_lines)
    rows = [
        ["wall time, s", seconds, peer_seconds, seconds / peer_seconds],
        ["registration alone, s", _registration_seconds(timings), theirs[-1].method_seconds, None],
        ["peak memory, MB", memory, peer_memory, memory / peer_memory],
        ["worker's first line, s", first_line, None, None],
        ["mean error of the truth's points, mm", accuracy["points"]["mean_mm"], peer_points["mean_mm"], None],
        ["liver Dice", accuracy["liver"]["dice"], None, None],
    ]
    bars = [
        Bar("wall time against ConvexAdam's, s", seconds, peer_seconds, at_least=False),
        Bar("peak memory, MB", memory, MEMORY_BAR_MB, at_least=False),
        Bar("worker's first line, s", first_line, FIRST_LINE_BAR_S, at_least=False),
    ]
    figures = {
        "preset": preset,
        "working_spacing_mm": spacing,
        "convexadam_version": theirs[-1].version,
        "rounds": [
            {"ours": {"seconds": a.seconds, "peak_mb": a.peak_mb}, "peer": {"seconds": b.seconds, "peak_mb": b.peak_mb}}
            for a, b in zip(ours, theirs, strict=True)
        ],
        "first_line_s": first_lines,
        "timings_s": timings,
        "accuracy": {"ours": accuracy, "peer_points": peer_points},
    }
    data = (
        f"one simulated patient, simulated MR and CT (seed {arguments.seed}, simulator version {VERSION}), "
        f"MR {case.mr.grid.size}, CT {case.ct.grid.size}; preset {preset}, working spacing {spacing:g} mm for both; "
        f"median of {rounds} round(s)"
    )
    table = markdown_table(["", "ours", f"ConvexAdam {theirs[-1].version}", "ratio"], rows)
    return report(arguments, "Cost on the demo pair", data, [table], figures, bars)


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--preset", default="balanced", choices=("fast", "balanced", "thorough"))
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
    return sum(timings.get(stage) or 0.0 for stage in ("alignment", "refinement"))


if __name__ == "__main__":
    run_script(main)
