"""One patient's anatomy, drawn once on a fine grid in the MR frame: CT and MR signal, liver and tumour surfaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..volumes import Grid, Volume
from . import organs
from .body import Body, paint_back_muscles, paint_skeleton, paint_thorax, paint_wall
from .contrast import MR_PROTOCOLS, TISSUE_NAMES, Tissue, textures, tissue_table
from .motion import Frame
from .shapes import Canvas, Region
from .tumours import Look, Tumour, choose_looks, place_tumours

# The box in which there is a patient; beyond it there is air.
_LOW, _HIGH = (-174.0, -126.0, -240.0), (174.0, 126.0, 234.0)


@dataclass(frozen=True)
class Anatomy:
    """Everything in one frame, the MR's (of a real CT in the CT's own).

    ct: HU; mr: liver = 1, negative out of phase; both (z, y, x) float32. liver: distance in mm to the whole liver's
    surface (tumours included), negative inside, on its own smaller grid. centre: LPS mm, of the upper abdomen, where
    scans are centred. tissues: (z, y, x) uint8, the number in TISSUE_NAMES of each voxel's tissue, where asked for.
    """

    frame: Frame
    ct: Volume
    mr: Volume
    liver: Volume
    tumours: tuple[Tumour, ...]
    looks: tuple[Look, ...]
    centre: np.ndarray
    tissues: np.ndarray | None = None

    def tumour_distance(self, number: int, spacing_mm: float) -> Volume:
        """Distance to a tumour's surface on a small grid of its own."""
        tumour = self.tumours[number]
        grid = Grid.around(tumour.centre[None], spacing_mm, tumour.reach_mm + 4)
        points = grid.points()
        return Volume(tumour.distance(points[..., 0], points[..., 1], points[..., 2]), grid)


@dataclass(frozen=True)
class Wanted:
    """What a patient shall be. protocol, phase: of contrast.MR_PROTOCOLS and CT_PHASES. visibility: see choose_looks.

    drawn: the diameters were, and may shrink until the tumours fit.
    """

    diameters_mm: Sequence[float] = ()
    drawn: bool = False
    protocol: str = "T1 hepatobiliary"
    phase: str = "portal venous"
    visibility: str | None = None

    def looks(self, seed: int) -> list[Look]:
        return choose_looks(seed, len(self.diameters_mm), MR_PROTOCOLS[self.protocol].tumour, self.visibility)


def paint_tumours(
    canvas: Canvas, tumours: Sequence[Tumour], looks: Sequence[Look], table: Mapping[str, Tissue],
    texture: Mapping[str, np.ndarray],
) -> None:  # fmt: skip
    """In the MR each has its signal; in the CT its texture is the liver's, and what cannot be seen is not painted."""
    liver, texture_of = table["liver"], table["tumour"].mr_texture
    for tumour, look in zip(tumours, looks, strict=True):
        part = canvas.around(tumour.centre[None], tumour.reach_mm + 4)
        distance = tumour.distance(part.x, part.y, part.z)

        def values(layer: str, at: Region, look: Look = look) -> np.ndarray:
            mean, deviation = (liver.hu + look.hu, liver.hu_texture) if layer == "ct" else (look.mr, texture_of)
            return np.float32(mean) + np.float32(deviation) * texture[layer][at.slices]

        canvas.paint(part, distance, values, [layer for layer in ("ct", "mr") if layer == "mr" or look.hu])


def build_anatomy(
    seed: int,
    wanted: Wanted,
    spacing_mm: float,
    check: Callable[[], None] = lambda: None,
    *,
    tissue_map: bool = False,
) -> Anatomy:
    """Draw a phantom. check: called between the organs; may raise to stop. tissue_map: fill in `Anatomy.tissues`."""
    size = tuple(int(np.ceil((b - a) / spacing_mm)) + 1 for a, b in zip(_LOW, _HIGH, strict=True))
    grid = Grid(size, (spacing_mm,) * 3, _LOW)
    canvas = Canvas(grid)
    body = Body(seed)
    table = tissue_table(seed, wanted.protocol, wanted.phase)
    texture = textures(grid, seed)
    canvas.layers = {
        "ct": np.full(grid.shape, table["air"].hu, dtype=np.float32),
        "mr": np.zeros(grid.shape, dtype=np.float32),
    }

    tissues = np.zeros(grid.shape, dtype=np.uint8) if tissue_map else None

    def paint(region: Region, distance: np.ndarray, tissue: str, layers: Sequence[str] = ("ct", "mr")) -> None:
        look = table[tissue]
        if tissues is not None:
            tissues[region.slices][distance < 0] = TISSUE_NAMES.index(tissue)

        def values(layer: str, part: Region) -> np.ndarray:
            mean, deviation = (look.hu, look.hu_texture) if layer == "ct" else (look.mr, look.mr_texture)
            return np.float32(mean) + np.float32(deviation) * texture[layer][part.slices]

        canvas.paint(region, distance, values, layers)

    cavity, above = paint_wall(canvas, body, paint)
    check()
    paint_thorax(canvas, body, cavity, above, paint)
    check()
    paint_back_muscles(canvas, body, paint)
    organs.paint_great_vessels(canvas, body, paint)

    # The liver is shaped first and claimed last of those that press into it.
    region, shape = organs.liver_shape(canvas, body, cavity, above)
    shape = organs.paint_ascites(canvas, body, region, shape, cavity, paint)
    hilum = organs.right_hilum(region, shape)
    fundus = hilum + np.array([-22.0, -62, -34])
    organs.paint_gallbladder(canvas, hilum + np.array([-6.0, -10, -8]), fundus, paint)
    kidneys = organs.place_kidneys(canvas, body, cavity)
    liver = canvas.claim(region, shape, 0.8)
    paint(region, liver, "liver")
    organs.paint_kidneys(kidneys, paint)
    check()

    depth = np.argwhere(liver[::3, ::3, ::3] < -6) * 3
    inside = np.stack(
        [axis.ravel()[depth[:, 2 - i]] for i, axis in enumerate((region.x, region.y, region.z))], axis=1
    ).astype(float)
    segments = organs.liver_vessels(body, inside, hilum)
    tumours = place_tumours(canvas, region, liver, segments, wanted.diameters_mm, seed, may_shrink=wanted.drawn)
    _paint_liver_vessels(canvas, region, liver, segments, tumours, paint)
    looks = wanted.looks(seed)
    paint_tumours(canvas, tumours, looks, table, texture)
    check()

    organs.paint_spleen(canvas, body, cavity, above, paint)
    organs.paint_pancreas(canvas, body, paint)
    organs.paint_stomach(canvas, body, cavity, above, paint)
    check()
    organs.paint_bowel(canvas, body, cavity, paint)
    organs.paint_mesentery(canvas, body, paint)
    check()
    paint_skeleton(canvas, body, paint)
    return Anatomy(
        body,
        Volume(canvas.layers["ct"], grid),
        Volume(canvas.layers["mr"], grid),
        Volume(np.ascontiguousarray(liver), canvas.grid_of(region)),
        tuple(tumours),
        tuple(looks),
        np.zeros(3),
        tissues,
    )


def _paint_liver_vessels(
    canvas: Canvas,
    region: Region,
    liver: np.ndarray,
    segments: Sequence[organs.Segment],
    tumours: Sequence[Tumour],
    paint: Callable[[Region, np.ndarray, str], None],
) -> None:
    """Both trees, where they run in the liver and outside its tumours, and the portal trunk below it."""
    tree = canvas.capsules(region, segments)
    for tumour in tumours:
        reach = tumour.reach_mm + 4
        found = canvas.part_of(region, tumour.centre - reach, tumour.centre + reach)
        if found:
            part, local = found
            np.maximum(tree[local], 1.0 - tumour.distance(part.x, part.y, part.z), out=tree[local])
    inside = np.maximum(tree, liver + 1.5)
    paint(region, inside, "liver vessel")
    trunk = canvas.capsules(region, segments[:2])
    trunk = canvas.claim(region, trunk, 0.5)
    paint(region, trunk, "blood")
