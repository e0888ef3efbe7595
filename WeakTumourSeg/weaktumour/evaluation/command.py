"""`weaktumour benchmark` and `weaktumour analyse`: the options, and what is written at the end."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError

EXIT_DONE, EXIT_FAILED = 0, 1
_DEFAULT_METHODS = "ours,affine,convexadam,syn,elastix"


def add_benchmark_parser(commands: argparse._SubParsersAction) -> None:
    text = "compare registration methods on simulated patients or on your own cases"
    parser = commands.add_parser(
        "benchmark", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for cases, rows, table and plots; "
                        "the same command goes on with it")  # fmt: skip
    parser.add_argument("--cases", type=int, metavar="N", help="so many patients (default: 8 phantoms, or all)")
    parser.add_argument("--methods", default=_DEFAULT_METHODS, metavar="LIST", help="comma-separated; also ours-fast, "
                        f"ours-thorough (default: {_DEFAULT_METHODS})")  # fmt: skip
    parser.add_argument("--data", metavar="FOLDER", help="your own cohort: a folder of case folders")
    parser.add_argument("--splits", metavar="FILE", help="patients that this splits.json names, see --split")
    parser.add_argument("--split", choices=("test", "development"), default="test", help="which of its parts "
                        "(default: test)")  # fmt: skip
    parser.add_argument("--shared-data", metavar="FOLDER", help="holds the label maps and CTs that the splits name")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="tasks at a time; timings want 1 "
                        "(default: 1)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="of each task (default: all, or 1 of several tasks)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help='a Dask scheduler, or "local"')
    parser.add_argument("--page", metavar="FILE", help="write the page and its plots here too")
    parser.add_argument("--remarks", metavar="FILE.md", help="a text that goes to the end of the page")


def run_benchmark_command(options: dict[str, object]) -> int:
    """Exit code: 1 when a task failed. Raises InputError."""
    from .benchmark import Plan, run_benchmark
    from .cohort import of_folder, of_splits, phantoms
    from .methods import check_installed

    if options.get("data") and options.get("splits"):
        raise InputError("--data and --splits exclude each other; give one of them.")
    number = options.get("cases")
    if options.get("data"):
        patients = of_folder(str(options["data"]))
    elif options.get("splits"):
        patients = of_splits(str(options["splits"]), str(options["split"]), options.get("shared_data"))
    else:
        patients = phantoms(8 if number is None else int(number))
    if number is not None:
        if int(number) < 1:
            raise InputError(f"--cases: {number}; give 1 or more.")
        patients = patients[: int(number)]
    threads, processes = options.get("threads"), int(options["processes"])
    if threads is None and (processes > 1 or options.get("scheduler")):
        threads = 1
    remarks = _remarks(options.get("remarks"))
    out = Path(str(options["out"])).resolve()
    methods = tuple(name.strip() for name in str(options["methods"]).split(",") if name.strip())
    plan = Plan(tuple(patients), methods, out, processes, threads, options.get("scheduler"))
    check_installed(methods)
    rows = run_benchmark(plan, lambda text: print(text, flush=True))
    shown = [row for row in rows if row["method"] in methods]
    shown.sort(key=lambda row: methods.index(row["method"]))
    failed = sum(bool(row.get("error")) for row in shown)
    if failed < len(shown):
        _write(shown, plan, options, remarks)
    if failed:
        print(f"{failed} of {len(shown)} tasks failed; the same command tries them again.")
    return EXIT_FAILED if failed else EXIT_DONE


def _remarks(path: object) -> str:
    """Read before the hours that the benchmark takes."""
    if not path:
        return ""
    try:
        return Path(str(path)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--remarks: {path} cannot be read as text; give a Markdown file.") from error


def _write(rows: list[dict], plan, options: dict[str, object], remarks: str) -> None:
    from .tables import by_method, page, plots, summary

    kept = {method: summary(found) for method, found in by_method(rows).items()}
    (plan.out / "benchmark.json").write_text(_json({"summary": kept, "rows": rows}), encoding="utf-8")
    targets = [plan.out / "benchmark.md"] + ([Path(str(options["page"]))] if options.get("page") else [])
    for target in targets:
        pictures = plots(rows, target.parent, target.stem) if kept else []
        text = page(rows, title="Benchmark", notes=_notes(rows, plan, options), pictures=pictures,
                    goals=bool(options.get("splits")), remarks=remarks)  # fmt: skip
        target.write_text(text, encoding="utf-8")
    print((plan.out / "benchmark.md").read_text(encoding="utf-8").split("## By tumour")[0])
    print(f"Written: {', '.join(str(target) for target in targets)}")


def _notes(rows: list[dict], plan, options: dict[str, object]) -> list[str]:
    from ..simulation import VERSION
    from .methods import PEER_SETTINGS

    kinds = {
        "phantom": "phantoms (simulated MR and CT)",
        "label_map": "with the liver of a label map (simulated MR and CT)",
        "real_ct": "real CT with a simulated MR",
        "case": "cases of a cohort",
    }
    counted = [f"{number} {text}" for kind, text in kinds.items()
               if (number := sum(p.kind == kind for p in plan.patients))]  # fmt: skip
    anatomies = len({p.source or p.name for p in plan.patients})
    machines = sorted({row["machine"] for row in rows if "machine" in row})
    versions = sorted({f"{row['method']} {row['version']}" for row in rows if "version" in row})
    part = f" ({options['split']} part of {Path(str(options['splits'])).name})" if options.get("splits") else ""
    notes = [
        f"Patients: {len(plan.patients)}, anatomies: {anatomies}{part}: {'; '.join(counted)}. "
        f"Simulator version {VERSION}. Machine: {'; '.join(machines)}. Versions: {', '.join(versions)}.",
        "Every method's transform carries the MR labels in the same way. Seconds and memory are of the whole process; "
        "a peer's affine start (our livers and alignment, without the rest of that process) is counted in the line "
        "that says so and in the plots. The label maps of `ours` are those of the MRI alone; the CT's liver is found "
        "by the UNet.",
    ]
    settings = {
        row["method"]: row["settings"] for row in rows if row.get("settings") and row["method"] in PEER_SETTINGS
    }
    if settings:
        told = "; ".join(
            f"{method}: {found['spacing_mm']:g} mm working grid, "
            + ("from our affine alignment" if found["affine_start"] else "no start")
            + "".join(f", {name} {value}" for name, value in found["options"].items())
            for method, found in settings.items()
        )
        notes.append(
            "Peers' settings, chosen on development patients (`Testing/benchmark/tune_peers.py`): "
            f"{told}; otherwise the packages' defaults, and for elastix those in `weaktumour/evaluation/peers.py`."
        )
    if any(not row.get("alone", True) for row in rows):
        notes.append(
            "**Several tasks ran beside each other, on one thread each: the seconds say little** "
            "(`Testing/benchmark/cost.py` measures them)."
        )
    if any(p.kind != "case" for p in plan.patients):
        notes.append(
            "What the simulation lacks: sliding of organs on each other, stiff ribs (they follow the random "
            "deformation and a fifth of the breathing), contrast agents' inhomogeneous uptake, ghosts of breathing, "
            "susceptibility and chemical-shift displacement, tumours that deform their surroundings or change between "
            "the scans, cirrhotic texture, and the variety of real scanners. Figures from simulated MR do not carry "
            "over to patients."
        )
    return notes


def _json(content: object) -> str:
    from .measure import json_ready

    return json.dumps(json_ready(content), indent=1) + "\n"


def add_analyse_parser(commands: argparse._SubParsersAction) -> None:
    text = "what the CT shows and what it does not: Dice and error of results by visibility"
    parser = commands.add_parser("analyse", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("results", metavar="RESULT", help="a result folder, or a folder of them")
    parser.add_argument("--data", metavar="COHORT", help="case folders with the truth, named as the results are; of "
                        "one result its case folder will do")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="for analysis.md, .json and .png (default: RESULT)")


def run_analyse_command(options: dict[str, object]) -> int:
    """Raises InputError."""
    from .analysis import MD, write_analysis

    root = Path(str(options["results"]))
    out = Path(str(options.get("out") or root))
    print(write_analysis(root, Path(str(options["data"])) if options.get("data") else None, out))
    if options.get("data") and find_spec("matplotlib") is None:
        print("No plot: matplotlib is not installed (pip install matplotlib).")
    print(f"Written: {out / MD}")
    return EXIT_DONE
