"""A simulated patient at clinical size through our command line: does it run, how long, how much memory, how good?

python Testing/benchmark/clinical_size.py [--preset balanced] [--out FILE.json]
"""

from __future__ import annotations

from pathlib import Path

from common import (
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
from weaktumour.cases import read_case, write_case
from weaktumour.evaluation.metrics import evaluate_case
from weaktumour.simulation import VERSION, simulate_patient

CT_SIZE, CT_SPACING_MM = (512, 512, 400), (0.8, 0.8, 1.0)
MR_SIZE, MR_SPACING_MM = (320, 320, 80), (1.2, 1.2, 3.0)
SMOKE_FACTOR = 4  # so many times coarser in a smoke run
MEMORY_BAR_MB = 4000.0
TRANSFORM_BAR_MB = 100.0


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    factor, preset, uncertainty = (SMOKE_FACTOR, "fast", "off") if arguments.smoke else (1, arguments.preset, "auto")
    with work_folder(arguments) as work:
        case_folder, out = work / "case", work / "result"
        grids = _simulate(case_folder, arguments.seed, factor)
        files = {name: case_folder / f"{name}.nii.gz" for name in ("mr", "ct", "mr_labels")}
        ours = run_ours(
            "register", **files, out=out, preset=preset, uncertainty=uncertainty, device="cpu", overwrite=True
        )
        transform_mb = (out / "transform.h5").stat().st_size / 1e6
        folder_mb = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
        case = read_case(case_folder)
        labels, field = read_volume(out / "ct_labels.nii.gz", "labels"), DisplacementField.read(out / "transform.h5")
        figures = evaluate_case(labels, case.ct_labels, field, case.truth_points)
        timings = read_result(out)["timings_s"]

    cost = [
        ["wall time, s", ours.seconds],
        *[[f"of which {stage}, s", seconds] for stage, seconds in timings.items() if stage != "total"],
        ["peak memory, MB", ours.peak_mb],
        ["transform.h5, MB", transform_mb],
        ["result folder, MB", folder_mb],
    ]
    quality = [
        ["liver Dice", figures["liver"]["dice"]],
        ["liver HD95, mm", figures["liver"]["hd95_mm"]],
        ["liver ASSD, mm", figures["liver"]["assd_mm"]],
        ["mean error of the truth's points, mm", figures["points"]["mean_mm"]],
        ["folds inside the CT", figures["field"]["folds"]],
    ]
    tumours = [
        [t["label"], *(t[key] for key in ("diameter_mm", "dice", "centroid_error_mm", "volume_ratio", "coverage_5mm"))]
        for t in figures["tumours"]
    ]
    tables = [
        markdown_table(["cost", ""], cost),
        markdown_table(["against the known truth", ""], quality),
        markdown_table(
            ["tumour", "diameter, mm", "Dice", "centroid error, mm", "volume ratio", "coverage at 5 mm"], tumours
        ),
    ]
    bars = [
        Bar("peak memory, MB", ours.peak_mb, MEMORY_BAR_MB, at_least=False),
        Bar("transform.h5, MB", transform_mb, TRANSFORM_BAR_MB, at_least=False),
    ]
    data = (
        f"one simulated patient, simulated MR and CT (seed {arguments.seed}, simulator version {VERSION}), {grids}; "
        f"preset {preset}"
    )
    everything = {
        "preset": preset,
        "seconds": ours.seconds,
        "peak_mb": ours.peak_mb,
        "transform_mb": transform_mb,
        "folder_mb": folder_mb,
        "timings_s": timings,
        "accuracy": figures,
    }
    return report(arguments, "Clinical size", data, tables, everything, bars)


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--preset", default="balanced", choices=("fast", "balanced", "thorough"))
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def _simulate(folder: Path, seed: int, factor: int) -> str:
    """Write the case; returns a description of its grids."""
    ct_extent, mr_extent = (
        tuple(n * s for n, s in zip(size, spacing, strict=True))
        for size, spacing in ((CT_SIZE, CT_SPACING_MM), (MR_SIZE, MR_SPACING_MM))
    )
    case = simulate_patient(
        seed,
        ct_spacing_mm=tuple(s * factor for s in CT_SPACING_MM),
        mr_spacing_mm=tuple(s * factor for s in MR_SPACING_MM),
        ct_extent_mm=ct_extent,
        mr_extent_mm=mr_extent,
        **({"anatomy_spacing_mm": 2.5} if factor > 1 else {}),
    )
    write_case(folder, case)
    return "; ".join(
        f"{name} {' x '.join(map(str, grid.size))} at {' x '.join(f'{s:g}' for s in grid.spacing)} mm"
        for name, grid in (("CT", case.ct.grid), ("MR", case.mr.grid))
    )


if __name__ == "__main__":
    run_script(main)
