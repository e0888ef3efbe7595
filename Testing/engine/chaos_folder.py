"""Writes folders in the CHAOS challenge's layout: DICOM by pydicom and PNG by SimpleITK, independent of our readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

# As the organisers give the MR's organs.
GREY_LEVELS = {1: 63, 2: 126, 3: 189, 4: 252}
_ROOT = "1.2.826.0.1.3680043.2.1125"


def write_series(
    folder: Path,
    image: sitk.Image,
    *,
    head_first: bool,
    name: str = "i{:04d},0000b.dcm",
    numbers: range | None = None,
    own_series: bool = False,
) -> None:
    """One file a slice, named in the order of instance numbers, from the head down or from the feet up.

    image: int16, axial. numbers: what the names count with. own_series: a series identifier for each file.
    """
    folder.mkdir(parents=True)
    voxels = sitk.GetArrayFromImage(image)
    order = range(len(voxels))[::-1] if head_first else range(len(voxels))
    for count, (z, number) in enumerate(zip(order, numbers or range(len(voxels)), strict=True), start=1):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{_ROOT}.1.{count}"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{_ROOT}.2", f"{_ROOT}.3.{count if own_series else 0}"
        data.Modality, data.PatientName, data.PatientID = "CT", "CHAOS^CT_SET_1", ""
        data.InstanceNumber = count
        data.ImagePositionPatient = [float(v) for v in image.TransformIndexToPhysicalPoint((0, 0, int(z)))]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [image.GetSpacing()[1], image.GetSpacing()[0]]
        data.SliceThickness = image.GetSpacing()[2]
        data.Rows, data.Columns = voxels.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleIntercept, data.RescaleSlope = -1024, 1
        data.PixelData = (voxels[z].astype(np.int32) + 1024).astype("<u2").tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / name.format(number), enforce_file_format=True)


def write_ground(
    folder: Path, grey: np.ndarray, *, head_first: bool, name: str = "liver_GT_{:03d}.png", numbers: range | None = None
) -> None:
    """grey: (z, y, x) uint8, from the feet up as in the image; the files are numbered as those of `write_series`."""
    folder.mkdir(parents=True)
    slices = grey[::-1] if head_first else grey
    for piece, number in zip(slices, numbers or range(len(slices)), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(piece)), str(folder / name.format(number)))
