"""One case folder everywhere: an MRI with labels, a CT, and what is known about how they belong together.

mr.nii.gz ct.nii.gz mr_labels.nii.gz labels.json case.json, and where known ct_labels.nii.gz (case.json says whether
truth or corrected), truth_transform.h5 (CT point -> MR point) and truth_points.csv (ct_x,...,mr_z; LPS mm).
A cohort is a folder of case folders.

Public data sets seldom have an MRI and a CT of one patient. case.json therefore names the pairing for what it is:
`same_patient` (also where nothing is said), `different_people`, where labels carried over say nothing about this CT, or
`single`, a folder that holds one image and its labels alone (mr.nii.gz and mr_labels.nii.gz, or ct.nii.gz and
ct_labels.nii.gz). `subjects` lists the people whose images the folder holds, so that no one is in two parts of a split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import __version__
from .errors import InputError
from .labels import read_label_names, write_labels_json
from .volumes import Volume, read_volume, write_volume

if TYPE_CHECKING:
    from .deformation import DisplacementField

SCHEMA = 1
KINDS = ("simulated", "clinical", "corrected")
PAIRINGS = ("same_patient", "different_people", "single")
_POINT_COLUMNS = "ct_x,ct_y,ct_z,mr_x,mr_y,mr_z"


@dataclass(frozen=True)
class Case:
    """A patient's pair. Label maps: 0 background, 1 liver, 2 and above one tumour each.

    truth: CT point -> MR point. truth_points: (n, 6) corresponding points, CT x, y, z then MR x, y, z, LPS mm.
    info: id (pseudonymous), kind (simulated, clinical or corrected), source, simulator_version, and ct_labels
    ("truth", "corrected" or None): what case.json holds besides schema and software version. Optional: pairing and
    subjects, see this module's head.
    """

    mr: Volume
    ct: Volume
    mr_labels: Volume
    label_names: dict[int, str]
    ct_labels: Volume | None = None
    truth: DisplacementField | None = None
    truth_points: np.ndarray | None = None
    info: dict[str, object] = field(default_factory=dict)


def write_case(folder: str | Path, case: Case) -> None:
    """Write a case folder, which is made where it is missing; other files in it stay.

    Raises ValueError for an info without id or with an unknown kind or pairing, InputError where no folder can be made.
    """
    if case.info.get("pairing") == "single":
        raise ValueError("a case of two images is no single one; use write_single")
    folder = _made(folder, case.info)
    volumes = {"mr": case.mr, "ct": case.ct, "mr_labels": case.mr_labels, "ct_labels": case.ct_labels}
    for name, volume in volumes.items():
        if volume is not None:
            write_volume(volume, folder / f"{name}.nii.gz")
    write_labels_json(folder / "labels.json", case.label_names)
    if case.truth is not None:
        case.truth.write(folder / "truth_transform.h5")
    if case.truth_points is not None:
        lines = [_POINT_COLUMNS, *(",".join(f"{value:.6f}" for value in row) for row in case.truth_points)]
        (folder / "truth_points.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_info(folder, case.info)


def write_single(
    folder: str | Path,
    modality: str,
    image: Volume,
    labels: Volume,
    label_names: dict[int, str],
    info: dict[str, object],
) -> None:
    """Write a folder with one image and its labels: modality "mr" or "ct". `read_case` refuses it, since it is no pair.

    info: as of a Case; its pairing becomes "single". Raises as `write_case`.
    """
    if modality not in ("mr", "ct"):
        raise ValueError(f"modality {modality!r} is neither mr nor ct")
    info = {**info, "pairing": "single"}
    folder = _made(folder, info)
    write_volume(image, folder / f"{modality}.nii.gz")
    write_volume(labels, folder / f"{modality}_labels.nii.gz")
    write_labels_json(folder / "labels.json", label_names)
    _write_info(folder, info)


def subjects_of(info: dict[str, object]) -> tuple[str, ...]:
    """Whose images a case holds, as pseudonyms: what case.json lists, else the simulated anatomy, else the case's id.

    Simulated patients from one label map or real CT are one subject, whatever their seeds.
    """
    listed = info.get("subjects")
    if isinstance(listed, list) and listed:
        return tuple(str(subject) for subject in listed)
    source = str(info.get("source") or "")
    if info.get("kind") == "simulated" and source:
        seed = (info.get("simulation") or {}).get("seed")
        return (f"{source}, seed {seed}" if source.endswith("phantom") else source,)
    return (str(info.get("id")),)


def _made(folder: str | Path, info: dict[str, object]) -> Path:
    """The case's folder, made where it is missing; info is checked first."""
    if not info.get("id") or info.get("kind") not in KINDS:
        raise ValueError(f"info needs an id and a kind out of {KINDS}, not {info.get('id')!r}, {info.get('kind')!r}")
    if info.get("pairing", PAIRINGS[0]) not in PAIRINGS:
        raise ValueError(f"the pairing {info['pairing']!r} is none of {PAIRINGS}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Case: the folder {folder} cannot be made ({error.strerror}); choose another place."
        ) from error
    return folder


def _write_info(folder: Path, info: dict[str, object]) -> None:
    """case.json; written last: a folder that has one is complete."""
    defaults = {"source": None, "simulator_version": None, "ct_labels": None, "pairing": PAIRINGS[0]}
    content = {"schema": SCHEMA, "software_version": __version__, **defaults, **info}
    (folder / "case.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_case(folder: str | Path) -> Case:
    """Read a case folder. Raises InputError: no case folder, one image alone, a newer schema, or an unusable file."""
    folder = Path(folder)
    info = read_case_info(folder)
    if info.get("pairing") == "single":
        raise InputError(f"Case: {folder} holds one image alone (pairing single), not an MRI and a CT; take it out.")
    ct_labels = folder / "ct_labels.nii.gz"
    truth = None
    if (folder / "truth_transform.h5").exists():
        from .deformation import DisplacementField  # imports torch: only where it is needed

        truth = DisplacementField.read(folder / "truth_transform.h5")
    return Case(
        mr=read_volume(folder / "mr.nii.gz", "MRI"),
        ct=read_volume(folder / "ct.nii.gz", "CT"),
        mr_labels=read_volume(folder / "mr_labels.nii.gz", "MRI labels"),
        label_names=read_label_names(folder / "labels.json"),
        ct_labels=read_volume(ct_labels, "CT labels") if ct_labels.exists() else None,
        truth=truth,
        truth_points=read_truth_points(folder / "truth_points.csv"),
        info=info,
    )


def read_case_info(folder: str | Path) -> dict[str, object]:
    """case.json alone. Raises InputError where the folder is no case folder or of a newer schema."""
    path = Path(folder) / "case.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Case: {folder} holds no case.json; give a case folder, as `weaktumour simulate` writes it or as "
            "Resources/cohorts.md describes it."
        ) from error
    except ValueError as error:
        raise InputError(f"Case: {path} is not valid JSON; restore the file.") from error
    if not isinstance(info, dict) or not isinstance(info.get("schema"), int):
        raise InputError(f'Case: {path} has no schema number; add "schema": {SCHEMA}.')
    if info["schema"] > SCHEMA:
        raise InputError(f"Case: {path} has schema {info['schema']}, newer than {SCHEMA}; update WeakTumourSeg.")
    return info


def read_truth_points(path: Path) -> np.ndarray | None:
    """(n, 6), see `Case`; None where there is no such file. Raises InputError."""
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").split()
    try:
        if not lines or lines[0] != _POINT_COLUMNS:
            raise ValueError
        points = np.array([[float(value) for value in line.split(",")] for line in lines[1:]]).reshape(-1, 6)
    except ValueError as error:
        raise InputError(f"Case: {path} is not a table with the columns {_POINT_COLUMNS}; restore the file.") from error
    return points
