"""Which cases a batch has: the lines of a CSV file, or the case folders of a cohort."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

PATHS = ("mr", "ct", "mr_labels", "ct_liver", "initial_transform")
COLUMNS = ("id", *PATHS, "mr_label_map")
_NEEDED = ("id", "mr", "ct")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BatchCase:
    """id: name of the result's folder. inputs: what `register` is given of COLUMNS, paths absolute.

    error: why it cannot be used at all, to be told when its turn comes.
    """

    id: str
    inputs: dict[str, str]
    error: str | None = None


def read_cases(path: str | Path) -> list[BatchCase]:
    """Raises InputError: neither a table nor a cohort, an unknown column, an id that is missing, unfit or there twice.

    Whether a case's files exist and are any good is found out when its turn comes: one bad case stops no others.
    """
    path = Path(path)
    cases = _of_cohort(path) if path.is_dir() else _of_table(path)
    seen: set[str] = set()
    for case in cases:
        if not _ID.fullmatch(case.id):
            raise InputError(
                f'Cases: the id "{case.id}" cannot be a folder\'s name; '
                "use letters, digits, dots, dashes and underscores."
            )
        if case.id in seen:
            raise InputError(f"Cases: the id {case.id} is there twice in {path}; give each case its own.")
        seen.add(case.id)
    if not cases:
        raise InputError(
            f"Cases: {path} holds no case; give a table with a line for each, or a folder of case folders."
        )
    return cases


def tested_cases(cases: Sequence[BatchCase], path: str | Path, splits: str, fold: int | None) -> list[BatchCase]:
    """Those that a fold tests, or any fold does. path: where they are from.

    Raises InputError: the splits, or the fold, are none; a case is not there. CTs and MRIs alone are passed over.
    """
    from ..datasets.splits import read_splits

    folds = read_splits(splits)
    if fold is not None and not 0 <= fold < len(folds):
        raise InputError(f"--fold: {fold}; --splits has the folds 0 to {len(folds) - 1}.")
    wanted = {name for number, parts in enumerate(folds) if fold in (None, number) for name in parts.test}
    absent = wanted - {case.id for case in cases}
    absent = sorted(name for name in absent if not (Path(path) / name / "case.json").is_file())
    if absent:
        raise InputError(f"Splits: the case {absent[0]} is not in {path}; give the cohort that was split.")
    found = [case for case in cases if case.id in wanted]
    if not found:
        raise InputError(f"Splits: {splits} tests no pair of MRI and CT in {path}; choose other folds.")
    return found


def _of_table(path: Path) -> list[BatchCase]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="too many cells")
            lines, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cases: {path} cannot be read as a CSV table ({error}); check the file.") from error
    unknown = [name for name in columns if name not in COLUMNS]
    missing = [name for name in _NEEDED if name not in columns]
    if unknown or missing:
        what = f"has an unknown column {unknown[0]!r}" if unknown else f"has no column {missing[0]!r}"
        raise InputError(
            f"Cases: {path} {what}; the columns are {', '.join(COLUMNS)}, of which id, mr and ct are needed."
        )
    cases = []
    for number, line in enumerate(lines, start=2):
        if any(line.get(name) in (None, "") for name in _NEEDED) or "too many cells" in line:
            raise InputError(
                f"Cases: line {number} of {path} lacks a cell or has one too many; id, mr and ct are needed."
            )
        inputs = {name: str(line[name]) for name in COLUMNS[1:] if line.get(name)}
        base = path.resolve().parent
        cases.append(BatchCase(line["id"], {n: str(base / v) if n in PATHS else v for n, v in inputs.items()}))
    return cases


def _of_cohort(cohort: Path) -> list[BatchCase]:
    """mr, ct and mr_labels of each pair; ct_labels are for judging the results and are not given to the runs."""
    from ..cases import read_case_info  # imports numpy, and the command line starts without

    cases = []
    for folder in sorted(cohort.iterdir()):
        if not (folder / "case.json").is_file():
            continue
        try:
            info, problem = read_case_info(folder), None
        except InputError as error:
            info, problem = {}, str(error)
        if info.get("pairing") == "single":
            continue
        files = {name: folder.resolve() / f"{name}.nii.gz" for name in ("mr", "ct", "mr_labels")}
        cases.append(BatchCase(folder.name, {name: str(file) for name, file in files.items()}, problem))
    return cases
