"""Who is in which part: patients, not images, are dealt out, so that nobody is learnt from and tested on.

A splits file is JSON: {"schema": 1, "cohort", "seed", "folds": [{"train": [case names], "test": [...]}, ...]}: K folds
of a cross-validation, in which each case is tested once, or one fold with a held-out test part. Folds count from 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .check import Entry, duplicates

SCHEMA = 1


@dataclass(frozen=True)
class Fold:
    """Names of case folders."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def groups_of(entries: Sequence[Entry]) -> list[list[str]]:
    """Case names that have to stay together, since one person is in all of them (or one in each two, in a chain).

    Raises InputError where two cases hold one image under different subjects: which of the two names is wrong?
    """
    for name, message in duplicates(list(entries)):
        raise InputError(f"Split: {name}: {message}")
    group: dict[str, set[str]] = {}  # subject -> the subjects it is tied to
    for entry in entries:
        tied = set(entry.subjects).union(*(group.get(subject, set()) for subject in entry.subjects))
        for subject in tied:
            group[subject] = tied
    together: dict[int, list[str]] = {}
    for entry in entries:
        together.setdefault(id(group[entry.subjects[0]]), []).append(entry.name)
    return [sorted(names) for names in sorted(together.values())]


def make_folds(
    entries: Sequence[Entry], *, folds: int | None = None, test: int | None = None, seed: int = 0
) -> list[Fold]:
    """K folds, or one with at least `test` cases held out; groups stay whole. The same seed gives the same parts.

    Groups are shuffled, then each goes to the part with the fewest cases so far, so that parts are about equal.
    Raises InputError: not exactly one of folds and test, or more parts asked for than there are groups.
    """
    if (folds is None) == (test is None):
        raise InputError("Split: give either --folds or --test.")
    groups = groups_of(entries)
    order = np.random.default_rng(seed).permutation(len(groups))
    names = sorted(name for group in groups for name in group)
    if folds is not None:
        if not 2 <= folds <= len(groups):
            raise InputError(f"--folds: {folds}; there are {len(groups)} patients, give a number from 2 to that.")
        parts: list[list[str]] = [[] for _ in range(folds)]
        for k in sorted(order, key=lambda k: -len(groups[k])):  # stable: the larger groups first, else as shuffled
            min(parts, key=len).extend(groups[k])
    else:
        parts = [[]]
        for k in order:
            if len(parts[0]) < int(test):
                parts[0].extend(groups[k])
        if not 1 <= int(test) < len(names) or len(parts[0]) == len(names):
            raise InputError(f"--test: {test}; there are {len(names)} cases, and some must be left to learn from.")
    return [Fold(tuple(n for n in names if n not in part), tuple(sorted(part))) for part in parts]


def write_splits(path: str | Path, folds: Sequence[Fold], cohort: str, seed: int) -> None:
    """Raises InputError where the file exists (a split is made once) or cannot be written."""
    path = Path(path)
    content = {"schema": SCHEMA, "cohort": cohort, "seed": seed,
               "folds": [{"train": list(fold.train), "test": list(fold.test)} for fold in folds]}  # fmt: skip
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    except FileExistsError as error:
        raise InputError(
            f"--out: {path} exists; a split that was used is never changed, choose another name."
        ) from error
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written ({error.strerror}); choose another place.") from error


def read_splits(path: str | Path) -> list[Fold]:
    """Raises InputError: unreadable, not a splits file, a case in two parts of a fold or tested in two folds."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        folds = [Fold(tuple(map(str, f["train"])), tuple(map(str, f["test"]))) for f in content["folds"]]
        if content["schema"] != SCHEMA or not folds:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Splits: {path} is no file of `weaktumour dataset split`; make one with it.") from error
    tested: set[str] = set()
    for number, fold in enumerate(folds):
        both = sorted(set(fold.train) & set(fold.test))
        if both:
            raise InputError(
                f"Splits: {both[0]} is both learnt from and tested in fold {number} of {path}; remove one."
            )
        again = sorted(tested & set(fold.test))
        if again:
            raise InputError(f"Splits: {again[0]} is tested in two folds of {path}; test it once.")
        tested |= set(fold.test)
    return folds


def check_leaks(folds: Sequence[Fold], entries: Sequence[Entry]) -> None:
    """Raise InputError where a fold tests somebody it learns from, or names a case that is not there."""
    known = {entry.name: entry for entry in entries}
    group = {name: number for number, names in enumerate(groups_of(entries)) for name in names}
    for number, fold in enumerate(folds):
        absent = sorted({*fold.train, *fold.test} - set(known))
        if absent:
            raise InputError(f"Splits: the case {absent[0]} is not in the cohort; give the cohort that was split.")
        learnt = {group[name]: name for name in fold.train}
        for name in fold.test:
            if group[name] in learnt:
                raise InputError(
                    f"Splits: fold {number} learns from {learnt[group[name]]} and tests {name}, which show the same "
                    "person; split again with `weaktumour dataset split`."
                )
