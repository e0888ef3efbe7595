"""Anatomies of other sources than the phantom: a tissue map (a real liver in a phantom's torso), or a real CT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..volumes import Grid, Volume
from .anatomy import Anatomy, Wanted, paint_tumours
from .contrast import TISSUE_NAMES, textures, tissue_table
from .motion import MappedFrame
from .shapes import Canvas, random_stream, signed_distance
from .tissue_maps import CODE, LIVER_TISSUES, SPACING_MM, TissueMap
from .tumours import place_tumours

_EDGE_MM = 1.2  # a tissue map's steps are smoothed over this
_BONES = ("cortical bone", "marrow", "disc", "cartilage")
_BODY_HU = -300.0
_BONE_HU = 220.0
# Attenuation in the portal-venous phase and the tissue whose MR signal it is given, where a CT tells no more.
_SIGNAL_OF_HU = ((-1000, "air"), (-700, "lung"), (-300, "lung"), (-120, "visceral fat"), (-60, "visceral fat"),
                 (5, "fluid"), (25, "fluid"), (52, "muscle"), (80, "bowel wall"), (122, "spleen"), (156, "blood"),
                 (180, "kidney"), (260, "marrow"), (420, "marrow"), (800, "cortical bone"))  # fmt: skip


def anatomy_of_map(
    tissue_map: TissueMap, seed: int, wanted: Wanted, spacing_mm: float, check: Callable[[], None] = lambda: None
) -> Anatomy:
    """A tissue map painted: every tissue its mean and texture, edges with partial volume; tumours are new ones."""
    tissues = tissue_map.tissues.copy()
    tissues[tissues == CODE["tumour"]] = CODE["liver"]
    liver = np.isin(tissues, LIVER_TISSUES)
    index = np.argwhere(liver)
    middle = 0.5 * (index.min(0) + index.max(0))[::-1] * SPACING_MM
    # The liver's middle lies where a phantom's does; texture and bias are defined about the origin.
    origin = np.array([-35.0, -10.0, 12.0]) - middle
    map_grid = Grid(tissues.shape[::-1], (SPACING_MM,) * 3, tuple(origin))
    grid = Grid.around(map_grid.corners(), spacing_mm)
    canvas = Canvas(grid)
    table = tissue_table(seed, wanted.protocol, wanted.phase)
    texture = textures(grid, seed)
    check()

    region, distance = _liver_distance(canvas, Volume(liver, map_grid), smooth=True)
    tumours = place_tumours(canvas, region, distance, [], wanted.diameters_mm, seed, may_shrink=wanted.drawn)
    for tumour in tumours:  # vessels are pushed aside
        part = Canvas(map_grid).around(tumour.centre[None], tumour.reach_mm + 4)
        view = tissues[part.slices]
        view[(tumour.distance(part.x, part.y, part.z) < 1) & (view == CODE["liver vessel"])] = CODE["liver"]
    check()
    looks = [table[name] for name in TISSUE_NAMES]
    for layer, kind in (("ct", "hu"), ("mr", "mr")):
        mean, deviation = (
            _on(grid, Volume(np.array([getattr(look, name) for look in looks], dtype=np.float32)[tissues], map_grid))
            for name in (kind, f"{kind}_texture")
        )
        canvas.layers[layer] = mean + deviation * texture[layer]
        check()
    tumour_looks = wanted.looks(seed)
    paint_tumours(canvas, tumours, tumour_looks, table, texture)
    body = tissues != CODE["air"]
    frame = MappedFrame.of(body, np.isin(tissues, [CODE[n] for n in _BONES]), liver, map_grid, seed)
    return Anatomy(
        frame,
        Volume(canvas.layers["ct"], grid),
        Volume(canvas.layers["mr"], grid),
        Volume(distance, canvas.grid_of(region)),
        tuple(tumours),
        tuple(tumour_looks),
        np.array([frame.origin[0], frame.origin[1], 0.0]),
    )


def anatomy_of_ct(
    ct: Volume, liver: np.ndarray, seed: int, wanted: Wanted, spacing_mm: float,
    check: Callable[[], None] = lambda: None,
) -> Anatomy:  # fmt: skip
    """A real CT with the MR that its tissues would give; tumours are in the MR alone, and the CT stays as it is.

    liver: (z, y, x) bool on the CT's grid. Raises InputError where there is no liver, or no body round it.
    """
    if liver.shape != ct.grid.shape or not liver.any():
        raise InputError("Simulation: no liver among the labels; give the CT's own label map, 1 = liver.")
    corners = ct.grid.corners()
    centre = 0.5 * (corners.min(0) + corners.max(0))
    grid = Grid.around(corners, spacing_mm)
    canvas = Canvas(grid)
    table = tissue_table(seed, wanted.protocol, wanted.phase)
    # Defined about the origin, which a scanner's table may put far away.
    texture = textures(Grid(grid.size, grid.spacing, tuple(np.asarray(grid.origin) - centre)), seed)
    values = ct.resample_to(grid, outside=-1000.0)
    check()
    # Smooth, lest the CT's noise show in the MR and lead every comparison of the two.
    image = sitk.SmoothingRecursiveGaussian(sitk.Median(values.to_image(), [1, 1, 1]), 1.0)
    smooth = sitk.GetArrayFromImage(image)
    check()
    body = _body(values, smooth)
    rng = random_stream(seed, "signal of HU")
    hu, names = zip(*_SIGNAL_OF_HU, strict=True)
    signal = [table[name].mr * np.exp(rng.normal(0, 0.08)) for name in names]
    mr = np.interp(smooth, hu, signal).astype(np.float32)
    mr[~body] = 0.0
    region, distance = _liver_distance(canvas, Volume(liver, ct.grid), smooth=False)
    inside = smooth[region.slices]
    level = float(np.median(inside[distance < -4])) if np.any(distance < -4) else float(np.median(inside[distance < 0]))
    vessel = 1 / (1 + np.exp(np.clip((level + 22 - inside) / 5, -50, 50)))
    of_liver = 1 + (table["liver vessel"].mr - 1) * vessel
    share = canvas.occupancy(distance)
    view = mr[region.slices]
    view += share * (of_liver - view)
    canvas.layers = {"ct": values.array.astype(np.float32), "mr": mr + table["liver"].mr_texture * texture["mr"] * body}
    # The CT goes on showing its large vessels where they are: no tumour there.
    thick = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray((vessel > 0.5).astype(np.uint8)), [2, 2, 2])
    free = np.where(sitk.GetArrayFromImage(thick) > 0, np.maximum(distance, 1), distance)
    tumours = place_tumours(canvas, region, free, [], wanted.diameters_mm, seed, may_shrink=wanted.drawn)
    looks = wanted.looks(seed)
    paint_tumours(canvas, tumours, looks, table, texture)
    check()
    frame = MappedFrame.of(body, body & (smooth > _BONE_HU), _on_grid(liver, ct.grid, grid), grid, seed)
    index = np.argwhere(distance < 0)
    of_region = canvas.grid_of(region)
    middle = of_region.index_to_world(0.5 * (index.min(0) + index.max(0))[::-1])
    return Anatomy(
        frame,
        Volume(canvas.layers["ct"], grid),
        Volume(canvas.layers["mr"], grid),
        Volume(distance, of_region),
        tuple(tumours),
        tuple(looks),
        np.array([frame.origin[0], frame.origin[1], middle[2]]),
    )


# -- pieces -------------------------------------------------------------------------------------------------------
def _liver_distance(canvas: Canvas, liver: Volume, *, smooth: bool) -> tuple:
    """The liver's region of the canvas and the distance in it to the surface."""
    points = liver.grid.index_to_world(np.argwhere(liver.array)[:, ::-1])
    region = canvas.around(points, 14.0)
    part, slices = liver.grid.crop_to(points, 20.0)
    image = Volume(signed_distance(liver.array[slices], part.spacing), part).to_image()
    if smooth:
        image = sitk.SmoothingRecursiveGaussian(image, _EDGE_MM)
    grid = canvas.grid_of(region)
    found = sitk.Resample(image, list(grid.size), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, grid.origin,
                          grid.spacing, grid.direction, 20.0, sitk.sitkFloat32)  # fmt: skip
    return region, sitk.GetArrayFromImage(found)


def _on(grid: Grid, volume: Volume) -> np.ndarray:
    image = sitk.SmoothingRecursiveGaussian(volume.to_image(), _EDGE_MM)
    resampled = sitk.Resample(image, list(grid.size), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear,
                              grid.origin, grid.spacing, grid.direction, float(volume.array[0, 0, 0]),
                              sitk.sitkFloat32)  # fmt: skip
    return sitk.GetArrayFromImage(resampled)


def _on_grid(mask: np.ndarray, own: Grid, grid: Grid) -> np.ndarray:
    return Volume(mask.astype(np.float32), own).resample_to(grid, antialias=False).array > 0.5


def _body(values: Volume, smooth: np.ndarray) -> np.ndarray:
    """The patient without the table: the largest piece denser than air, thinned and grown, holes filled by slices."""
    inside = sitk.GetImageFromArray((smooth > _BODY_HU).astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(inside, [3, 3, 0])
    largest = sitk.Equal(sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True), 1)
    body = sitk.GetArrayFromImage(largest)
    for k in range(len(body)):
        body[k] = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(body[k])))
    return body > 0
