"""`weaktumour dataset check|import|split`: the options, and what is printed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError

EXIT_DONE, EXIT_UNUSABLE = 0, 2


def add_dataset_parser(commands: argparse._SubParsersAction) -> None:
    text = "make cohorts of case folders from public data, check them, split them by patient"
    parser = commands.add_parser("dataset", help=text, description=_sentence(text), allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = {
        name: actions.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        for name, text in {
            "check": "look through each case folder of a cohort; one line for each problem",
            "import": "write a public data set as a cohort of case folders",
            "split": "deal a cohort out into parts, patient by patient",
        }.items()
    }
    parsers["check"].add_argument("cohort", metavar="COHORT", help="folder of case folders")
    parsers["check"].add_argument("--splits", metavar="FILE", help="a splits file to check for leaks, too")
    parsers["import"].add_argument("source", metavar="SOURCE", help="folder of the data set as distributed")
    parsers["import"].add_argument("--format", required=True, choices=("chaos", "learn2reg"), help="its layout")
    parsers["import"].add_argument(
        "--out", required=True, metavar="COHORT", help="folder to write; must be new or empty"
    )
    parsers["import"].add_argument("--sequence", choices=("t1-in", "t1-out", "t2"), default="t1-in", help="which MR of "
                                   "CHAOS (default: t1-in)")  # fmt: skip
    parsers["import"].add_argument("--label-map", metavar="MAP", help='what Learn2Reg\'s label values mean, such as '
                                   '"5=liver,7=tumour"')  # fmt: skip
    parsers["import"].add_argument("--unpaired", action="store_true", help="each image a case of its own; otherwise "
                                   "CHAOS CT and MR, of different people, are paired by their order")  # fmt: skip
    parsers["split"].add_argument("cohort", metavar="COHORT", help="folder of case folders")
    parsers["split"].add_argument("--out", required=True, metavar="FILE", help="JSON file to write; must be new")
    how = parsers["split"].add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="cross-validation: each case is tested in one of K folds, which count from 0",
    )
    how.add_argument("--test", type=int, metavar="N", help="hold out N cases, or as many more as keep patients whole")
    parsers["split"].add_argument("--seed", type=int, default=0, metavar="N", help="the same seed gives the same parts "
                                  "(default: 0)")  # fmt: skip


def run_dataset_command(options: Mapping[str, object]) -> int:
    """Exit code: 2 where `check` finds something unusable. Raises InputError."""
    actions = {"check": _check, "import": _import, "split": _split}
    return actions[str(options["action"])](options)


def _check(options: Mapping[str, object]) -> int:
    from .check import case_folders, check_cohort, entry_of
    from .splits import check_leaks, read_splits

    problems = check_cohort(str(options["cohort"]))
    for problem in problems:
        print(problem, flush=True)
    number = len(case_folders(str(options["cohort"])))
    unusable = {problem.case for problem in problems if problem.unusable}
    print(f"{number} cases, {len(unusable)} of them unusable.")
    if unusable:
        return EXIT_UNUSABLE
    if options.get("splits"):
        folds = read_splits(str(options["splits"]))
        check_leaks(folds, [entry_of(folder) for folder in case_folders(str(options["cohort"]))])
        print(f"{len(folds)} folds: nobody is both learnt from and tested.")
    return EXIT_DONE


def _import(options: Mapping[str, object]) -> int:
    from .importing import import_chaos, import_learn2reg

    common = {"unpaired": bool(options["unpaired"]), "report": lambda text: print(text, flush=True)}
    if options["format"] == "chaos":
        if options.get("label_map"):
            raise InputError("--label-map is for Learn2Reg; the organs of CHAOS are known, leave it out.")
        names = import_chaos(str(options["source"]), str(options["out"]), str(options["sequence"]), **common)
    else:
        label_map = None if options.get("label_map") is None else str(options["label_map"])
        names = import_learn2reg(str(options["source"]), str(options["out"]), label_map, **common)
    print(f"Cohort: {Path(str(options['out'])).resolve()} ({len(names)} cases)")
    if any(_is_mixed(Path(str(options["out"])) / name) for name in names):
        print("Pairs are of different people: labels carried over say nothing about these CTs.", file=sys.stderr)
    return EXIT_DONE


def _is_mixed(folder: Path) -> bool:
    from ..cases import read_case_info

    return read_case_info(folder).get("pairing") == "different_people"


def _split(options: Mapping[str, object]) -> int:
    from .check import case_folders, entry_of
    from .splits import groups_of, make_folds, write_splits

    cohort = Path(str(options["cohort"]))
    entries = [entry_of(folder) for folder in case_folders(cohort)]
    folds, test, seed = (options.get(name) for name in ("folds", "test", "seed"))
    made = make_folds(entries, folds=folds, test=test, seed=int(seed))
    write_splits(str(options["out"]), made, cohort.resolve().name, int(seed))
    for number, fold in enumerate(made):
        print(f"fold {number}: {len(fold.train)} cases to learn from, {len(fold.test)} to test")
    print(f"Split: {options['out']} ({len(entries)} cases of {len(groups_of(entries))} patients)")
    return EXIT_DONE


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
