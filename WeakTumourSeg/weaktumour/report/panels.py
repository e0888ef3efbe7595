"""Rows of pictures in three planes: CT with the MR over it before and after, each alone, deformation, checkerboard.

A picture is an inline SVG that stacks shared layers: grey JPEGs (stored once, reused by every row), contours as paths,
letters and scale bar as text. The MR's colour and opacity are the browser's work, so the reader can change them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import numpy as np

from ..volumes import Grid, Volume
from .pictures import (
    PLANES,
    Extent,
    PictureFiles,
    View,
    colour_map,
    contours,
    depth_inside,
    ellipse_level,
    slice_mask,
    slice_vectors,
    slice_volume,
    svg_path,
    window,
)

LIVER_COLOUR = "#43e08b"
TUMOUR_COLOURS = ("#ff5bd7", "#4cc9ff", "#ffe34d", "#b79bff", "#ff7a6b", "#7df5dc", "#c8ff5b", "#ffb3e6")
TRUTH_COLOUR = "#ffffff"
CT_WINDOW_HU = (-140.0, 260.0)  # level 60, width 400
PICTURE_PIXELS = 320
OVERVIEW_PIXELS = 400
# Outer to inner, each with dashes of its own: they often lie close together.
_LIKELY = {0.05: "1.5 3", 0.5: "6 3", 0.95: "none"}
TUMOUR_FIELD_MM = 160.0
_BODY_SAMPLES = 20_000


@dataclass(frozen=True)
class Deformation:
    """What a displacement field holds beyond its best-fitting affine map; magnitudes in mm inside the body."""

    grid: Grid
    displacement_mm: np.ndarray  # (z, y, x, 3), the whole displacement, LPS
    affine: np.ndarray  # (4, 3): [x y z 1] @ affine = affine part of the displacement, LPS mm
    median_mm: float
    p95_mm: float
    max_mm: float
    scale_mm: float  # upper end of the colour scale

    def magnitude(self, view: View) -> np.ndarray:
        """(height, width) mm."""
        width, height = view.size
        pixels = np.stack(np.broadcast_arrays(np.arange(width), np.arange(height)[:, None], 0), axis=-1)
        points = view.grid.index_to_world(pixels)
        affine_part = points @ self.affine[:3] + self.affine[3]
        return np.linalg.norm(slice_vectors(self.displacement_mm, self.grid, view) - affine_part, axis=-1)


def body_points(ct: Volume, grid: Grid) -> np.ndarray:
    """(n, 3) LPS mm: points of a grid, thinned to at most about 20 000, that lie in the CT's body (above -300 HU)."""
    step = max(1, math.ceil((np.prod(grid.size) / (4 * _BODY_SAMPLES)) ** (1 / 3)))
    z, y, x = np.meshgrid(*(np.arange(n)[::step] for n in grid.shape), indexing="ij")
    points = grid.index_to_world(np.column_stack((x.ravel(), y.ravel(), z.ravel())))
    values, found = nearest_values(ct, points)
    return points[found][values > -300]


def nearest_values(volume: Volume, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel values nearest to those of the points that lie inside the volume, and which they are (bool per point)."""
    index = np.rint(volume.grid.world_to_index(points_mm)).astype(int)
    found = np.all((index >= 0) & (index < np.asarray(volume.grid.size)), axis=1)
    x, y, z = index[found].T
    return volume.array[z, y, x], found


def deformation_of(displacement: np.ndarray, grid: Grid, points_mm: np.ndarray, focus_mm: np.ndarray) -> Deformation:
    """Split a displacement field (z, y, x, 3; LPS mm) by a least-squares affine fit at points of its grid in the body.

    focus_mm: (n, 3) points whose box (the liver's) the colour scale has to cover.
    """
    if len(points_mm) < 16:
        points_mm = grid.corners(0.0)
    index = np.rint(grid.world_to_index(points_mm)).astype(int)
    moved = displacement[index[:, 2], index[:, 1], index[:, 0]].astype(float)
    homogeneous = np.column_stack((grid.index_to_world(index), np.ones(len(index))))
    affine = np.linalg.lstsq(homogeneous, moved, rcond=None)[0]
    rest = np.linalg.norm(moved - homogeneous @ affine, axis=1)
    median, p95, p99 = np.percentile(rest, (50, 95, 99))
    in_focus = np.all((points_mm >= focus_mm.min(0)) & (points_mm <= focus_mm.max(0)), axis=1)
    scale = _round_up(max(1.0, float(rest[in_focus].max(initial=p99))))
    return Deformation(grid, displacement, affine, float(median), float(p95), float(rest.max()), scale)


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def mr_window(mr: Volume, points_mm: np.ndarray) -> tuple[float, float]:
    """Grey levels between the 1st and 99.9th percentile of the MR in the body; zeros are taken for no data."""
    values, _ = nearest_values(mr, points_mm)
    values = values[values != 0]
    if values.size < 16:
        values = np.asarray(mr.array[:: max(1, mr.array.shape[0] // 8)]).ravel()
    low, high = np.percentile(values, (1, 99.9))
    return float(low), float(max(high, low + 1e-6))


@dataclass(frozen=True)
class Scene:
    """Everything a picture can show, in world space; the volumes may lie on any grids."""

    ct: Volume
    mr_before: Volume
    mr_after: Volume
    labels_before: Volume
    labels_after: Volume
    labels_truth: Volume | None
    liver_values: tuple[int, ...]  # whole liver: liver and tumours
    liver: Extent | None  # where it lies in labels_after
    tumour_colours: Mapping[int, str]
    deformation: Deformation
    mr_levels: tuple[float, float]
    files: PictureFiles
    likely: Volume | None = None  # probability of tumour on the CT
    places: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # centroid, covariance by tumour


@dataclass
class Row:
    """One row: a title, a line of explanation, three pictures."""

    title: str
    text: str
    pictures: list[str] = field(default_factory=list)
    extra: str = ""  # the colour bar


def region_rows(
    scene: Scene, name: str, centre_mm: np.ndarray, field_mm: float, pixels: int, *, tumour: int | None
) -> tuple[str, list[Row]]:
    """The shared layers (hidden SVG definitions) and the rows of one region.

    name: an identifier that is unique in the page. tumour: the one in focus; None draws the overview (checkerboard).
    """
    before = Row("Before", "CT in grey, the MRI and its labels over it as loaded (or with the initial transform).")
    after = Row("After", "The same with the registration. Press and hold a picture to see it before.")
    ct = Row("CT alone", "The labels carried over, on the CT alone.")
    mr = Row("MRI alone", "The registered MRI in the same planes, with the same labels.")
    board = Row("Checkerboard", "CT and registered MRI in turn: edges should run on across the squares.")
    local = Row(
        "Deformation",
        "How far tissue is moved locally: length of the displacement without its best-fitting affine map.",
    )
    local.extra = colour_bar(scene.deformation)
    place = Row(
        "Position",
        "On the CT: where the tumour lies with a probability of 5 (dotted), 50 (dashed) and 95 % (solid), and "
        "the ellipse that holds its centre in 95 of 100 simulated cases (white).",
    )
    assessed = tumour in scene.places and scene.likely is not None
    definitions = []
    for plane in PLANES:
        view = View(plane, tuple(float(v) for v in centre_mm), (field_mm, field_mm), field_mm / pixels)
        layers = _Layers(scene, view, f"{name}-{plane}")
        definitions.append(layers.definitions())
        if assessed:
            definitions.append(layers.place_definition(tumour))
            place.pictures.append(layers.draw("ct", "lines-place", title="position"))
        note = "" if tumour is None or layers.crosses(scene.labels_before, tumour) else "tumour not in this plane"
        before.pictures.append(layers.draw("ct", "mr-before", "lines-before", title="before", note=note))
        after.pictures.append(
            layers.draw(
                "ct", "mr-after", "lines-after", "lines-truth", title="after", press=("mr-before", "lines-before")
            )
        )
        ct.pictures.append(layers.draw("ct", "lines-after", "lines-truth", title="CT"))
        mr.pictures.append(layers.draw("mr-grey", "lines-after", "lines-truth", title="MRI, registered"))
        board.pictures.append(layers.draw("ct", "mr-squares", "lines-after", title="CT / MRI"))
        local.pictures.append(layers.draw("local", "lines-after", title="deformation"))
    rows = [before, after, ct, mr, local] if tumour is not None else [before, after, board, local]
    if assessed:
        rows.insert(2, place)
    hidden = f'<svg class="store" width="0" height="0" aria-hidden="true"><defs>{"".join(definitions)}</defs></svg>'
    return hidden, rows


class _Layers:
    """The layers of one view, each defined once and used by several pictures."""

    def __init__(self, scene: Scene, view: View, name: str) -> None:
        self._scene, self._view, self._name = scene, view, name
        self._width, self._height = view.size

    # -- definitions ------------------------------------------------------------------------------------------------
    def definitions(self) -> str:
        scene, view = self._scene, self._view
        ct = window(slice_volume(scene.ct, view, -1024.0), *CT_WINDOW_HU)
        parts = [self._image("ct", ct)]
        for name, mr in (("before", scene.mr_before), ("after", scene.mr_after)):
            parts.append(self._image(f"mr-{name}-grey", window(slice_volume(mr, view, 0.0), *scene.mr_levels)))
        parts.append(self._image("local", colour_map(scene.deformation.magnitude(view) / scene.deformation.scale_mm)))
        edge = self._path([depth_inside(scene.ct.grid, view)], 0.0, 'class="edge"')
        parts.append(self._group("lines-before", edge + self._contours(scene.labels_before)))
        parts.append(self._group("lines-after", edge + self._contours(scene.labels_after)))
        truth = self._contours(scene.labels_truth, truth=True) if scene.labels_truth is not None else ""
        parts.append(self._group("lines-truth", truth))
        parts.append(f'<clipPath id="{self._name}-squares"><path d="{self._squares()}"/></clipPath>')
        return "".join(parts)

    def place_definition(self, tumour: int) -> str:
        """How sure a tumour's place is."""
        scene, view = self._scene, self._view
        colour = scene.tumour_colours[tumour]
        likely = slice_volume(scene.likely, view, 0.0)
        parts = [
            self._path([likely], level, f'class="likely" stroke="{colour}" stroke-dasharray="{dashes}"')
            for level, dashes in _LIKELY.items()
        ]
        parts.append(self._path([ellipse_level(*scene.places[tumour], view)], 0.0, 'class="line" stroke="#fff"'))
        return self._group("lines-place", "".join(parts))

    def _image(self, layer: str, picture: np.ndarray) -> str:
        uri = self._scene.files.jpeg(picture)
        return f'<image id="{self._name}-{layer}" width="{self._width}" height="{self._height}" href="{uri}"/>'

    def _group(self, layer: str, content: str) -> str:
        return f'<g id="{self._name}-{layer}" transform="scale(.1)">{content}</g>'

    def _contours(self, labels: Volume, *, truth: bool = False) -> str:
        scene = self._scene
        drawn = [(scene.liver_values, LIVER_COLOUR)] + [
            ((value,), colour) for value, colour in scene.tumour_colours.items()
        ]
        result = []
        for values, colour in drawn:
            style = f'class="truth" stroke="{TRUTH_COLOUR}"' if truth else f'class="line" stroke="{colour}"'
            result.append(self._path([slice_mask(labels, values, self._view)], 0.5, style))
        return "".join(result)

    def _path(self, masks: list[np.ndarray], level: float, style: str) -> str:
        data = "".join(svg_path(contours(mask, level)) for mask in masks)
        if not data:
            return ""
        casing = "" if 'class="edge"' in style else f'<path class="casing" d="{data}"/>'
        return f'{casing}<path {style} d="{data}"/>'

    def _squares(self, square_mm: float = 25.0) -> str:
        """A checkerboard as a path that fills every other square."""
        side = square_mm / self._view.pixel_mm
        columns, rows = math.ceil(self._width / side), math.ceil(self._height / side)
        cells = [(i, j) for j in range(rows) for i in range(columns) if (i + j) % 2]
        return "".join(f"M{i * side:.1f} {j * side:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z" for i, j in cells)

    def crosses(self, labels: Volume, value: int) -> bool:
        return bool(slice_mask(labels, (value,), self._view).max() >= 0.5)

    # -- pictures ---------------------------------------------------------------------------------------------------
    def draw(self, *layers: str, title: str, note: str = "", press: tuple[str, ...] = ()) -> str:
        """One picture. press: the layers shown instead of the MR and contours while the mouse is held on it."""
        content = self._use(layers[0]) if layers[0] != "mr-grey" else self._use("mr-after-grey")
        upper = "".join(self._use(layer) for layer in layers[1:])
        if press:
            content += f'<g class="shown">{upper}</g><g class="held">{"".join(self._use(layer) for layer in press)}</g>'
        else:
            content += upper
        plane = self._view.plane
        label = escape(f"{plane} plane, {title}")
        classes = "picture press" if press else "picture"
        return (
            f'<svg class="{classes}" viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{label}">'
            f"{content}{self._marks(title, note, bool(press))}</svg>"
        )

    def _use(self, layer: str) -> str:
        name = self._name
        if layer in ("mr-before", "mr-after"):
            return f'<g class="mr"><use href="#{name}-{layer}-grey" filter="url(#tint)"/></g>'
        if layer == "mr-squares":
            return f'<use href="#{name}-mr-after-grey" clip-path="url(#{name}-squares)"/>'
        if layer.startswith("lines"):
            return f'<g class="lines"><use href="#{name}-{layer}"/></g>'
        return f'<use href="#{name}-{layer}"/>'

    def _marks(self, title: str, note: str, press: bool) -> str:
        width, height, size = self._width, self._height, self._width * 0.045
        left, right, top, bottom = self._view.letters
        letters = (
            (left, size * 0.7, height / 2),
            (right, width - size * 0.7, height / 2),
            (top, width / 2, size * 1.1),
            (bottom, width / 2, height - size * 0.5),
        )
        text = "".join(f'<text class="letter" x="{x:.1f}" y="{y:.1f}">{letter}</text>' for letter, x, y in letters)
        titles = f'<text x="{size * 0.5:.1f}" y="{size * 1.2:.1f}">{escape(title)}</text>'
        if press:
            held = f'<text class="held" x="{size * 0.5:.1f}" y="{size * 1.2:.1f}">before</text>'
            titles = titles.replace("<text", '<text class="shown"', 1) + held
        if note:
            titles += f'<text class="note" x="{size * 0.5:.1f}" y="{size * 2.4:.1f}">{escape(note)}</text>'
        bar_mm = 20 if self._width * self._view.pixel_mm < 250 else 50
        bar, x, y = bar_mm / self._view.pixel_mm, size * 0.6, height - size * 0.8
        scale = (
            f'<path class="scale" d="M{x:.1f} {y - size * 0.25:.1f}v{size * 0.5:.1f}m0-{size * 0.25:.1f}h{bar:.1f}'
            f'm0-{size * 0.25:.1f}v{size * 0.5:.1f}"/><text x="{x:.1f}" y="{y - size * 0.5:.1f}">{bar_mm} mm</text>'
        )
        return f'<g class="marks" font-size="{size:.1f}">{text}{titles}{scale}</g>'


def definitions() -> str:
    """What all pictures share: the MR's tint (bright becomes opaque orange, dark transparent) and the colour scale."""
    stops = "".join(
        f'<stop offset="{share:.3f}" stop-color="rgb({r:.0f},{g:.0f},{b:.0f})"/>'
        for share, (r, g, b) in ((s, colour_map(np.array(s)) * 255) for s in np.linspace(0, 1, 9))
    )
    tint = "0 0 0 0 1  .6 0 0 0 .33  .55 0 0 0 0  1.15 0 0 0 0"
    return (
        '<svg class="store" width="0" height="0" aria-hidden="true"><defs>'
        '<filter id="tint" x="0" y="0" width="1" height="1" color-interpolation-filters="sRGB">'
        f'<feColorMatrix type="matrix" values="{tint}"/></filter>'
        f'<linearGradient id="scale">{stops}</linearGradient></defs></svg>'
    )


def colour_bar(deformation: Deformation) -> str:
    """The deformation's colour scale in mm as a small SVG."""
    top = deformation.scale_mm
    clipped = "\u2265 " if deformation.max_mm > top else ""
    return (
        '<svg class="bar" viewBox="0 0 130 30" role="img" aria-label="colour scale">'
        '<rect x="1" y="1" width="128" height="12" rx="2" fill="url(#scale)"/>'
        f'<text x="1" y="26">0</text><text x="65" y="26" text-anchor="middle">{top / 2:g}</text>'
        f'<text x="129" y="26" text-anchor="end">{clipped}{top:g} mm</text></svg>'
    )
