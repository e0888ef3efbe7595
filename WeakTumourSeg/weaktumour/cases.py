"""One case folder everywhere: an MRI with labels, a CT, and what is known about how they belong together.

mr.nii.gz ct.nii.gz mr_labels.nii.gz labels.json case.json, and where known ct_labels.nii.gz (case.json says whether
truth or corrected), truth_transform.h5 (CT point -> MR point) and truth_points.csv (ct_x,...,mr_z; LPS mm).
A cohort is a folder of case folders.
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
_POINT_COLUMNS = "ct_x,ct_y,ct_z,mr_x,mr_y,mr_z"


@dataclass(frozen=True)
class Case:
    """A patient's pair. Label maps: 0 background, 1 liver, 2 and above one tumour each.

    truth: CT point -> MR point. truth_points: (n, 6) corresponding points, CT x, y, z then MR x, y, z, LPS mm.
    info: id (pseudonymous), kind (simulated, clinical or corrected), source, simulator_version, and ct_labels
    ("truth", "corrected" or None): what case.json holds besides schema and software version.
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

    Raises ValueError for an info without id or with an unknown kind, InputError where the folder cannot be made.
    """
    if not case.info.get("id") or case.info.get("kind") not in KINDS:
        raise ValueError(
            f"info needs an id and a kind out of {KINDS}, not {case.info.get('id')!r}, {case.info.get('kind')!r}"
        )
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Case: the folder {folder} cannot be made ({error.strerror}); choose another place."
        ) from error
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
    # Last: a folder with a case.json is complete.
    defaults = {"source": None, "simulator_version": None, "ct_labels": None}
    content = {"schema": SCHEMA, "software_version": __version__, **defaults, **case.info}
    (folder / "case.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_case(folder: str | Path) -> Case:
    """Read a case folder. Raises InputError: no case folder, a newer schema, or a file that cannot be used."""
    folder = Path(folder)
    info = read_case_info(folder)
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
        truth_points=_read_points(folder / "truth_points.csv"),
        info=info,
    )


def read_case_info(folder: str | Path) -> dict[str, object]:
    """case.json alone. Raises InputError where the folder is no case folder or of a newer schema."""
    path = Path(folder) / "case.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Case: {folder} holds no case.json; give a case folder as written by `weaktumour simulate`."
        ) from error
    except ValueError as error:
        raise InputError(f"Case: {path} is not valid JSON; restore the file.") from error
    if not isinstance(info, dict) or not isinstance(info.get("schema"), int):
        raise InputError(f"Case: {path} has no schema number; give a folder that `weaktumour simulate` wrote.")
    if info["schema"] > SCHEMA:
        raise InputError(f"Case: {path} has schema {info['schema']}, newer than {SCHEMA}; update WeakTumourSeg.")
    return info


def _read_points(path: Path) -> np.ndarray | None:
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
