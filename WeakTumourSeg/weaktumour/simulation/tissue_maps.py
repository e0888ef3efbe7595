"""Tissue maps: which tissue each voxel is, and nothing of how it looks.

Three kinds: the simulator's phantoms, drawn by seed; real livers set into a phantom's torso that is stretched to fit
(most public label maps hold a liver alone); real torsos.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..volumes import Grid, Volume, read_volume
from .anatomy import Wanted, build_anatomy
from .contrast import TISSUE_NAMES
from .shapes import Canvas
from .vessels import Segment, vessel_tree

SPACING_MM = 2.0
CODE = {name: code for code, name in enumerate(TISSUE_NAMES)}
LIVER_TISSUES = tuple(CODE[name] for name in ("liver", "liver vessel", "tumour"))
# The label scheme of public organ maps (shared/data/label_maps) in the simulator's tissues.
LABEL_TISSUES = {
    1: "liver",
    2: "tumour",
    3: "liver vessel",
    4: "bile",
    5: "spleen",
    6: "kidney",
    7: "kidney",
    8: "stool",
    9: "pancreas",
    10: "blood",
    11: "blood",
    12: "bowel wall",
    13: "lung",
    14: "marrow",
    15: "muscle",
}
KINDS = ("phantom", "liver", "torso")
_TORSO_VOXELS = 300_000  # a map with so much besides its liver stands for itself
_STRETCH = (0.75, 1.4)
_VESSEL_SHARE = 0.01  # of a liver: with less its vessels were not drawn, and are made up
# Where the trees enter a liver, from its middle, in shares of its extent to the left, back and top; how many tips;
# the radius of the trunk in mm.
_TREES = (
    ((0.12, 0.10, -0.15), 110, 6.3),  # portal vein
    ((0.08, 0.25, 0.35), 110, 5.8),  # hepatic veins
)


@dataclass(frozen=True)
class TissueMap:
    """tissues: (z, y, x) uint8 codes of TISSUE_NAMES at SPACING_MM, axes along patient left, posterior, superior.

    kind: one of KINDS: phantom, liver (a real one in a phantom's torso) or torso (real).
    """

    name: str
    tissues: np.ndarray
    kind: str

    @property
    def liver(self) -> np.ndarray:
        """(z, y, x) bool: parenchyma, vessels in it and tumours."""
        return np.isin(self.tissues, LIVER_TISSUES)


def phantom_map(seed: int) -> TissueMap:
    """A phantom without tumours: those are put in while training."""
    anatomy = build_anatomy(seed, Wanted(), SPACING_MM, tissue_map=True)
    return TissueMap(f"phantom-{seed}", anatomy.tissues, "phantom")


def read_label_map(path: Path) -> Volume:
    """uint8, at SPACING_MM along patient axes; values that LABEL_TISSUES does not know are 0."""
    volume = read_volume(path, f"Label map {path.name}").along_patient_axes()
    known = np.isin(volume.array, list(LABEL_TISSUES))
    volume = Volume(np.where(known, volume.array, 0).astype(np.uint8), volume.grid)
    if not np.any(volume.array == 1):
        raise InputError(f"Label map {path.name}: no voxel is 1 (liver); leave the file out or relabel it.")
    if np.allclose(volume.grid.spacing, SPACING_MM) and np.allclose(volume.grid.axes, np.eye(3), atol=1e-3):
        return volume
    grid = Grid.around(volume.grid.corners(), SPACING_MM)
    image = sitk.Resample(volume.to_image(), grid.apply_to(sitk.Image(list(grid.size), sitk.sitkUInt8)),
                          sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)  # fmt: skip
    return Volume(sitk.GetArrayFromImage(image), grid)


def composed_map(labels: Volume, seed: int, name: str) -> TissueMap:
    """A label map with what it leaves out: a torso's rest, or for a liver alone the torso of phantom `seed`."""
    if int((labels.array > 3).sum()) > _TORSO_VOXELS:
        return torso_map(labels, name)
    return with_real_liver(phantom_map(seed), labels, name)


def with_real_liver(phantom: TissueMap, labels: Volume, name: str) -> TissueMap:
    """The phantom's torso, stretched until its liver's box has the real liver's extent, with the real liver in it."""
    real = np.isin(labels.array, (1, 2, 3))
    lookup = np.zeros(256, dtype=np.uint8)
    for value in (1, 2, 3):
        lookup[value] = CODE[LABEL_TISSUES[value]]
    box, own = _box(real), _box(phantom.liver)
    ratio = [np.clip((b.stop - b.start) / (o.stop - o.start), *_STRETCH) for b, o in zip(box, own, strict=True)]
    index = [np.minimum(np.arange(int(n * r)) / r, n - 1).astype(int)
             for n, r in zip(phantom.tissues.shape, ratio, strict=True)]  # fmt: skip
    torso = phantom.tissues[np.ix_(*index)]

    # The nearest other tissue grows over the place of the phantom's own liver.
    former = np.isin(torso, LIVER_TISSUES)
    torso[former] = _nearest(torso, ~former)[former]
    start = []
    for kept, former_part in zip(box, _box(former), strict=True):  # the middles of the two boxes on each other
        start.append(round((former_part.start + former_part.stop - (kept.stop - kept.start)) / 2))
    place = tuple(slice(max(0, s), min(n, s + b.stop - b.start))
                  for s, b, n in zip(start, box, torso.shape, strict=True))  # fmt: skip
    part = tuple(slice(b.start + p.start - s, b.start + p.stop - s) for s, b, p in zip(start, box, place, strict=True))
    view = torso[place]
    inside = real[part] & (view != CODE["air"])
    view[inside] = lookup[labels.array[part][inside]]
    _add_vessels(torso, name)
    return TissueMap(name, torso, "liver")


def torso_map(labels: Volume, name: str) -> TissueMap:
    """A map of many organs with what it leaves out: skin, fat, muscle, the shell of bones."""
    lookup = np.zeros(256, dtype=np.uint8)
    for value, tissue in LABEL_TISSUES.items():
        lookup[value] = CODE[tissue]
    lookup[3] = CODE["blood"]  # in the maps of whole torsos it is the portal vein outside the liver
    tissues = lookup[labels.array]
    known = sitk.GetImageFromArray((labels.array > 0).astype(np.uint8))
    # Nearly convex slice by slice, then a layer of fat: the label maps say nothing of the body's outline.
    coarse = sitk.ConstantPad(sitk.BinShrink(sitk.Cast(known, sitk.sitkFloat32), [4, 4, 4]) > 0.02, [24] * 3, [24] * 3)
    coarse = sitk.BinaryDilate(sitk.BinaryMorphologicalClosing(coarse, [20, 20, 4]), [2, 2, 0])
    body = sitk.Resample(coarse, known, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    body = (sitk.GetArrayFromImage(body) > 0.5).astype(np.uint8)
    for z in range(body.shape[0]):
        body[z] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(body[z])))
    depth = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(body), True, False, False)
    )  # voxels
    rng = np.random.default_rng(len(name))
    noise = sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(rng.normal(size=body.shape).astype(np.float32)), 4.0)
    )
    free = (labels.array == 0) & (body > 0)
    tissues[free] = np.where(noise[free] > 0.3 * noise.std(), CODE["muscle"], CODE["visceral fat"])
    tissues[free & (depth < 5)] = CODE["fat"]
    tissues[free & (depth < 1)] = CODE["skin"]
    bone = tissues == CODE["marrow"]
    core = sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(bone.astype(np.uint8)), [1, 1, 1])) > 0
    tissues[bone & ~core] = CODE["cortical bone"]
    _add_vessels(tissues, name)
    return TissueMap(name, tissues, "torso")


def _add_vessels(tissues: np.ndarray, name: str) -> None:
    """Portal and hepatic veins made up, in place, in a liver whose label map has none.

    Without them a network learns that whatever is dark in a real liver is a tumour.
    """
    liver = np.isin(tissues, LIVER_TISSUES)
    if (tissues == CODE["liver vessel"]).sum() > _VESSEL_SHARE * liver.sum():
        return
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    canvas = Canvas(Grid(tissues.shape[::-1], (SPACING_MM,) * 3, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel())))
    core = sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(liver.astype(np.uint8)), [2, 2, 2])) > 0
    points = SPACING_MM * np.argwhere(core)[:, ::-1].astype(float)
    if not len(points):
        return
    low, high = np.percentile(points, [2, 98], axis=0)
    segments: list[Segment] = []
    for place, tips, radius in _TREES:
        wanted = 0.5 * (low + high) + (high - low) * (np.array(place) + rng.normal(0, 0.04, 3))
        root = points[np.argmin(np.square(points - wanted).sum(1))]
        targets = rng.choice(points, min(len(points), int(tips * rng.uniform(0.7, 1.3))), replace=False)
        wide = radius * rng.uniform(0.7, 1.15)
        segments += vessel_tree(root, targets, root_radius=wide, tip_radius=1.1, rng=rng)
    region = canvas.around(points, 4.0)
    view = tissues[region.slices]
    view[(canvas.capsules(region, segments) < 0) & (view == CODE["liver"])] = CODE["liver vessel"]


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    found = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        found.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(found)


def _nearest(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """For each voxel the value of the nearest valid one."""
    seeds = np.zeros(values.shape, dtype=np.uint16)
    seeds[valid] = values[valid].astype(np.uint16) + 1
    image = sitk.GetImageFromArray(seeds)
    filter_ = sitk.DanielssonDistanceMapImageFilter()
    filter_.Execute(image)
    return (sitk.GetArrayFromImage(filter_.GetVoronoiMap()).astype(np.int32) - 1).clip(0).astype(values.dtype)
