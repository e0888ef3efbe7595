"""Learn2Reg's data: NIfTI files in imagesTr and labelsTr, described by a dataset.json.

    imagesTr/<Name>_<subject>_<modality>.nii.gz      labelsTr/ the same name, where there are labels

dataset.json says what the modality's number means ("modality": {"0": "MR", "1": "CT"}), which images there are
("training"), which form pairs ("training_paired_images", "registration_val": {"fixed": ..., "moving": ...}) and what
the labels are called ("labels", one list for all modalities or one for each). Two images of one subject number are of
one patient; a pair of two numbers is of different people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..labels import LIVER, parse_label_map
from ..volumes import Volume, read_volume

_PAIR_LISTS = ("training_paired_images", "registration_val")
_IMAGE_NAME = re.compile(r"(?P<subject>.+)_(?P<modality>\d{4})\.nii(\.gz)?")


@dataclass(frozen=True)
class Image:
    """modality: ct or mr. subject: the file's name without the modality's number. labels: None where there are none."""

    modality: str
    subject: str
    path: Path
    labels: Path | None


@dataclass(frozen=True)
class Dataset:
    """images: all with labels that are in no pair. pairs: (MR, CT). roles: what label values mean, by modality."""

    name: str
    images: tuple[Image, ...]
    pairs: tuple[tuple[Image, Image], ...]
    roles: Mapping[str, Mapping[int, str]]


def read_dataset(source: str | Path, label_map: str | None = None) -> Dataset:
    """What a dataset.json, or the folder with one, holds; no image is read yet.

    label_map: "5=liver,7=tumour" in the place of the file's own label names, of which only "liver" is taken.
    Raises InputError.
    """
    path = _description(Path(source))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        modalities = {int(key): _modality(str(text)) for key, text in content["modality"].items()}
        listed = [Path(e["image"] if isinstance(e, dict) else e).as_posix() for e in content.get("training", [])]
        paired = [tuple(Path(pair[side]).as_posix() for side in ("fixed", "moving"))
                  for name in _PAIR_LISTS for pair in content.get(name, [])]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"Learn2Reg: {path} does not describe images (modality, training) as its data sets do; restore the file."
        ) from error
    names = dict.fromkeys([*listed, *(name for pair in paired for name in pair)])
    images = {name: _image(_file(path.parent, name), modalities) for name in names}
    pairs = []
    for pair in dict.fromkeys(paired):
        both = {images[name].modality: images[name] for name in pair}
        if set(both) != {"ct", "mr"}:
            raise InputError(
                f"Learn2Reg: {' and '.join(pair)} are a pair in {path.name} but no MR and CT; "
                "only pairs of an MR and a CT can become cases."
            )
        if both["mr"].labels is not None:
            pairs.append((both["mr"], both["ct"]))
    taken = {image.path for pair in pairs for image in pair}
    alone = tuple(image for image in images.values() if image.labels is not None and image.path not in taken)
    if not pairs and not alone:
        raise InputError(f"Learn2Reg: {path} names no image with labels (labelsTr); there is nothing to import.")
    return Dataset(str(content.get("name") or path.parent.name), alone, tuple(pairs), _roles(content, label_map, path))


def read_image(image: Image, roles: Mapping[int, str]) -> tuple[Volume, Volume | None]:
    """An image, and its labels as 1 liver, 2 and above tumours (uint8), None where it has none.

    roles: value -> "liver" or "tumour"; other values become background. Raises InputError.
    """
    what = f"Learn2Reg {image.path.name}"
    volume = read_volume(image.path, what)
    if image.labels is None:
        return volume, None
    found = read_volume(image.labels, f"{what} labels")
    if not found.grid.same_as(volume.grid, tolerance_mm=1e-2):
        raise InputError(f"{what}: the labels lie on another grid than the image; restore the files.")
    labels = np.zeros(found.array.shape, dtype=np.uint8)
    tumours = [value for value, role in sorted(roles.items()) if role != LIVER]
    for value, role in roles.items():
        labels[found.array == value] = 1 if role == LIVER else 2 + tumours.index(value)
    if not np.any(labels == 1):
        values = sorted(int(v) for v in np.unique(found.array) if v)
        raise InputError(
            f"{what}: no voxel of its labels is liver (values {values}); say which with --label-map, such as 5=liver."
        )
    return volume, Volume(labels, volume.grid)


# -- dataset.json -------------------------------------------------------------------------------------------------
def _description(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(source.glob("*dataset.json")) if source.is_dir() else []
    if len(found) != 1:
        raise InputError(
            f"Learn2Reg: {source} holds {len(found) or 'no'} files named dataset.json; "
            "give the one that describes the data."
        )
    return found[0]


def _modality(text: str) -> str:
    """mr or ct. Raises ValueError for anything else."""
    word = text.strip().lower()
    if word.startswith("mr"):
        return "mr"
    if word.startswith("ct"):
        return "ct"
    raise ValueError(text)


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError(f"Learn2Reg: {path} is named in dataset.json but missing; restore the file.")
    return path


def _image(path: Path, modalities: Mapping[int, str]) -> Image:
    match = _IMAGE_NAME.fullmatch(path.name)
    if match is None or int(match["modality"]) not in modalities:
        raise InputError(
            f"Learn2Reg: {path.name} does not end in a modality's number, such as _0000.nii.gz; "
            "restore the file's name."
        )
    labels = path.parent.with_name(path.parent.name.replace("images", "labels")) / path.name
    return Image(
        modalities[int(match["modality"])], match["subject"], path,
        labels if labels != path and labels.is_file() else None,
    )  # fmt: skip


def _roles(content: Mapping, label_map: str | None, path: Path) -> dict[str, dict[int, str]]:
    given = parse_label_map(label_map)
    if given is not None:
        return {"mr": given, "ct": given}
    names = content.get("labels")
    if not isinstance(names, dict):
        names = {}
    nested = {key: value for key, value in names.items() if isinstance(value, dict)}
    roles = {}
    for key, text in content["modality"].items():
        entries = nested.get(str(key), {}) if nested else names
        roles[_modality(str(text))] = {int(v): LIVER for v, n in entries.items() if str(n).strip().lower() == "liver"}
    if not all(roles.values()):
        raise InputError(
            f'Learn2Reg: {path} names no label "liver"; say which it is with --label-map, such as 5=liver.'
        )
    return roles
