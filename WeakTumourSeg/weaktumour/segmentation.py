"""Liver and tumours with the UNet, on an MRI or a CT, where the user gives no labels.

resample along the image's own axes  ->  probabilities  ->  one liver, tumours inside it  ->  back onto the image
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from .devices import choose_device, mixed_precision, on_device
from .errors import InputError, ModelError
from .labels import LIVER, TUMOUR, Label, LabelMap, equivalent_diameter
from .models import ModelEntry, find, load
from .progress import Monitor
from .registration.preparation import prepare_ct, prepare_mr, tensor
from .volumes import Grid, Volume, read_volume, write_volume
from .workspace import open_file

MODALITIES = ("auto", "ct", "mr")
# More voxels than this in one piece take several GB; then the image is cut into slabs that overlap.
_PIECE_VOXELS = 2_500_000
_OVERLAP = 16
_SMALLEST_TUMOUR_MM = 6.0  # diameter; below it, at the network's spacing, there is nothing to tell from noise
_THIN_MM = 3.0  # what an erosion by so much makes vanish is most often a vessel
_SMALLEST_LIVER_ML = 150.0
_RIM_MM = 5.0  # round the body of a CT; a network of few images may call air farther out liver


class NoLiver(InputError):
    """The network found no liver in an image."""


@dataclass(frozen=True)
class Segmentation:
    """probability: (3, z, y, x) float32 of background, liver, tumour on an isotropic grid along the image's axes."""

    probability: np.ndarray
    grid: Grid

    def moved(self, motion: np.ndarray) -> Segmentation:
        """The same on a grid moved by a rigid (4, 4) motion."""
        return Segmentation(self.probability, self.grid.moved(motion))

    def liver(self) -> Volume:
        """Whole liver: its probability in the largest part, 0 elsewhere; 0.5 is the surface. float32.

        Raises NoLiver.
        """
        whole = self.probability[1] + self.probability[2]
        parts = sitk.RelabelComponent(
            sitk.ConnectedComponent(sitk.GetImageFromArray((whole > 0.5).astype(np.uint8))), sortByObjectSize=True
        )
        largest = sitk.GetArrayFromImage(sitk.Equal(parts, 1))
        if largest.sum() * self.grid.voxel_volume_mm3 < 1000 * _SMALLEST_LIVER_ML:
            raise NoLiver("No liver was found in the image; check that it shows the upper abdomen.")
        largest = _without_holes(largest)
        near = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(largest), [2, 2, 2]))
        others = (whole > 0.5) & (largest == 0)
        value = np.where((near > 0) & ~others, whole, 0.0)
        return Volume(np.where(largest > 0, np.maximum(value, 0.5 + 1e-3), value).astype(np.float32), self.grid)

    def labels_on(self, grid: Grid) -> LabelMap:
        """0, 1 liver, 2 and above one tumour each (largest first), on the image's own grid. Raises NoLiver."""
        whole = self.liver()
        liver = whole.resample_to(grid).array > 0.5
        tumour = Volume(_without_vessels(self.probability[2], whole.array > 0.5, self.grid.spacing[0]), self.grid)
        inside = (tumour.resample_to(grid).array > 0.5) & liver
        result = liver.astype(np.uint8)
        labels = [Label(1, "Liver", LIVER)]
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)), True))
        voxels = np.bincount(parts.ravel())[1:]
        for number in np.argsort(-voxels, kind="stable"):
            if equivalent_diameter(voxels[number] * grid.voxel_volume_mm3) < _SMALLEST_TUMOUR_MM or len(labels) > 250:
                break
            labels.append(Label(len(labels) + 1, f"Tumour {len(labels)}", TUMOUR))
            result[parts == number + 1] = labels[-1].value
        return LabelMap(Volume(result, grid), tuple(labels))


def modality_of(image: Volume) -> str:
    """ct where the values reach down to air in Hounsfield units, else mr."""
    return "ct" if float(np.percentile(image.array[::4, ::4, ::4], 1)) < -200 else "mr"


def segment(image: Volume, modality: str, entry: ModelEntry, device: torch.device, monitor: Monitor) -> Segmentation:
    """Probabilities of liver and tumour. modality: ct or mr. Raises ModelError for a model of another make."""
    spacing = entry.input.get("spacing_mm")
    if entry.task != "segmentation" or entry.input.get("normalisation") != "weaktumour-1" or not spacing:
        raise ModelError(f"Model {entry.id}: it is not a segmentation model of this program; choose another.")
    scan = prepare_ct(image, spacing, None) if modality == "ct" else prepare_mr(image, spacing, None, None)
    monitor.check()
    # Air all round teaches nothing and costs time: only the body's box is looked at.
    box = _box(scan.body > 0.5)
    value = tensor(np.where(scan.inside > 0.5, scan.value, 0.0)[box])

    def run(device: torch.device) -> np.ndarray:
        return _probability(load(entry, device), value.to(device), monitor)

    found = on_device(run, device, monitor)
    if modality == "ct":  # on an MRI, dark tissue at the rim may be counted as air
        found[:, ~_near(scan.body[box] > 0.5, spacing)] = np.array([[1], [0], [0]])
    probability = np.zeros((3, *scan.grid.shape), dtype=np.float32)
    probability[0] = 1
    probability[(slice(None), *box)] = found
    return Segmentation(probability, scan.grid)


@torch.no_grad()
def _probability(network: nn.Module, value: torch.Tensor, monitor: Monitor) -> np.ndarray:
    """(3, z, y, x); in slabs along z that overlap and are blended, where one piece would be too large."""
    depth, rows, columns = value.shape[2:]
    thickness = max(4 * _OVERLAP, int(_PIECE_VOXELS / (rows * columns)))
    if depth <= thickness:
        return _softmax(network, value)
    total = np.zeros((3, depth, rows, columns), dtype=np.float32)
    weights = np.zeros((depth, 1, 1), dtype=np.float32)
    count = -(-(depth - _OVERLAP) // (thickness - _OVERLAP))
    for number, start in enumerate(np.linspace(0, depth - thickness, count).round().astype(int)):
        monitor.update(number / count)
        ramp = np.minimum(np.arange(thickness) + 1, np.arange(thickness)[::-1] + 1).clip(max=_OVERLAP)
        ramp = ramp.astype(np.float32)[:, None, None]
        part = slice(int(start), int(start) + thickness)
        total[:, part] += ramp * _softmax(network, value[:, :, part])
        weights[part] += ramp
    return total / weights


def _softmax(network: nn.Module, value: torch.Tensor) -> np.ndarray:
    with mixed_precision(value.device):
        logits = network(value)
    return logits[0].float().softmax(0).cpu().numpy()


def _box(mask: np.ndarray, margin: int = 4) -> tuple[slice, ...]:
    spans = []
    for axis, size in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, size)
        spans.append(slice(max(0, low - margin), min(size, high + margin)))
    return tuple(spans)


def _near(body: np.ndarray, spacing_mm: float) -> np.ndarray:
    radius = max(1, round(_RIM_MM / spacing_mm))
    return sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(body.astype(np.uint8)), [radius] * 3)) > 0


def _without_vessels(probability: np.ndarray, inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Probability of tumour, 0 where what is taken for one is thin: that is most often a vessel.

    An opening; what is thicker keeps its border, with the probability below 0.5 beyond it.
    """
    likely = (probability > 0.5) & inside
    thin = max(1, round(_THIN_MM / spacing_mm))
    core = sitk.BinaryErode(sitk.GetImageFromArray(likely.astype(np.uint8)), [thin] * 3, sitk.sitkCross)
    grown = sitk.GetArrayFromImage(sitk.BinaryDilate(core, [thin + 1] * 3, sitk.sitkBall)) > 0
    kept = sitk.GetImageFromArray((grown & likely).astype(np.uint8))
    border = sitk.GetArrayFromImage(sitk.BinaryDilate(kept, [1, 1, 1], sitk.sitkBall)) > 0
    return np.where(border & inside & (grown | ~likely), probability, 0.0).astype(np.float32)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(mask.astype(np.uint8))))


def with_liver(labels: LabelMap, segmentation: Segmentation) -> LabelMap:
    """Labels without a liver, and the liver that was found where they leave room: 1, or the first value not in use."""
    liver = segmentation.liver().resample_to(labels.volume.grid).array > 0.5
    array, used = labels.volume.array.copy(), {label.value for label in labels.labels}
    value = next(number for number in range(1, 257) if number not in used)
    if value > np.iinfo(array.dtype).max:
        array = array.astype(np.uint16)
    array[liver & (array == 0)] = value
    known = sorted((*labels.labels, Label(value, "Liver", LIVER)), key=lambda label: label.value)
    return LabelMap(Volume(array, labels.volume.grid), tuple(known))


# -- a file in, a file out -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SegmentArguments:
    """The command line's options of `segment`, with underscores. out: the label map's file."""

    image: str
    out: str
    modality: str = "auto"
    segmentation_model: str | None = None
    overwrite: bool = False
    device: str = "auto"


def segment_image(arguments: SegmentArguments, monitor: Monitor) -> Path:
    """Write the liver and tumours that the UNet finds in an image as a label map; returns its path.

    1 liver, 2 and above one tumour each, largest first. Raises InputError, ModelError, DeviceError, Cancelled.
    """
    if arguments.modality not in MODALITIES:
        raise InputError(f'Modality: "{arguments.modality}" is not known; choose one of {", ".join(MODALITIES)}.')
    device = choose_device(arguments.device)
    model = find(arguments.segmentation_model, "segmentation")
    monitor.plan({"read": 2, "segmentation": 4, "write": 1})
    with open_file(arguments.out, arguments.overwrite) as path:
        with monitor.stage("read"):
            image = read_volume(arguments.image, "Image")
            modality = modality_of(image) if arguments.modality == "auto" else arguments.modality
            monitor.log(f"The image is taken for {'a CT' if modality == 'ct' else 'an MRI'}.")
        with monitor.stage("segmentation"):
            labels = segment(image, modality, model, device, monitor).labels_on(image.grid)
        with monitor.stage("write"):
            write_volume(labels.volume, path)
            monitor.check()
    return Path(arguments.out)
