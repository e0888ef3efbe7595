"""Anatomies to learn from: maps that say for each voxel which tissue it is, and nothing of how it looks.

Three kinds: the simulator's phantoms, drawn by seed; real livers set into a phantom's torso that is stretched to fit
(most public label maps hold a liver alone); real torsos. Made once, kept as small files in a folder.
"""

from __future__ import annotations

import json
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .. import simulation
from ..errors import InputError
from ..simulation.anatomy import TISSUE_NAMES, build_anatomy
from ..simulation.shapes import Canvas
from ..simulation.vessels import Segment, vessel_tree
from ..volumes import Grid, Volume, read_volume

SPACING_MM = 2.0
_CODE = {name: code for code, name in enumerate(TISSUE_NAMES)}
LIVER_TISSUES = tuple(_CODE[name] for name in ("liver", "liver vessel", "tumour"))
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
_VERSION = f"{simulation.VERSION}.1"  # of the maps: those of another version are made anew
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

    def write(self, path: Path) -> None:
        # A name of its own: processes that torchrun starts together make the same maps at the same time.
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, tissues=self.tissues, kind=np.array(self.kind), version=np.array(_VERSION))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def read(path: Path) -> TissueMap:
        """Raises InputError where the file is not one of ours."""
        try:
            with path.open("rb") as file:
                content = np.load(file, allow_pickle=False)
                tissues, kind = content["tissues"], str(content["kind"])
        # IndexError: an array that is no archive.
        except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"Anatomies: {path} cannot be read; delete it and start again to make it anew.") from error
        proper = tissues.ndim == 3 and tissues.dtype == np.uint8 and kind in KINDS
        if not proper or not np.any(tissues == _CODE["liver"]) or int(tissues.max()) >= len(TISSUE_NAMES):
            raise InputError(f"Anatomies: {path} holds no tissue map; delete it and start again to make it anew.")
        return TissueMap(path.stem, tissues, kind)


def prepare_anatomies(
    folder: str | Path,
    phantom_seeds: Iterable[int],
    label_maps: Mapping[str, Path],
    *,
    processes: int = 1,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Path]:
    """Make what the folder lacks; return the files asked for.

    phantom_seeds: phantoms; the label map number i is set into the torso of seed i, counted round. report: (made, of).
    Raises InputError where a label map or the folder cannot be used.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Anatomies: {folder} cannot be made ({error.strerror}); choose another folder.") from error
    seeds = list(phantom_seeds)
    jobs: list[tuple[Path, int | None, Path | None]] = [(folder / f"phantom-{seed}.npz", seed, None) for seed in seeds]
    for number, (name, path) in enumerate(sorted(label_maps.items())):
        # Without phantoms of its own a map is set into the torso of its number.
        jobs.append((folder / f"{name}.npz", seeds[number % len(seeds)] if seeds else number, path))
    missing = [job for job in jobs if not _is_current(job[0])]
    if processes > 1 and len(missing) > 1:
        with ProcessPoolExecutor(processes) as pool:
            for done, _ in enumerate(pool.map(_make, missing), start=1):
                report(done, len(missing))
    else:
        for done, job in enumerate(missing, start=1):
            _make(job)
            report(done, len(missing))
    return [job[0] for job in jobs]


def label_maps_in(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Path]:
    """name -> file of a folder of label maps. names: only these. Raises InputError where one is missing or all are."""
    folder = Path(folder)
    found = {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("*.nii.gz"))}
    if not found:
        raise InputError(f"Label maps: {folder} holds no .nii.gz file; give a folder of label maps.")
    if names is None:
        return found
    missing = sorted(set(names) - set(found))
    if missing:
        raise InputError(f"Label maps: {folder} lacks {', '.join(missing[:5])}; give the folder that the split names.")
    return {name: found[name] for name in names}


def read_split(path: str | Path, part: str) -> tuple[list[str], Sequence[int]]:
    """Names of label maps and phantom seeds of one part (train, development, test) of splits.json.

    The file gives seeds as a list, or as the first and the last of a range. Raises InputError.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        maps, seeds = [str(name) for name in content["label_maps"][part]], content["phantoms"][part]
        seeds = (
            range(int(seeds["first"]), int(seeds["last"]) + 1) if isinstance(seeds, dict) else [int(s) for s in seeds]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Splits: {path} does not name the anatomies of the part {part}; restore the file.") from error
    return maps, seeds


def _is_current(path: Path) -> bool:
    """A map of this version; one that cannot be read counts as such, and reading it says so."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return "version" in content and str(content["version"]) == _VERSION
    except FileNotFoundError:
        return False
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        return True


# -- making them --------------------------------------------------------------------------------------------------
def _make(job: tuple[Path, int | None, Path | None]) -> None:
    target, seed, labels = job
    if _is_current(target):  # another process was faster
        return
    if labels is None:
        phantom_map(seed).write(target)
        return
    volume = _read_map(labels)
    if int((volume.array > 3).sum()) > _TORSO_VOXELS:
        torso_map(volume, target.stem).write(target)
    else:
        with_real_liver(phantom_map(seed), volume, target.stem).write(target)


def phantom_map(seed: int) -> TissueMap:
    """A phantom without tumours: those are put in while training."""
    anatomy = build_anatomy(seed, [], SPACING_MM, tissue_map=True)
    return TissueMap(f"phantom-{seed}", anatomy.tissues, "phantom")


def _read_map(path: Path) -> Volume:
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


def with_real_liver(phantom: TissueMap, labels: Volume, name: str) -> TissueMap:
    """The phantom's torso, stretched until its liver's box has the real liver's extent, with the real liver in it."""
    real = np.isin(labels.array, (1, 2, 3))
    lookup = np.zeros(256, dtype=np.uint8)
    for value in (1, 2, 3):
        lookup[value] = _CODE[LABEL_TISSUES[value]]
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
    inside = real[part] & (view != _CODE["air"])
    view[inside] = lookup[labels.array[part][inside]]
    _add_vessels(torso, name)
    return TissueMap(name, torso, "liver")


def torso_map(labels: Volume, name: str) -> TissueMap:
    """A map of many organs with what it leaves out: skin, fat, muscle, the shell of bones."""
    lookup = np.zeros(256, dtype=np.uint8)
    for value, tissue in LABEL_TISSUES.items():
        lookup[value] = _CODE[tissue]
    lookup[3] = _CODE["blood"]  # in the maps of whole torsos it is the portal vein outside the liver
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
    tissues[free] = np.where(noise[free] > 0.3 * noise.std(), _CODE["muscle"], _CODE["visceral fat"])
    tissues[free & (depth < 5)] = _CODE["fat"]
    tissues[free & (depth < 1)] = _CODE["skin"]
    bone = tissues == _CODE["marrow"]
    core = sitk.GetArrayFromImage(sitk.BinaryErode(sitk.GetImageFromArray(bone.astype(np.uint8)), [1, 1, 1])) > 0
    tissues[bone & ~core] = _CODE["cortical bone"]
    _add_vessels(tissues, name)
    return TissueMap(name, tissues, "torso")


def _add_vessels(tissues: np.ndarray, name: str) -> None:
    """Portal and hepatic veins made up, in place, in a liver whose label map has none.

    Without them a network learns that whatever is dark in a real liver is a tumour.
    """
    liver = np.isin(tissues, LIVER_TISSUES)
    if (tissues == _CODE["liver vessel"]).sum() > _VESSEL_SHARE * liver.sum():
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
    view[(canvas.capsules(region, segments) < 0) & (view == _CODE["liver"])] = _CODE["liver vessel"]


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
