"""The cases of a weak run: who is learnt from, who is held out, whose labels a clinician corrected."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cases import Case, read_case, read_case_info, subjects_of
from ..errors import InputError
from ..labels import LabelMap, name_labels

CORRECTED = "corrected"


@dataclass(frozen=True)
class Member:
    """One case folder. corrected: its CT labels were corrected by a person and are learnt from.

    held_out: nothing of it is learnt from; its CT labels, where known, only measure. mixed: MRI and CT are of different
    people.
    """

    name: str
    folder: Path
    corrected: bool
    held_out: bool = False
    mixed: bool = False

    def read(self) -> Case:
        """Raises InputError that names the case."""
        try:
            case = read_case(self.folder)
            if not (case.mr_labels.array == 1).any():
                raise InputError("MRI labels: no voxel is 1; label the liver 1 and its tumours from 2 on.")
            if not case.mr_labels.grid.same_as(case.mr.grid, tolerance_mm=1e-2):
                raise InputError("MRI labels: they are not on the MRI's grid; resample them to it.")
            if case.ct_labels is not None and not case.ct_labels.grid.same_as(case.ct.grid, tolerance_mm=1e-2):
                raise InputError("CT labels: they are not on the CT's grid; resample them to it.")
        except InputError as error:
            raise InputError(f"Cohort: case {self.name}: {error}") from error
        return case


def labels_of(case: Case, volume_name: str = "mr_labels") -> LabelMap:
    """A case's label map with the meaning of its values."""
    volume = getattr(case, volume_name)
    values = [int(value) for value in np.unique(volume.array) if value]
    return LabelMap(volume, name_labels(values, None, case.label_names))


def case_paths(folder: str | Path) -> list[Path]:
    """The case folders of a cohort, by name. Raises InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--cohort: {folder} is no folder; give a folder of case folders.")
    paths = [path for path in sorted(folder.iterdir()) if (path / "case.json").is_file()]
    if not paths:
        raise InputError(f"--cohort: {folder} holds no case folder (case.json, mr, ct, mr_labels); check the path.")
    return paths


def single_images(folder: str | Path) -> list[str]:
    """The cases of a cohort that hold one image alone, by name; `read_cohort` leaves them out. Raises InputError."""
    return [path.name for path in case_paths(folder) if _is_single(read_case_info(path))]


def _is_single(info: dict[str, Any]) -> bool:
    return info.get("pairing") == "single"


def read_cohort(folder: str | Path, splits: str | Path | None = None, fold: int | None = None) -> list[Member]:
    """The members of a cohort, by name. splits, fold: hold out what the fold number `fold` (from 0) tests on.

    splits: {"folds": [{"train": [names], "test": [names]}, ...]} with the names of case folders, or their ids.
    Raises InputError: no case with both images, two cases of one id, a corrected case without CT labels, a split that
    does not fit or that learns from somebody whom it tests.
    """
    paths = case_paths(folder)
    if (splits is None) != (fold is None):
        raise InputError("--splits and --fold belong together; give both or neither.")
    ids: dict[str, str] = {}
    subjects: dict[str, tuple[str, ...]] = {}
    members = []
    for path in paths:
        info = read_case_info(path)
        known = str(info.get("id"))
        if known in ids:
            raise InputError(
                f"--cohort: {ids[known]} and {path.name} are the same case ({known}); take one of them out."
            )
        ids[known] = path.name
        subjects[path.name] = subjects_of(info)
        if _is_single(info):
            continue
        corrected = info.get("ct_labels") == CORRECTED
        if corrected and not (path / "ct_labels.nii.gz").is_file():
            raise InputError(f"Cohort: case {path.name}: its corrected ct_labels.nii.gz is missing; restore the file.")
        members.append(Member(path.name, path, corrected, mixed=info.get("pairing") == "different_people"))
    if not members:
        raise InputError(f"--cohort: {folder} holds no case with an MRI and a CT, only single images; give such cases.")
    if splits is None:
        return members
    learnt, held_out = read_fold(splits, int(fold), ids)
    of_subject = {subject: name for name in sorted(learnt) for subject in subjects[name]}
    for name in sorted(held_out):
        known = [subject for subject in subjects[name] if subject in of_subject]
        if known:
            raise InputError(
                f"Splits: fold {fold} of {splits} learns from {of_subject[known[0]]} and tests {name}, which show the "
                f"same person ({known[0]}); split again with `weaktumour dataset split`."
            )
    used = [
        replace(member, corrected=member.corrected and member.name in learnt, held_out=member.name in held_out)
        for member in members
        if member.name in learnt | held_out
    ]
    if all(member.held_out for member in used):
        raise InputError(f"Splits: fold {fold} of {splits} leaves no case with an MRI and a CT to learn from.")
    return used


def read_fold(path: str | Path, fold: int, ids: dict[str, str]) -> tuple[set[str], set[str]]:
    """Names of the cases to learn from and of those held out. ids: id -> name. Raises InputError."""
    try:
        folds = json.loads(Path(path).read_text(encoding="utf-8"))["folds"]
        count = len(folds)
        parts = [[str(name) for name in folds[fold][part]] for part in ("train", "test")] if fold < count else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'Splits: {path} has no "folds" of train and test cases; restore the file.') from error
    if parts is None:
        raise InputError(f"--fold: {fold}; {path} has the folds 0 to {count - 1}.")
    names = set(ids.values())
    found = []
    for part in parts:
        unknown = [name for name in part if name not in names and name not in ids]
        if unknown:
            raise InputError(f"Splits: {path} names {unknown[0]}, which is not in the cohort; give the cohort's own.")
        found.append({ids.get(name, name) for name in part})
    both = found[0] & found[1]
    if both:
        raise InputError(f"Splits: {path} has {sorted(both)[0]} in train and in test of fold {fold}; correct it.")
    if not found[0]:
        raise InputError(f"Splits: fold {fold} of {path} leaves no case to learn from; correct it.")
    return found[0], found[1]
