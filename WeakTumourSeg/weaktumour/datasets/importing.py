"""Public data sets as cohorts of case folders, which appear whole or not at all.

Pairs of different people are what the published recipe trained on, so they can be had, but never unnamed: such a case
says `different_people` and lists both subjects. What finds no partner, or everything with `unpaired`, becomes a case of
one image. Ids are the data set's own numbers, which are pseudonyms;
nothing of a DICOM header but the geometry is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ..cases import Case, write_case, write_single
from ..errors import InputError
from ..volumes import Volume, write_volume
from ..workspace import open_workspace
from . import chaos, learn2reg

FORMATS = ("chaos", "learn2reg")


def import_chaos(
    source: str | Path,
    out: str | Path,
    sequence: str = "t1-in",
    unpaired: bool = False,
    report: Callable[[str], None] = print,
) -> list[str]:
    """A cohort from the CHAOS layout (see chaos.py): CT and MR paired by their order, of different people.

    The MR's other organs go into mr_organs.nii.gz (values in organs.json): case labels know liver and tumours alone.
    Returns the case folders' names. Raises InputError.
    """
    cts, mrs = chaos.subjects_in(source)
    pairs = list(zip_longest(mrs, cts)) if not unpaired else [(mr, None) for mr in mrs] + [(None, ct) for ct in cts]
    names = []
    with open_workspace(out) as folder:
        for mr, ct in pairs:
            names.append("_".join(subject.name for subject in (mr, ct) if subject is not None))
            _write_chaos(folder / names[-1], mr, ct, sequence)
            report(f"{len(names)} of {len(pairs)}  {names[-1]}")
    return names


def _write_chaos(folder: Path, mr: chaos.Subject | None, ct: chaos.Subject | None, sequence: str) -> None:
    source = "CHAOS challenge (Zenodo 3431873, CC BY-SA 4.0)" + (f", MR {sequence}" if mr is not None else "")
    info: dict[str, object] = {"id": folder.name, "kind": "clinical", "source": source}
    mr_image, organs = chaos.read_mr(mr, sequence) if mr is not None else (None, None)
    ct_image, ct_liver = chaos.read_ct(ct) if ct is not None else (None, None)
    mr_liver = Volume((organs.array == 1).astype(np.uint8), organs.grid) if organs is not None else None
    _write(folder, (mr_image, mr_liver), (ct_image, ct_liver), info, [s.name for s in (mr, ct) if s is not None])
    if organs is not None:
        write_volume(organs, folder / "mr_organs.nii.gz")
        (folder / "organs.json").write_text(json.dumps(chaos.ORGANS, indent=2) + "\n", encoding="utf-8")


def import_learn2reg(
    source: str | Path,
    out: str | Path,
    label_map: str | None = None,
    unpaired: bool = False,
    report: Callable[[str], None] = print,
) -> list[str]:
    """A cohort from a Learn2Reg data set (see learn2reg.py). Returns the case folders' names. Raises InputError."""
    dataset = learn2reg.read_dataset(source, label_map)
    entries: list[tuple[learn2reg.Image | None, learn2reg.Image | None]] = []
    entries += [(None, i) if i.modality == "ct" else (i, None) for i in dataset.images]
    if unpaired:
        entries += [entry for mr, ct in dataset.pairs for entry in ((mr, None), (None, ct))]
        entries = [entry for entry in dict.fromkeys(entries) if (entry[0] or entry[1]).labels is not None]
    else:
        entries = [*dataset.pairs, *entries]
    names = []
    with open_workspace(out) as folder:
        for mr, ct in entries:
            present = [image for image in (mr, ct) if image is not None]
            subjects = list(dict.fromkeys(image.subject for image in present))
            name = "_".join(subjects) if len(present) == 2 else f"{subjects[0]}-{present[0].modality}"
            read = [learn2reg.read_image(i, dataset.roles[i.modality]) if i else (None, None) for i in (mr, ct)]
            info: dict[str, object] = {"id": name, "kind": "clinical", "source": f"Learn2Reg {dataset.name}"}
            _write(folder / name, read[0], read[1], info, subjects)
            names.append(name)
            report(f"{len(names)} of {len(entries)}  {name}")
    return names


def _write(
    folder: Path,
    mr: tuple[Volume | None, Volume | None],
    ct: tuple[Volume | None, Volume | None],
    info: dict[str, object],
    subjects: list[str],
) -> None:
    """One case folder from (image, labels) of either modality; (None, None) for one that is not there."""
    if folder.exists():
        raise InputError(f"Import: the case {folder.name} would be written twice; rename one of its images.")
    values = {int(v) for labels in (mr[1], ct[1]) if labels is not None for v in np.unique(labels.array) if v}
    names = {value: "Liver" if value == 1 else f"Tumour {value - 1}" for value in sorted(values)}
    info = {**info, "subjects": subjects, "ct_labels": "truth" if ct[1] is not None else None}
    if mr[0] is not None and ct[0] is not None:
        pairing = "same_patient" if len(subjects) == 1 else "different_people"
        write_case(folder, Case(mr[0], ct[0], mr[1], names, ct[1], info={**info, "pairing": pairing}))
    elif mr[0] is not None:
        write_single(folder, "mr", mr[0], mr[1], names, info)
    else:
        write_single(folder, "ct", ct[0], ct[1], names, info)
