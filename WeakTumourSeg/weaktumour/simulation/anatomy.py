"""One patient's anatomy, drawn once on a fine grid in the MR frame: CT and MR signal, liver and tumour surfaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..volumes import Grid, Volume
from . import organs
from .body import Body, paint_back_muscles, paint_skeleton, paint_thorax, paint_wall
from .contrast import TISSUE_NAMES, textures, tissue_table
from .shapes import Canvas, Region
from .tumours import Tumour, place_tumours

# The box in which there is a patient; beyond it there is air.
_LOW, _HIGH = (-174.0, -126.0, -240.0), (174.0, 126.0, 234.0)


@dataclass(frozen=True)
class Anatomy:
    """Everything in the MR frame. ct: HU, mr: liver = 1, both (z, y, x) float32 on one grid.

    liver: distance in mm to the whole liver's surface (tumours included), negative inside, on its own smaller grid.
    tissues: (z, y, x) uint8, the number in TISSUE_NAMES of each voxel's tissue, where asked for.
    """

    body: Body
    ct: Volume
    mr: Volume
    liver: Volume
    tumours: tuple[Tumour, ...]
    tissues: np.ndarray | None = None

    def tumour_distance(self, number: int, spacing_mm: float) -> Volume:
        """Distance to a tumour's surface on a small grid of its own."""
        tumour = self.tumours[number]
        grid = Grid.around(tumour.centre[None], spacing_mm, tumour.reach_mm + 4)
        points = grid.points()
        return Volume(tumour.distance(points[..., 0], points[..., 1], points[..., 2]), grid)


def build_anatomy(
    seed: int,
    diameters_mm: Sequence[float],
    spacing_mm: float,
    check: Callable[[], None] = lambda: None,
    *,
    tissue_map: bool = False,
) -> Anatomy:
    """Draw a patient. check: called between the organs; may raise to stop. tissue_map: fill in `Anatomy.tissues`."""
    size = tuple(int(np.ceil((b - a) / spacing_mm)) + 1 for a, b in zip(_LOW, _HIGH, strict=True))
    grid = Grid(size, (spacing_mm,) * 3, _LOW)
    canvas = Canvas(grid)
    body = Body(seed)
    table = tissue_table(seed)
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
    tumours = place_tumours(canvas, region, liver, segments, diameters_mm, seed)
    _paint_liver_vessels(canvas, region, liver, segments, tumours, paint)
    for tumour in tumours:
        part = canvas.around(tumour.centre[None], tumour.reach_mm + 4)
        # In the CT a tumour is liver parenchyma and nothing else, texture included.
        paint(part, tumour.distance(part.x, part.y, part.z), "tumour", ("mr",))
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
        Volume(np.maximum(canvas.layers["mr"], 0), grid),
        Volume(np.ascontiguousarray(liver), canvas.grid_of(region)),
        tuple(tumours),
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
