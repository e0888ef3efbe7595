"""Is a cohort fit to be used? Each case folder against DESIGN's contract, one plain line for each problem.

Unusable is what would stop or mislead a run: a file that cannot be read, labels beside their image, an unknown kind,
two cases with one image, anything that looks as if it names the patient. The rest are notes.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from ..cases import KINDS, PAIRINGS, read_case_info, read_truth_points, subjects_of
from ..errors import InputError
from ..labels import LIVER, TUMOUR, LabelMap, read_label_names, read_labels
from ..volumes import Volume, check_hounsfield, read_volume

_LIVER_LITRES = (0.3, 5.0)
_IDENTIFYING_KEY = re.compile(
    r"(patient|person|given|family|sur|first|last)[ _-]?name|patient[ _-]?id|birth|mrn$|medical[ _-]?record|accession|"
    r"insurance|address|phone",
    re.IGNORECASE,
)
# A DICOM person name (Family^Given), or a date with its century.
_IDENTIFYING_TEXT = re.compile(r"\w\^\w|(?<![\w.-])(19|20)\d\d([-/.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?![\w-])")
# NIfTI-1 and NIfTI-2: length of the header, then offset and length of its free texts.
_HEADER_TEXTS = {348: ((14, 18), (148, 80), (228, 24), (328, 16)), 540: ((240, 80), (320, 24), (508, 16))}


@dataclass(frozen=True)
class Problem:
    """case: name of the case folder. unusable: the case must not be used as it is; otherwise only worth a look."""

    case: str
    message: str
    unusable: bool = True

    def __str__(self) -> str:
        return f"{self.case}: {'' if self.unusable else 'note: '}{self.message}"


@dataclass(frozen=True)
class Entry:
    """What a split has to know of a case. images: checksums of its images' voxels, by modality."""

    name: str
    info: dict[str, object]
    images: dict[str, str]

    @property
    def subjects(self) -> tuple[str, ...]:
        return subjects_of(self.info)


def case_folders(cohort: str | Path) -> list[Path]:
    """The case folders of a cohort, by name; unfinished ones left out. Raises InputError where there are none."""
    cohort = Path(cohort)
    names = sorted(cohort.iterdir()) if cohort.is_dir() else []
    found = [path for path in names if path.is_dir() and not re.search(r"\.(partial|replaced)-\d+$", path.name)]
    if not found:
        raise InputError(f"Cohort: {cohort} holds no case folders; give a folder of folders with a case.json each.")
    return found


def check_cohort(cohort: str | Path) -> list[Problem]:
    """Every problem of every case, then what cases have in common. Raises InputError where there is no cohort."""
    problems, entries = [], []
    for folder in case_folders(cohort):
        found, entry = check_case(folder)
        problems += [Problem(folder.name, *problem) for problem in found]
        if entry is not None:
            entries.append(entry)
    by_id: dict[str, str] = {}
    for entry in entries:
        if not entry.info.get("id"):  # told already
            continue
        other = by_id.setdefault(str(entry.info["id"]), entry.name)
        if other != entry.name:
            problems.append(
                Problem(entry.name, f"case.json has the id {entry.info['id']} of {other}; give each its own.")
            )
    problems += [Problem(name, message) for name, message in duplicates(entries)]
    return problems


def check_case(folder: Path) -> tuple[list[tuple[str, bool]], Entry | None]:
    """Problems of one case as (message, unusable), and what a split needs of it: None where it has no case.json."""
    problems: list[tuple[str, bool]] = []
    try:
        info = read_case_info(folder)
    except InputError as error:
        return [(_plain(error), True)], None
    problems += [(message, True) for message in (*_info_problems(info), *_identifying(folder, info))]
    images: dict[str, str] = {}
    for modality in modalities_of(folder, info):
        try:
            image, notes = _checked_image(folder, modality)
        except InputError as error:
            problems.append((_plain(error), True))
            continue
        images[modality] = fingerprint(image)
        problems += notes
    problems += _truth_problems(folder)
    return problems, Entry(folder.name, info, images)


def modalities_of(folder: Path, info: dict[str, object]) -> tuple[str, ...]:
    """("mr", "ct") of a pair; of a single image the one that is there."""
    if info.get("pairing") != "single":
        return ("mr", "ct")
    return tuple(name for name in ("mr", "ct") if (folder / f"{name}.nii.gz").exists())[:1] or ("ct",)


def entry_of(folder: Path) -> Entry:
    """Reads the images of a case for a split. Raises InputError."""
    info = read_case_info(folder)
    names = {"mr": "MRI", "ct": "CT"}
    images = {m: fingerprint(read_volume(folder / f"{m}.nii.gz", names[m])) for m in modalities_of(folder, info)}
    return Entry(folder.name, info, images)


def fingerprint(volume: Volume) -> str:
    """Checksum of the voxels along the patient's axes: the same for one image stored in two ways, wherever it lies."""
    array = np.ascontiguousarray(volume.along_patient_axes().array, dtype="<f4")
    return sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def duplicates(entries: list[Entry]) -> Iterator[tuple[str, str]]:
    """(case, message) for each image that two cases hold although they have no subject in common."""
    seen: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        for modality, checksum in entry.images.items():
            other = seen.setdefault((modality, checksum), entry)
            if not set(other.subjects) & set(entry.subjects):
                yield (
                    entry.name,
                    (
                        f"its {modality.upper()} has the same voxels as that of {other.name}, under another subject; "
                        "remove one of the two, or list the common subject in both case.json."
                    ),
                )


# -- one case -----------------------------------------------------------------------------------------------------
def _info_problems(info: dict[str, object]) -> Iterator[str]:
    if not info.get("id"):
        yield "case.json has no id; give the case a pseudonym."
    if info.get("kind") not in KINDS:
        yield f"case.json says kind {info.get('kind')!r}; it must be one of {', '.join(KINDS)}."
    if info.get("pairing", PAIRINGS[0]) not in PAIRINGS:
        yield f"case.json says pairing {info.get('pairing')!r}; it must be one of {', '.join(PAIRINGS)}."
    if info.get("pairing") == "different_people" and len(subjects_of(info)) < 2:
        yield "case.json says different_people but does not list both in subjects; add their pseudonyms."
    if info.get("ct_labels") not in (None, "truth", "corrected"):
        yield f"case.json says ct_labels {info['ct_labels']!r}; it must be truth, corrected or null."


def _checked_image(folder: Path, modality: str) -> tuple[Volume, list[tuple[str, bool]]]:
    """The image, checked with its labels, and what is wrong with them. Raises InputError: the image is unusable."""
    what = {"mr": "MRI", "ct": "CT"}[modality]
    image = read_volume(folder / f"{modality}.nii.gz", what)
    if modality == "ct":
        check_hounsfield(image)
    path = folder / f"{modality}_labels.nii.gz"
    single = not (folder / ("ct.nii.gz" if modality == "mr" else "mr.nii.gz")).exists()
    if not path.exists() and modality == "ct" and not single:
        return image, []
    try:
        return image, list(_label_problems(image, read_labels(path, f"{what} labels"), folder, modality))
    except InputError as error:
        return image, [(_plain(error), True)]


def _label_problems(image: Volume, labels: LabelMap, folder: Path, modality: str) -> Iterator[tuple[str, bool]]:
    what = {"mr": "MRI", "ct": "CT"}[modality]
    index = np.argwhere(labels.volume.array > 0)
    inside = float(image.grid.contains(labels.volume.grid.index_to_world(index[:, ::-1])).mean())
    # `register` takes an MRI's labels on any grid, training does not. Labels of another image are told as such.
    if (modality == "ct" or inside >= 0.5) and not labels.volume.grid.same_as(image.grid, tolerance_mm=1e-2):
        yield f"{what} labels: they do not lie on the {what}'s own grid; resample them onto it.", True
    if inside < 1.0:
        yield (
            f"{what} labels: {100 * (1 - inside):.2g} % of their voxels lie outside the {what}; "
            "give the labels that belong to it.",
            inside < 0.5,
        )
    if not labels.of_role(LIVER):
        yield f"{what} labels: no voxel is liver (1); label it, or map the values to 1 liver, 2... tumours.", True
    else:
        litres = float(labels.mask(LIVER, TUMOUR).sum() * labels.volume.grid.voxel_volume_mm3 * 1e-6)
        if not _LIVER_LITRES[0] <= litres <= _LIVER_LITRES[1]:
            yield f"{what} labels: the liver has {litres:.2f} litres; look whether it is all of it.", False
    names = read_label_names(folder / "labels.json")
    unnamed = [label.value for label in labels.labels if label.value not in names]
    if unnamed:
        yield f"labels.json: no name for the value {unnamed[0]} of the {what} labels; add it.", False


def _truth_problems(folder: Path) -> list[tuple[str, bool]]:
    try:
        read_truth_points(folder / "truth_points.csv")
        if (folder / "truth_transform.h5").exists():
            from ..deformation import DisplacementField  # imports torch: only where it is needed

            DisplacementField.read(folder / "truth_transform.h5")
    except InputError as error:
        return [(_plain(error), True)]
    return []


# -- who the patient is -------------------------------------------------------------------------------------------
def _identifying(folder: Path, info: dict[str, object]) -> Iterator[str]:
    """What looks as if it names the patient: in case.json, in labels.json, in NIfTI headers, in DICOM files."""
    for key, text in _texts(info):
        if _IDENTIFYING_KEY.search(key):
            yield f'case.json has an entry "{key}", which may name the patient; remove it.'
        elif _IDENTIFYING_TEXT.search(text):
            yield f'case.json holds a name or a date in "{key}", which may identify the patient; remove it.'
    if any(_IDENTIFYING_TEXT.search(name) for name in read_label_names(folder / "labels.json").values()):
        yield "labels.json holds a name or a date, which may identify the patient; rename the label."
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".dcm", ".ima") or path.name.upper() == "DICOMDIR":
            yield f"{path.name} is a DICOM file, whose header may name the patient; remove it."
        elif path.name.endswith(".nii.gz") and _header_identifies(path):
            yield (
                f"{path.name} carries a name, a date or an extension in its header, which may identify the patient; "
                "write it anew."
            )


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of everything in a JSON value."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _header_identifies(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            header = file.read(544)
    except (OSError, EOFError):  # the reader says what is wrong with it
        return False
    size = int.from_bytes(header[:4], "little")
    if size not in _HEADER_TEXTS:
        size = int.from_bytes(header[:4], "big")
    texts = [header[start : start + length] for start, length in _HEADER_TEXTS.get(size, ())]
    plain = [text.split(b"\0")[0].decode("latin-1") for text in texts]
    extended = size in _HEADER_TEXTS and header[size : size + 1] not in (b"", b"\0")
    return extended or any(_IDENTIFYING_TEXT.search(text) for text in plain)


def _plain(error: InputError) -> str:
    """The error's sentence, without what the case's name before it says already."""
    return str(error).removeprefix("Case: ")
