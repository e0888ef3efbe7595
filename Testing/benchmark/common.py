"""What the benchmark scripts share: our command line run and measured, transforms applied to labels, tables written.

Every script prints what data it ran on, a markdown table and its verdicts, writes the same as JSON with --out, and ends
with 1 when a figure misses its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "WeakTumourSeg"))

from weaktumour.deformation import DisplacementField  # noqa: E402
from weaktumour.errors import InputError  # noqa: E402
from weaktumour.evaluation.benchmark import carry_labels  # noqa: E402
from weaktumour.evaluation.measure import Measured, json_ready, machine, markdown_table, run_measured  # noqa: E402
from weaktumour.volumes import Grid, Volume, read_volume  # noqa: E402

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "WeakTumourSeg"), os.environ.get("PYTHONPATH", "")])}


# -- arguments and output -----------------------------------------------------------------------------------------
def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--out", type=Path, help="write all figures to this JSON file")
    result.add_argument("--keep", type=Path, metavar="DIR", help="keep cases and results in this folder")
    result.add_argument("--cores", type=int, default=2, help="CPU cores to use (default: 2)")
    result.add_argument("--smoke", action="store_true", help="short and coarse: does the script run? no verdicts")
    return result


def use_cores(cores: int, number: int = 0) -> None:
    """Hold this process and every command it starts to so many cores, where the system allows it. number: of one of
    several that run beside each other; neighbours get cores of their own where there are enough.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[(number * cores + i) % len(allowed)] for i in range(cores)})


@contextmanager
def work_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder of --keep, or one that is gone afterwards."""
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        yield arguments.keep
    else:
        with tempfile.TemporaryDirectory(prefix="weaktumour-benchmark-") as folder:
            yield Path(folder)


def shared_data() -> Path:
    """Folder of the real data sets. Raises InputError where it is absent."""
    folder = Path(os.environ.get("WEAKTUMOUR_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        raise InputError(f"The real data sets are not in {folder}; set WEAKTUMOUR_SHARED to the folder above data/.")
    return folder


@dataclass(frozen=True)
class Bar:
    """One figure with what it has to reach. in_smoke: however coarse the data."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    in_smoke: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def report(
    arguments: argparse.Namespace, title: str, data: str, tables: Sequence[str], figures: dict, bars: Sequence[Bar]
) -> int:
    """Print, write the JSON file; 0 when every bar is met (in a smoke run: those that hold there too), else 1."""
    print(f"\n# {title}\n\nData: {data}\nMachine: {machine()}\n")
    print("\n\n".join(tables))
    bars = [bar for bar in bars if bar.in_smoke or not arguments.smoke]
    for bar in bars:
        wanted = f"{'>=' if bar.at_least else '<='} {bar.bound:.3f}"
        print(f"\n{'met' if bar.met else 'MISSED'}: {bar.name} {bar.value:.3f}, wanted {wanted}")
    if arguments.out:
        verdicts = [{"name": b.name, "value": b.value, "bound": b.bound, "met": b.met} for b in bars]
        content = {"title": title, "data": data, "machine": machine(), "smoke": arguments.smoke}
        arguments.out.write_text(json.dumps(json_ready({**content, **figures, "bars": verdicts}), indent=2) + "\n")
        print(f"\nWritten: {arguments.out}")
    return 0 if all(bar.met for bar in bars) else 1


def page_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--page", type=Path, metavar="FILE.md", help="write the tables as a page as well")
    options.add_argument("--remarks", type=Path, metavar="FILE.md", help="text to be put under the page's tables")


def check_page_options(arguments: argparse.Namespace) -> None:
    """Raises InputError, before hours of computation rather than after them."""
    if arguments.remarks and not arguments.remarks.is_file():
        raise InputError(f"--remarks: {arguments.remarks} is no file; check the path.")


def write_page(
    arguments: argparse.Namespace,
    title: str,
    introduction: Sequence[str],
    bars: Sequence[Bar],
    tables: Sequence[str],
    picture: str = "",
) -> None:
    """The page of --page: what was wanted and found, the tables, a picture (markdown), the remarks."""
    wanted = [[bar.name, bar.value, f"{'>=' if bar.at_least else '<='} {bar.bound:g}", "met" if bar.met else "MISSED"]
              for bar in bars]  # fmt: skip
    remarks = arguments.remarks.read_text(encoding="utf-8").strip() if arguments.remarks else ""
    parts = [f"# {title}", *introduction, markdown_table(["figure", "found", "wanted", ""], wanted) if wanted else "",
             *tables, picture, remarks]  # fmt: skip
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main function; what the user can put right is one line on stderr and exit 2."""
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(InputError.exit_code)


# -- our own method -----------------------------------------------------------------------------------------------
def command_line(command: str, **options: object) -> list[str]:
    """`weaktumour COMMAND --option value ...` as this repository's code runs it; None and False are left out."""
    argv = [sys.executable, "-m", "weaktumour.cli", command]
    for name, value in options.items():
        if value is True:
            argv.append("--" + name.replace("_", "-"))
        elif value is not None and value is not False:
            argv += ["--" + name.replace("_", "-"), str(value)]
    return argv


def run_ours(command: str, **options: object) -> Measured:
    """Run our command line and measure it. Raises RuntimeError with its last lines when it fails."""
    measured = run_measured(command_line(command, **options), environment=ENVIRONMENT)
    if measured.returncode != 0:
        raise RuntimeError(f"weaktumour {command} ended with {measured.returncode}:\n{measured.output[-2000:]}")
    return measured


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


# -- transforms and labels ----------------------------------------------------------------------------------------
def maps_inside(mr: Grid, field: DisplacementField, grid: Grid) -> np.ndarray:
    """(z, y, x) bool: CT voxels whose mapped point lies inside the MR grid."""
    result = np.empty(grid.shape, dtype=bool)
    for z in range(grid.shape[0]):
        row = grid.crop((0, 0, z), (*grid.size[:2], 1))
        result[z] = mr.contains(field.transform_points(row.points()))[0]
    return result


__all__ = [
    "ENVIRONMENT",
    "REPOSITORY",
    "Bar",
    "DisplacementField",
    "Grid",
    "InputError",
    "Measured",
    "Volume",
    "carry_labels",
    "check_page_options",
    "command_line",
    "maps_inside",
    "markdown_table",
    "page_options",
    "parser",
    "read_result",
    "read_volume",
    "report",
    "run_ours",
    "run_script",
    "shared_data",
    "use_cores",
    "work_folder",
    "write_page",
]
