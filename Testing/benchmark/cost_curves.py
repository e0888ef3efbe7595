"""What registration costs as the CT grows and as tumours become more, one process at a time.

The registration alone, preset `balanced`, without the uncertainty; one simulated patient for each point. `cost.py` has
the comparison with ConvexAdam.

    python Testing/benchmark/cost_curves.py [--plot FILE.png] [--out FILE.json]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common import markdown_table, parser, report, run_ours, run_script, use_cores, work_folder
from weaktumour.cases import write_case
from weaktumour.simulation import VERSION, simulate_patient

CT_EXTENT_MM, MR_EXTENT_MM = (409.6, 409.6, 400.0), (384.0, 384.0, 240.0)
SMOKE_MM = (6.0, 6.0, 6.0)
CT_SPACINGS_MM = ((2.4, 2.4, 3.0), (1.6, 1.6, 2.0), (1.1, 1.1, 1.4), (0.8, 0.8, 1.0))
MR_SPACING_MM = (1.2, 1.2, 3.0)
TUMOURS = (1, 2, 4, 8)
SMALL_MM = CT_SPACINGS_MM[1]  # the CT in which tumours are counted


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    by_size = [(spacing, 2) for spacing in ((SMOKE_MM,) if arguments.smoke else CT_SPACINGS_MM)]
    by_tumours = [] if arguments.smoke else [(SMALL_MM, number) for number in TUMOURS]
    points = {}
    with work_folder(arguments) as work:
        for spacing, number in dict.fromkeys(by_size + by_tumours):
            points[spacing, number] = _cost(work / f"{spacing[0]:g}-{number}", spacing, number, arguments)
            print(f"{len(points)}: CT at {spacing[0]:g} mm, {number} tumours", flush=True)
    tables = [_table([points[entry] for entry in entries]) for entries in (by_size, by_tumours) if entries]
    if arguments.plot:
        _plot([points[entry] for entry in by_size], [points[entry] for entry in by_tumours], arguments.plot)
    data = (
        f"{len(points)} simulated patients, simulated MR and CT (seed {arguments.seed}, simulator version {VERSION}), "
        f"CT {' x '.join(f'{mm:g}' for mm in CT_EXTENT_MM)} mm, MR voxels {' x '.join(map(str, MR_SPACING_MM))} mm"
    )
    return report(arguments, "Cost against size and tumours", data, tables, {"points": list(points.values())}, [])


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="draw both curves")
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def _cost(folder: Path, spacing_mm: tuple[float, float, float], tumours: int, arguments) -> dict:
    coarse = {"anatomy_spacing_mm": 2.5} if arguments.smoke else {}
    case = simulate_patient(
        arguments.seed,
        ct_spacing_mm=spacing_mm,
        mr_spacing_mm=SMOKE_MM if arguments.smoke else MR_SPACING_MM,
        ct_extent_mm=CT_EXTENT_MM,
        mr_extent_mm=MR_EXTENT_MM,
        tumour_count=tumours,
        **coarse,
    )
    write_case(folder / "case", case)
    files = {name: folder / "case" / f"{name}.nii.gz" for name in ("mr", "ct", "mr_labels")}
    preset = "fast" if arguments.smoke else "balanced"
    ours = run_ours(
        "register", **files, out=folder / "ours", preset=preset, device="cpu", uncertainty="off", overwrite=True
    )
    found = int(case.mr_labels.array.max()) - 1
    return {
        "ct_voxels": int(np.prod(case.ct.grid.size)),
        "tumours": found,
        "seconds": ours.seconds,
        "peak_mb": ours.peak_mb,
    }


def _table(points: list[dict]) -> str:
    header = ["CT, million voxels", "tumours", "wall time, s", "peak memory, MB"]
    return markdown_table(header, [[1e-6 * p["ct_voxels"], p["tumours"], p["seconds"], p["peak_mb"]] for p in points])


def _plot(by_size: list[dict], by_tumours: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, points, name, scale, label in (
        (axes[0], by_size, "ct_voxels", 1e-6, "CT size, million voxels"),
        (axes[1], by_tumours, "tumours", 1, "number of tumours"),
    ):
        axis.plot([scale * p[name] for p in points], [p["seconds"] for p in points], "o-")
        axis.set_xlabel(label)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("wall time of the process, s")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
