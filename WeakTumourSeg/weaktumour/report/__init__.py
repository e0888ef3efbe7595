"""report.html: one self-contained page on which an interventional radiologist judges a result.

`write_report` takes volumes and the content of result.json; `pictures` cuts slices and contours, `panels` stacks them
into rows of pictures, `page` writes words and tables. No input's name or path reaches the page (`wording`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..volumes import Volume
from . import page, panels
from .pictures import Extent, PictureFiles, extent_of
from .wording import Wording

_LARGEST_SHOWN = 12  # tumours with pictures; the others are listed, so that the page stays small


@dataclass(frozen=True)
class ReportData:
    """What the page is made from. Volumes are shown in world space, so MR and labels may lie on any grid."""

    ct: Volume  # Hounsfield units
    mr_before: Volume  # the MR with the initial transform only
    mr_after: Volume  # the registered MR (mr_on_ct)
    labels: Volume  # ct_labels
    label_names: dict[int, str]
    labels_before: Volume  # the MR labels with the initial transform only
    field: Any  # weaktumour.deformation.DisplacementField: .grid and .displacement_mm (z, y, x, 3), LPS mm
    result: dict[str, Any]  # content of result.json
    truth_labels: Volume | None = None  # a known truth on the CT, drawn dashed
    probability: Volume | None = None  # that a voxel of the CT is tumour


def write_report(path: str | Path, data: ReportData, progress: Callable[[float], None] = lambda fraction: None) -> None:
    """Write report.html. Picture files pass through the page's folder and are gone at the end.

    progress: called with the share done (0 to 1); what it raises (Cancelled) goes through.
    """
    path = Path(path)
    wording = Wording(data.result, data.label_names)
    scene = _scene(data, PictureFiles(path.parent))
    tumours = data.result["tumours"]
    labels = _around_liver(data.labels, scene)
    pictured = sorted(tumours, key=lambda tumour: -tumour["volume_mm3"])[:_LARGEST_SHOWN]
    cards = []
    for number, tumour in enumerate(tumours):
        progress(number / (len(tumours) + 1))
        pictures = _tumour_pictures(scene, labels, tumour) if tumour in pictured else ""
        cards.append(page.tumour_card(tumour, scene.tumour_colours[tumour["label"]], pictures, wording))
    progress(len(tumours) / (len(tumours) + 1))
    overview = _overview_pictures(scene)
    path.write_text(page.page(data.result, cards, overview, scene, wording), encoding="utf-8")
    progress(1.0)


def _scene(data: ReportData, files: PictureFiles) -> panels.Scene:
    roles = {int(value): label["role"] for value, label in data.result["labels"].items()}
    tumours = [tumour["label"] for tumour in data.result["tumours"]]
    colours = {value: panels.TUMOUR_COLOURS[i % len(panels.TUMOUR_COLOURS)] for i, value in enumerate(tumours)}
    liver_values = tuple(value for value, role in roles.items() if role in ("liver", "tumour"))
    liver = extent_of(data.labels, liver_values)
    body = panels.body_points(data.ct, data.field.grid)
    focus = liver.box_mm if liver else data.ct.grid.corners()
    return panels.Scene(
        ct=data.ct,
        mr_before=data.mr_before,
        mr_after=data.mr_after,
        labels_before=data.labels_before,
        labels_after=data.labels,
        labels_truth=data.truth_labels,
        liver_values=liver_values,
        liver=liver,
        tumour_colours=colours,
        deformation=panels.deformation_of(data.field.displacement_mm, data.field.grid, body, focus),
        mr_levels=panels.mr_window(data.mr_after, body),
        files=files,
        likely=data.probability,
        places={
            tumour["label"]: (np.asarray(tumour["centroid_lps_mm"]), np.asarray(tumour["covariance_mm2"]))
            for tumour in data.result["tumours"]
            if tumour["covariance_mm2"] is not None and tumour["centroid_lps_mm"] is not None
        },
    )


def _around_liver(labels: Volume, scene: panels.Scene) -> Volume:
    """The part of the label map that holds the liver and so every tumour; searching it is quick."""
    if scene.liver is None:
        return labels
    grid, block = labels.grid.crop_to(scene.liver.box_mm, 1.0)
    return Volume(labels.array[block], grid)


def _tumour_pictures(scene: panels.Scene, labels: Volume, tumour: dict[str, Any]) -> str:
    extent = extent_of(labels, (tumour["label"],))
    if extent is None:
        return '<p class="none">No voxel of this tumour lies inside the CT, so there is nothing to show.</p>'
    field_mm = max(panels.TUMOUR_FIELD_MM, _widest(extent) + 80.0)
    # The planes go through tumour even where its centroid does not (a crescent, several pieces).
    hidden, rows = panels.region_rows(
        scene, f"t{tumour['label']}", extent.anchor_mm, field_mm, panels.PICTURE_PIXELS, tumour=tumour["label"]
    )
    return hidden + page.picture_rows(rows)


def _overview_pictures(scene: panels.Scene) -> str:
    if scene.liver is None:
        return '<p class="none">No liver lies inside the CT.</p>'
    centre, field_mm = scene.liver.box_mm.mean(axis=0), _widest(scene.liver) + 50.0
    hidden, rows = panels.region_rows(scene, "liver", centre, field_mm, panels.OVERVIEW_PIXELS, tumour=None)
    return hidden + page.picture_rows(rows)


def _widest(extent: Extent) -> float:
    """Longest side of the box along the patient axes, mm."""
    return float(np.ptp(extent.box_mm, axis=0).max())
