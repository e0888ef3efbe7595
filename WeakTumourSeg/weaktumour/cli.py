"""The command line: `weaktumour demo | simulate | register | segment | batch | models | dataset | train | evaluate |
benchmark | analyse`.

Work on images is a request to the worker (worker.py), whose events become a progress bar, lines and one error line on
stderr; results go to stdout. The commands on cohorts, networks and figures work in this process; `batch` starts a
worker for each case. Exit 0 done, 2 input error, 3 cancelled, 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from . import __version__
from .batch.command import add_batch_parser, run_batch_command
from .datasets.command import add_dataset_parser, run_dataset_command
from .errors import InputError, WeakTumourError
from .evaluation.command import (
    add_analyse_parser,
    add_benchmark_parser,
    run_analyse_command,
    run_benchmark_command,
)
from .evaluation.evaluate_command import add_evaluate_parser, run_evaluate_command
from .progress import Event
from .training.command import add_parser as add_train_parser
from .training.command import run as run_training
from .worker import EXIT_CANCELLED, EXIT_DONE, EXIT_INPUT, OPERATIONS, Listener, Option, Request, supervise
from .workspace import check_out, remove_tree

_LINE_EVERY_S = 5.0
_RESEARCH_USE = "Research use only; not a medical device."

Runner = Callable[[Request, Listener], int]
# Commands whose options and work are their own room's.
_OF_ROOMS: dict[str, Callable[[Mapping[str, object]], int]] = {
    "batch": run_batch_command,
    "dataset": run_dataset_command,
    "train": run_training,
    "evaluate": run_evaluate_command,
    "benchmark": run_benchmark_command,
    "analyse": run_analyse_command,
}


def main(arguments: Sequence[str] | None = None, run: Runner = supervise) -> int:
    """Run one command and return its exit code.

    run: carries out a request; `worker.run_here` instead works in this process, without Ctrl-C inside long calls.
    """
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        if command == "models":
            return _MODELS_ACTIONS[str(options.pop("action"))](options)
        if command in _OF_ROOMS:
            return _OF_ROOMS[command](options)
        commands = {"demo": _demo, "simulate": _simulate, "register": _register, "segment": _segment}
        return commands[command](options, run)
    except WeakTumourError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("cancelled.")
        return 3


# -- commands ---------------------------------------------------------------------------------------------------
def _register(options: dict[str, object], run: Runner) -> int:
    ending = _run("register", options, run)
    if ending.has_result:
        _print_result(Path(str(options["out"])))
    return ending.code


def _simulate(options: dict[str, object], run: Runner) -> int:
    code = _run("simulate", options, run).code
    if code == EXIT_DONE:
        print(f"Case folder: {options['out']}")
    return code


def _segment(options: dict[str, object], run: Runner) -> int:
    code = _run("segment", options, run).code
    if code == EXIT_DONE:
        print(f"Label map: {options['out']}")
        _print_volumes(Path(str(options["out"])))
        print(_RESEARCH_USE)
    return code


def _demo(options: dict[str, object], run: Runner) -> int:
    out = Path(str(options["out"]))
    case, result = out / "case", out / "result"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a new folder.")
    made_here = not out.exists()
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made ({error.strerror}); choose another folder.") from error
    code, kept = None, False
    try:
        for folder in (case, result):
            check_out(folder, overwrite=True)
        # A former result would not belong to the new patient, should the run be stopped in between.
        remove_tree(result)
        print(f"1 of 3  Simulate a patient (seed {options['seed']}).", flush=True)
        patient = {"seed": options["seed"], "tumours_in_ct": "invisible"}
        code = _run("simulate", {"out": str(case), "overwrite": True, **patient}, run).code
        if code != EXIT_DONE:
            return code
        print("2 of 3  Register the MRI onto the CT and carry the labels over.", flush=True)
        files = {"mr": case / "mr.nii.gz", "ct": case / "ct.nii.gz", "mr_labels": case / "mr_labels.nii.gz"}
        ending = _run("register", {name: str(path) for name, path in files.items()} | {"out": str(result)}, run)
        code, kept = ending.code, ending.has_result
        if not kept:
            remove_tree(case)
            return code
    finally:
        if code != EXIT_DONE and made_here and not kept:
            shutil.rmtree(out, ignore_errors=True)
    _print_result(result)
    print("3 of 3  Compare with the known truth.", flush=True)
    _print_truth(case, result)
    if not options["no_open"] and _has_display():
        import webbrowser

        webbrowser.open((result / "report.html").resolve().as_uri())
    return code


def _models_list(options: Mapping[str, object]) -> int:
    from . import models

    defaults = {models.default_id(task) for task in models.TASKS}
    rows = [
        {
            **entry.to_dict(),
            "origin": entry.origin,
            "default": entry.id in defaults,
            "path": str(entry.path.resolve()),
            "size_bytes": entry.path.stat().st_size if entry.path.is_file() else None,
        }
        for entry in models.list_models()
    ]
    if options["json"]:
        print(json.dumps(rows, indent=2))
    elif rows:
        table = [
            (
                row["id"],
                row["task"],
                "missing" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f} MB",
                row["licence"],
                "default" if row["default"] else "-",
                row["origin"],
            )
            for row in rows
        ]
        _print_table(("model", "task", "size", "licence", "default", "origin"), table)
    else:
        print("There are no models; weaktumour models import FILE adds one.")
    return EXIT_DONE


def _models_verify(options: Mapping[str, object]) -> int:
    from . import models

    named = options["id"]
    code = EXIT_DONE
    entries = models.list_models() if named is None else [models.find_any(str(named))]
    if not entries:
        print("There are no models to check.")
    for entry in entries:
        try:
            models.verify(entry)
        except WeakTumourError as error:
            _complain(str(error))
            code = error.exit_code
        else:
            print(f"{entry.id}: checksum and weights are right.", flush=True)
    if named is None:
        code = max(code, _verify_calibration())
    return code


def _verify_calibration() -> int:
    """Of the uncertainty, which stands beside the shipped weights and holds for them alone."""
    from . import models
    from .uncertainty.calibration import FILE, Calibration

    try:
        calibration = Calibration.read(models.shipped_folder() / FILE)
    except WeakTumourError as error:
        _complain(str(error))
        return error.exit_code
    strange = [task for task, digest in calibration.models.items() if models.shipped_sha256(task) != digest]
    if strange:
        _complain(f"Calibration: {FILE} belongs to another {strange[0]} model; restore the shipped files.")
        return EXIT_INPUT
    print("uncertainty: checksum is right, and it belongs to the shipped networks.", flush=True)
    return EXIT_DONE


def _models_import(options: Mapping[str, object]) -> int:
    from . import models

    named = options["id"]
    entry = models.import_model(str(options["file"]), None if named is None else str(named), bool(options["overwrite"]))
    print(f"Imported {entry.id} ({entry.task}): {entry.path.resolve()}")
    return EXIT_DONE


def _models_remove(options: Mapping[str, object]) -> int:
    from . import models

    entry = models.remove(str(options["id"]))
    print(f"Removed {entry.id}.")
    return EXIT_DONE


_MODELS_ACTIONS = {
    "list": _models_list,
    "verify": _models_verify,
    "import": _models_import,
    "remove": _models_remove,
}


@dataclass(frozen=True)
class _Ending:
    """code: of the worker. has_result: also where what would have been added to it was stopped."""

    code: int
    has_result: bool


def _run(operation: str, options: Mapping[str, object], run: Runner) -> _Ending:
    """Hand a request to the worker and show its events."""
    arguments = {name: value for name, value in options.items() if name != "out"}
    request = Request.parse(
        json.dumps(
            {"schema": 1, "operation": operation, "arguments": arguments, "out": options["out"], "parent_pid": None}
        )
    )
    with _Display() as display:
        code = run(request, display.show)
    if code == EXIT_CANCELLED and not display.result_seen:
        _complain("cancelled; nothing was left behind.")
    elif code != EXIT_DONE and display.result_seen:
        _complain("stopped; the result is kept, the tumours' uncertainty was not assessed.")
    return _Ending(code, code == EXIT_DONE or display.result_seen)


# -- what is printed --------------------------------------------------------------------------------------------
def _print_result(folder: Path) -> None:
    """The result folder, one line a tumour, the verdict on the run."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rows = [
        (
            tumour.get("name") or f"label {tumour.get('label')}",
            _number(tumour.get("volume_mm3"), 1e-3, 1),
            _number(tumour.get("diameter_mm"), 1, 1),
            _number(tumour.get("volume_ratio"), 1, 2),
            _number(tumour.get("p95_mm"), 1, 1),
            str(tumour.get("verdict") or "-").replace("_", " "),
        )
        for tumour in result.get("tumours") or []
    ]
    notes = [*(result.get("warnings") or []), *_why_not(result.get("tumours") or [])]
    print(f"\nResult: {folder.resolve()}")
    if rows:
        _print_table(("tumour", "volume ml", "diameter mm", "volume ratio to MRI", "p95 mm", "verdict"), rows)
    else:
        print("The MR labels hold no tumour.")
    run = result.get("run") or {}
    reasons = "".join(f"\n  - {reason}" for reason in run.get("reasons") or [])
    for note in notes:
        print(f"Note: {note}")
    print(f"Run: {str(run.get('verdict') or '-').replace('_', ' ')}{reasons}")
    print(f"Report: {(folder / 'report.html').resolve()}")
    print(_RESEARCH_USE, flush=True)


def _print_volumes(path: Path) -> None:
    """Of a label map that the network drew."""
    from .labels import LIVER, TUMOUR, read_labels

    labels = read_labels(path, "label map")
    ml = labels.volume.grid.voxel_volume_mm3 / 1e3
    print(f"Whole liver: {labels.mask(LIVER, TUMOUR).sum() * ml:.0f} ml")
    for tumour in labels.tumours:
        print(f"{tumour.name}: {(labels.volume.array == tumour.value).sum() * ml:.1f} ml")


def _why_not(tumours: list[dict]) -> list[str]:
    """Of each tumour that is not localised, why; p95 alone does not tell."""
    shown = [tumour for tumour in tumours if tumour.get("verdict") not in ("localised", "not_assessed")]
    return [f"{tumour.get('name')}: {tumour['verdict_reason']}" for tumour in shown if tumour.get("verdict_reason")]


def _print_truth(case_folder: Path, result_folder: Path) -> None:
    """What the simulated patient allows: the result against the known truth, which the report then shows too."""
    from .evaluation.against_truth import add_truth
    from .labels import read_label_names

    figures, names = add_truth(result_folder, case_folder), read_label_names(case_folder / "labels.json")
    print(f"\nLiver Dice: {figures['liver']['dice']:.3f}")
    rows = [
        (
            names.get(tumour["label"], f"label {tumour['label']}"),
            _number(tumour["diameter_mm"], 1, 1),
            _number(tumour["centroid_error_mm"], 1, 2),
            _number(tumour["volume_ratio"], 1, 2),
            _number(tumour["dice"], 1, 2),
        )
        for tumour in figures["tumours"]
    ]
    _print_table(("tumour", "true diameter mm", "centroid error mm", "volume ratio to truth", "Dice"), rows)
    if figures.get("points"):
        print(f"Points in the body: error {figures['points']['mean_mm']:.2f} mm on average.")


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "   ".join(cells).rstrip())


def _number(value: object, factor: float, digits: int) -> str:
    return "-" if not isinstance(value, int | float) else f"{value * factor:.{digits}f}"


def _complain(message: str) -> None:
    print(f"weaktumour: {message}", file=sys.stderr, flush=True)


def _has_display() -> bool:
    """A terminal that belongs to somebody with a screen."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Display:
    """Shows events: a bar on a terminal, elsewhere a line at each new stage and every few seconds."""

    def __init__(self) -> None:
        self.result_seen = False
        self._bar = None
        self._stage: object = None
        self._last_line = -_LINE_EVERY_S

    def __enter__(self) -> _Display:
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            layout = "{desc:<22.22}|{bar}| {percentage:3.0f}%{postfix}"
            # tqdm by itself shows nothing on a terminal that does not know its size.
            size = {"ncols": min(100, shutil.get_terminal_size().columns - 1), "nrows": 24}
            self._bar = tqdm(total=1.0, leave=False, bar_format=layout, file=sys.stderr, **size)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "progress":
            self._progress(event)
        elif kind == "log":
            self._line(str(event.get("message", "")))
        elif kind == "result":
            self.result_seen = True
        elif kind == "error":
            self._line(f"weaktumour: {event.get('message', '')}")

    def _progress(self, event: Event) -> None:
        stage, fraction, remaining = event.get("stage"), event.get("fraction"), event.get("remaining_s")
        left = f"about {_duration(float(remaining))} left" if isinstance(remaining, int | float) else ""
        done = float(fraction) if isinstance(fraction, int | float) else 0.0
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_description_str(str(stage or ""), refresh=False)
            self._bar.set_postfix_str(left)
            return
        now = time.monotonic()
        # The stages of a short run follow each other fast: no more than one line a second.
        if now - self._last_line >= (_LINE_EVERY_S if stage == self._stage else 1.0):
            self._stage, self._last_line = stage, now
            self._line(f"{100 * done:3.0f} %  {stage or ''}" + (f", {left}" if left else ""))

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{round(seconds / 60)} min"


# -- options ----------------------------------------------------------------------------------------------------
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"weaktumour: {message}; see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="weaktumour", description="Carries liver and tumour labels from an MRI onto a CT. " + _RESEARCH_USE
    )
    parser.add_argument("--version", action="version", version=f"weaktumour {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    text = "simulate a patient, register, carry the labels over, compare with the truth"
    demo = commands.add_parser("demo", help=text, description=_sentence(text), allow_abbrev=False)
    demo.add_argument("--out", default="demo", metavar="DIR", help="folder for the case and the result (default: demo)")
    demo.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="which patient to simulate (default: 0)")

    for name in ("simulate", "register", "segment"):
        operation = OPERATIONS[name]
        command = commands.add_parser(
            name, help=operation.help, description=_sentence(operation.help), allow_abbrev=False
        )
        if operation.writes_file:
            command.add_argument(
                "--out", required=True, metavar="LABELS", help="label map to write (.nii.gz, .nrrd, ...)"
            )
        else:
            command.add_argument("--out", required=True, metavar="DIR", help="folder to write; must be new or empty")
        for option in operation.options:
            _add_option(command, option)
    add_batch_parser(commands)
    _add_models(commands)
    add_dataset_parser(commands)
    add_train_parser(commands)
    add_evaluate_parser(commands)
    add_benchmark_parser(commands)
    add_analyse_parser(commands)
    return parser


def _add_models(commands: argparse._SubParsersAction) -> None:
    text = "list, check, import and remove the networks' weights"
    actions = commands.add_parser("models", help=text, description=_sentence(text), allow_abbrev=False)
    actions = actions.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = {
        name: actions.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        for name, text in {
            "list": "show the models there are, shipped and imported",
            "verify": "check the checksum of each model (or of one), and that its weights load",
            "import": "copy a weights file to your own models",
            "remove": "delete a model that you imported",
        }.items()
    }
    parsers["list"].add_argument("--json", action="store_true", help="everything that is known of them, as JSON")
    parsers["verify"].add_argument("id", nargs="?", metavar="ID", help="the model to check (default: all)")
    parsers["import"].add_argument(
        "file", metavar="FILE", help="a weights file of this program, or a published MSCGUNet checkpoint"
    )
    parsers["import"].add_argument("--id", metavar="ID", help="what to call it (default: the file's name)")
    parsers["import"].add_argument("--overwrite", action="store_true", help="replace an imported model of that id")
    parsers["remove"].add_argument("id", metavar="ID", help="the model to delete")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    flag = "--" + option.name.replace("_", "-")
    if option.positional:
        parser.add_argument(option.name, metavar=option.metavar, help=option.help)
        return
    if option.type is bool:
        parser.add_argument(flag, action="store_true", help=option.help)
        return
    default = "" if option.default is None else f" (default: {option.default})"
    parser.add_argument(
        flag,
        type=option.type,
        required=option.required,
        choices=option.choices or None,
        metavar=option.metavar if not option.choices else None,
        help=(option.help + default).replace("%", "%%"),
    )


if __name__ == "__main__":
    sys.exit(main())
