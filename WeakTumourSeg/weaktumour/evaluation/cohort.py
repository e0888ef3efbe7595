"""The patients of a benchmark: simulated ones by their recipe, or a user's own case folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cases import read_case_info, write_case
from ..errors import InputError
from ..simulation import VERSION, simulate_from_ct, simulate_patient
from ..simulation.tissue_maps import read_label_map
from ..volumes import read_volume

# Without a splits file: seeds that training never draws (the same as in Testing/benchmark/splits.json).
_PHANTOM_SEEDS = range(900_000, 900_040)


@dataclass(frozen=True)
class Patient:
    """kind: phantom, label_map, real_ct or case (a folder that exists). source: file or folder, where there is one."""

    name: str
    kind: str
    seed: int = 0
    source: str | None = None
    liver: str | None = None  # label map of a real CT


def phantoms(number: int) -> list[Patient]:
    """So many of the phantoms that are kept for tests. Raises InputError where there are not so many."""
    if not 1 <= number <= len(_PHANTOM_SEEDS):
        raise InputError(f"--cases: {number}; give a number from 1 to {len(_PHANTOM_SEEDS)}.")
    return [Patient(f"phantom-{seed}", "phantom", seed) for seed in _PHANTOM_SEEDS[:number]]


def of_splits(path: str | Path, part: str, data: str | Path | None) -> list[Patient]:
    """The patients that a splits.json names for a part: test or development.

    data: folder with label_maps/ and chaos_ct/, where the file names some. Raises InputError.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        named = content["benchmark" if part == "test" else f"benchmark_{part}"]
        found = [Patient(f"phantom-{seed}", "phantom", int(seed)) for seed in named["phantoms"]]
        maps = [(str(entry["map"]), int(entry["seed"])) for entry in named["label_maps"]]
        images = [(str(entry["image"]), int(entry["seed"])) for entry in named["real_ct"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Splits: {path} does not name the patients of the part {part}; restore the file.") from error
    if (maps or images) and data is None:
        raise InputError("--splits names label maps and real CTs; give their folder with --shared-data.")
    for name, seed in maps:
        source = Path(data) / "label_maps" / f"{name}.nii.gz"
        found.append(Patient(f"map-{name}-{seed}", "label_map", seed, str(_existing(source))))
    for name, seed in images:
        folder = Path(data) / name
        files = [str(_existing(folder / f"{which}.nii.gz")) for which in ("ct", "liver")]
        found.append(Patient(f"ct-{name}-{seed}", "real_ct", seed, *files))
    return found


def of_folder(folder: str | Path) -> list[Patient]:
    """A cohort: a folder of case folders, each with labels on its CT. Raises InputError."""
    folder = Path(folder)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (path / "case.json").is_file():
            continue
        read_case_info(path)
        if not (path / "ct_labels.nii.gz").is_file():
            raise InputError(f"--data: {path} has no ct_labels.nii.gz to compare with; add it or take the case out.")
        found.append(Patient(path.name, "case", source=str(path)))
    if not found:
        raise InputError(f"--data: {folder} holds no case folder (case.json, mr, ct, mr_labels, ct_labels).")
    return found


def prepared(patient: Patient, folder: Path) -> Path:
    """The patient's case folder; a simulated one is made in `folder`, once."""
    if patient.kind == "case":
        return Path(patient.source)
    target = folder / f"{patient.name}-v{VERSION}"
    if (target / "case.json").is_file():
        return target
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if patient.kind == "phantom":
        case = simulate_patient(patient.seed)
    elif patient.kind == "label_map":
        path = Path(patient.source)
        case = simulate_patient(
            patient.seed, label_map=read_label_map(path), label_map_name=path.name.removesuffix(".nii.gz")
        )
    else:
        ct, labels = read_volume(patient.source, "CT"), read_volume(patient.liver, "CT labels")
        case = simulate_from_ct(ct, labels, patient.seed, name=Path(patient.source).parent.name)
    write_case(partial, case)
    partial.rename(target)
    return target


def motion_mm(points: np.ndarray | None) -> float | None:
    """What a rigid movement leaves of the truth's points, root mean square in mm: breathing and bending together.

    points: (n, 6), see `cases.Case.truth_points`; None where nothing is known.
    """
    if points is None or len(points) < 4:
        return None
    ct, mr = points[:, :3], points[:, 3:]
    a, b = ct - ct.mean(0), mr - mr.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    return float(np.sqrt(np.mean(np.sum((a @ (u @ flip @ vt) - b) ** 2, axis=1))))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"--shared-data: {path} is missing; give the folder that the splits were made for.")
    return path
