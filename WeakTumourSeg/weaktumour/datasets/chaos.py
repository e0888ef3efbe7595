"""The CHAOS challenge's data as distributed: DICOM images with one PNG of labels for each slice.

    CT/<patient>/DICOM_anon, Ground
    MR/<patient>/T1DUAL/DICOM_anon/InPhase, T1DUAL/DICOM_anon/OutPhase, T1DUAL/Ground, T2SPIR/DICOM_anon, T2SPIR/Ground

Which PNG belongs to which slice: the k-th PNG by name belongs to the k-th DICOM file by name. That is the organisers'
rule ("the orientation of the slices is determined by order of image names", emrekavur/CHAOS-evaluation), and by name
the files follow their instance numbers. The image's own geometry comes from the DICOM positions, whichever way the
slices were counted; so each PNG goes to the place of its file in the stack. Rows and columns are those of the DICOM
image. Since a mistake here would be silent, the labels are then compared with the image: inside a liver grey values
differ little, inside its mirror image they differ much more.

CT and MR of this challenge are of *different people*, numbered independently; nothing here says otherwise.

Kavur et al., CHAOS challenge, Medical Image Analysis 2021; data: Zenodo 3431873, CC BY-SA 4.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..volumes import Volume, dicom_files, read_dicom

SEQUENCES = ("t1-in", "t1-out", "t2")
_SEQUENCE_FOLDERS = {
    "t1-in": ("T1DUAL", "DICOM_anon/InPhase"),
    "t1-out": ("T1DUAL", "DICOM_anon/OutPhase"),
    "t2": ("T2SPIR", "DICOM_anon"),
}
# Grey levels of the MR's PNGs, both ends included, and the value that the organ gets here.
ORGANS = {1: "Liver", 2: "Right kidney", 3: "Left kidney", 4: "Spleen"}
_GREY_LEVELS = {1: (55, 70), 2: (110, 135), 3: (175, 200), 4: (240, 255)}
_UNKNOWN_SHARE = 0.01  # of the labelled pixels; the rims of some organs have a few in-between levels
_MIRRORED_SPREAD = 0.8  # a mirror image whose grey values spread less than this much of ours fits better
_FEW_VOXELS = 100


@dataclass(frozen=True)
class Subject:
    """One person's folder. modality: ct or mr. number: the challenge's number, already a pseudonym."""

    modality: str
    number: str
    folder: Path

    @property
    def name(self) -> str:
        return f"chaos-{self.modality}-{self.number.zfill(2)}"


def subjects_in(source: str | Path) -> tuple[list[Subject], list[Subject]]:
    """(CT subjects, MR subjects) of the folder that holds CT/ and MR/, or one of them; by number. Raises InputError."""
    source = Path(source)
    found = {
        modality: [
            Subject(modality, folder.name, folder)
            for folder in sorted((source / modality.upper()).glob("*"), key=_natural)
            if folder.is_dir()
        ]
        for modality in ("ct", "mr")
    }
    if not any(found.values()):
        raise InputError(
            f"CHAOS: {source} holds neither CT/<patient> nor MR/<patient>; give the folder above them, "
            "such as CHAOS_Train_Sets/Train_Sets."
        )
    return found["ct"], found["mr"]


def read_ct(subject: Subject) -> tuple[Volume, Volume]:
    """The CT and its liver, 1 (uint8), on the same grid. Raises InputError."""
    what = f"CHAOS CT {subject.number}"
    image, grey = _image_and_ground(subject.folder / "DICOM_anon", subject.folder / "Ground", what)
    labels = (grey > 0).astype(np.uint8)
    _check_place(image.array, labels == 1, what)
    return image, Volume(labels, image.grid)


def read_mr(subject: Subject, sequence: str = "t1-in") -> tuple[Volume, Volume]:
    """An MR and its organs (uint8, see ORGANS), on the same grid. sequence: of SEQUENCES. Raises InputError."""
    folder, images = _SEQUENCE_FOLDERS[sequence]
    what = f"CHAOS MR {subject.number} {sequence}"
    image, grey = _image_and_ground(subject.folder / folder / images, subject.folder / folder / "Ground", what)
    labels = organs_of(grey, what)
    _check_place(image.array, labels == 1, what)
    return image, Volume(labels, image.grid)


def organs_of(grey: np.ndarray, what: str) -> np.ndarray:
    """Grey levels of an MR's PNGs -> values of ORGANS, uint8, same shape. Raises InputError for other levels."""
    labels = np.zeros(grey.shape, dtype=np.uint8)
    for value, (low, high) in _GREY_LEVELS.items():
        labels[(grey >= low) & (grey <= high)] = value
    unknown = grey[(grey != 0) & (labels == 0)]
    if len(unknown) > _UNKNOWN_SHARE * np.count_nonzero(grey):
        level = int(np.bincount(unknown).argmax())
        raise InputError(
            f"{what}: {len(unknown)} pixels of its Ground have grey levels that belong to no organ, such as {level}; "
            "give the PNG files as distributed."
        )
    return labels


# -- images and their PNGs ----------------------------------------------------------------------------------------
def _image_and_ground(images: Path, ground: Path, what: str) -> tuple[Volume, np.ndarray]:
    """The image, and the grey levels (z, y, x) of its PNGs, each at its slice. Raises InputError."""
    for folder in (images, ground):
        if not folder.is_dir():
            raise InputError(f"{what}: the folder {folder} is missing; only the challenge's training sets have labels.")
    files = dicom_files(images, what, one_stack=True)
    image = read_dicom(files, what)
    pngs = sorted((path for path in ground.iterdir() if path.suffix.lower() == ".png"), key=_natural)
    if len(pngs) != len(files):
        raise InputError(
            f"{what}: {len(files)} DICOM images but {len(pngs)} PNG files in {ground}; "
            "restore the folders as distributed."
        )
    by_name = sorted(range(len(files)), key=lambda k: _natural(Path(files[k])))
    _check_counted(files, by_name, what)
    grey = np.zeros(image.array.shape, dtype=np.uint8)
    for path, slice_number in zip(pngs, by_name, strict=True):
        grey[slice_number] = _read_png(path, image.array.shape[1:], what)
    return image, grey


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sorting key by which image 2 comes before image 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _check_counted(files: tuple[str, ...], by_name: list[int], what: str) -> None:
    """Raise InputError where instance numbers jump to and fro along the names: then the names say nothing of slices."""
    numbers = []
    for k in by_name:
        reader = sitk.ImageFileReader()
        reader.SetFileName(files[k])
        reader.ReadImageInformation()
        if reader.HasMetaDataKey("0020|0013"):
            text = reader.GetMetaData("0020|0013").strip()
            numbers.append(int(text) if text.lstrip("-").isdigit() else None)
    if len(numbers) != len(by_name) or None in numbers:
        return
    steps = np.diff(numbers)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise InputError(
            f"{what}: the DICOM files are named in another order than their instance numbers, so that no PNG can be "
            "told to its slice; restore the file names as distributed."
        )


def _read_png(path: Path, shape: tuple[int, int], what: str) -> np.ndarray:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{what}: {path.name} cannot be read as a PNG image; restore it.") from error
    pixels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:  # stored as colours: grey where they agree
        pixels = pixels[..., 0]
    if pixels.shape != shape or pixels.max() > 255:
        raise InputError(
            f"{what}: {path.name} has {pixels.shape[1]} x {pixels.shape[0]} pixels with grey levels up to "
            f"{pixels.max():g}, its DICOM image {shape[1]} x {shape[0]}; restore the PNG as distributed."
        )
    return pixels.astype(np.uint8)


def _check_place(image: np.ndarray, liver: np.ndarray, what: str) -> None:
    """Raise InputError where the liver's mirror image fits better, or there is no liver.

    image, liver: (z, y, x). Compared is the standard deviation of the grey values inside.
    """
    if np.count_nonzero(liver) < _FEW_VOXELS:
        raise InputError(f"{what}: its Ground holds no liver; restore the PNG files as distributed.")
    index = np.nonzero(liver)

    def spread(axis: int | None) -> float:
        place = [image.shape[a] - 1 - i if a == axis else i for a, i in enumerate(index)]
        return float(np.std(image[tuple(place)].astype(np.float64)))

    ours = spread(None)
    for axis, how in enumerate(("in the reverse order of slices", "upside down", "left and right exchanged")):
        if spread(axis) < _MIRRORED_SPREAD * ours:
            raise InputError(
                f"{what}: the PNG files fit the image better {how}, so they do not belong to it as they are; "
                "restore DICOM and PNG files as distributed."
            )
