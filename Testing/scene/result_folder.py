"""A worker's result folder without a worker: the engine's own writers, a made-up label map and transform."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from weaktumour import result
from weaktumour.labels import name_labels, write_labels_json
from weaktumour.volumes import Grid, Volume, read_volume, write_volume


def tumour(value: int, name: str, **figures: object) -> result.TumourResult:
    return result.TumourResult(value, name, 1234.5, diameter_mm=13.3, centroid_lps_mm=(1.0, 2.0, 3.0), **figures)


def displacementField(grid: Grid) -> sitk.Image:
    """A smooth field (LPS mm) on an oblique lattice of its own, which covers the grid."""
    corners = grid.corners()
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix()
    axes = np.reshape(turn, (3, 3))
    low, high = (corners @ axes).min(0) - 8, (corners @ axes).max(0) + 8
    size = np.ceil((high - low) / 4).astype(int) + 1
    lattice = Grid(tuple(size), (4.0,) * 3, tuple(axes @ low), tuple(turn))
    points = lattice.points()
    displacement = np.stack(
        [
            5 + 3 * np.sin(points[..., 1] / 17),
            -7 + 2 * np.cos(points[..., 2] / 13),
            11 + 4 * np.sin(points[..., 0] / 19),
        ],
        axis=-1,
    )
    return lattice.apply_to(sitk.GetImageFromArray(displacement, isVector=True))


def writeResult(folder: Path, ct: Path, labels: np.ndarray, names: dict[int, str] | None = None) -> sitk.Transform:
    """Write the folder for a CT file and a label map (z, y, x) on it; returns the transform (CT -> MR, LPS mm)."""
    folder.mkdir()
    volume = read_volume(ct, "CT")
    values = [int(value) for value in np.unique(labels) if value]
    described = name_labels(values, None, names)
    write_volume(Volume(labels, volume.grid), folder / "ct_labels.nii.gz")
    write_labels_json(folder / "labels.json", described)
    write_volume(Volume(volume.array.astype(np.float32) + 7, volume.grid), folder / "mr_on_ct.nii.gz")
    field = displacementField(volume.grid)
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    sitk.WriteTransform(transform, str(folder / "transform.h5"))
    file = result.InputFile("x", "0" * 64)
    content = result.RunResult(
        inputs={"mr": file, "ct": file},
        settings={"preset": "fast", "stages": [], "device": "cpu", "threads": 1, "seed": 0, "working_spacing_mm": 4.0},
        registration=result.Registration(
            "a", [], [result.Candidate("a", "b", 1.0, True)], result.Similarity("s", 1, 1)
        ),
        labels={label.value: result.LabelResult(label.name, label.role) for label in described},
        tumours=[tumour(label.value, label.name) for label in described if label.role == "tumour"],
        run=result.RunVerdict(),
        timings_s={"alignment": 1.0},
    )
    result.write_result(folder / "result.json", content)
    (folder / "report.html").write_text("<html></html>")
    return transform


def writeAssessed(result: Path, folder: Path, figures: dict[int, dict[str, object]]) -> None:
    """As the worker's second stage leaves a result folder. figures: of result.json, by label."""
    shutil.copytree(result, folder)
    content = json.loads((folder / "result.json").read_text())
    for entry in content["tumours"]:
        entry.update(figures.get(entry["label"], {}))
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "report.html").write_text("<html>assessed</html>")
    labels = read_volume(folder / "ct_labels.nii.gz", "labels")
    probability = np.where(labels.array > 1, 0.75, 0).astype(np.float32)
    write_volume(Volume(probability, labels.grid), folder / "tumour_probability.nii.gz")


def assessedAs(verdict: str, p95: float | None, reason: str | None = None) -> dict[str, object]:
    """Figures of one tumour."""
    return {
        "p50_mm": p95 and p95 / 2,
        "p95_mm": p95,
        "covariance_mm2": np.eye(3).tolist(),
        "visibility_mr": 0.9,
        "visibility_ct": 0.25,
        "verdict": verdict,
        "verdict_reason": reason,
    }
