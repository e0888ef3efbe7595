"""A real whole-liver MR (PyPI mdreg, healthy volunteer) onto a real CT (CHAOS, another healthy person).

The MR has no liver label, so a rough one is made by region growing (`rough_liver`); it is good enough to steer the
alignment and to see in the report where the liver went, not to score a method by. The liver Dice against the CT's
ground truth is printed as a hint.

    python Testing/benchmark/real_whole_liver.py --keep DIR [--preset balanced]      then open DIR/result/report.html
"""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from common import (
    DisplacementField,
    Grid,
    InputError,
    Volume,
    carry_labels,
    markdown_table,
    parser,
    read_result,
    read_volume,
    report,
    run_ours,
    run_script,
    shared_data,
    use_cores,
    work_folder,
)
from weaktumour.evaluation.metrics import evaluate_case
from weaktumour.volumes import write_volume

FLIP_ANGLE_DEG = 10  # of 2, 10, 15, 20, 25: the liver stands out best from muscle and vessels
# The file's axes, seen in the images: right to left, head to foot, front to back.
AXES_LPS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    chaos = shared_data() / "chaos_ct"
    with work_folder(arguments) as work:
        mr = read_mdreg()
        liver = rough_liver(mr)
        write_volume(mr, work / "mr.nii.gz")
        write_volume(liver, work / "mr_labels.nii.gz")
        preset = "fast" if arguments.smoke else arguments.preset
        ours = run_ours(
            "register",
            mr=work / "mr.nii.gz",
            ct=chaos / "ct.nii.gz",
            mr_labels=work / "mr_labels.nii.gz",
            out=work / "result",
            preset=preset,
            overwrite=True,
        )
        result = read_result(work / "result")
        field = DisplacementField.read(work / "result" / "transform.h5")
        truth = read_volume(chaos / "liver.nii.gz", "CT liver")
        truth = Volume((truth.array > 0).astype(np.uint8), truth.grid)
        carried = Volume(carry_labels(liver, field, truth.grid), truth.grid)
    figures = evaluate_case(carried, truth, field)
    rows = [
        ["rough MR liver, ml", np.count_nonzero(liver.array) * mr.grid.voxel_volume_mm3 / 1e3],
        ["CT liver in the slab, ml", np.count_nonzero(truth.array) * truth.grid.voxel_volume_mm3 / 1e3],
        ["liver Dice (rough MR label)", figures["liver"]["dice"]],
        ["liver ASSD, mm", figures["liver"]["assd_mm"]],
        ["folds inside the CT", figures["field"]["folds"]],
        ["SDlogJ", figures["field"]["sd_log_jacobian"]],
        ["run verdict", result["run"]["verdict"]],
        ["seconds", ours.seconds],
        ["peak MB", ours.peak_mb],
    ]
    data = f"MR of PyPI mdreg (flip angle {FLIP_ANGLE_DEG} degrees) onto shared/data/chaos_ct: two people, one pair"
    tables = [markdown_table(["", "ours"], rows), f"Verdict of the run: {result['run']}"]
    if arguments.keep:
        tables.append(f"Report: {arguments.keep / 'result' / 'report.html'}")
    return report(arguments, "Real whole-liver MR onto CT", data, tables, {"preset": preset, **figures}, [])


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--preset", default="balanced", choices=("fast", "balanced", "thorough"))
    return options.parse_args()


def read_mdreg() -> Volume:
    """The MR at one flip angle, with its axes in LPS and its centre at the origin (the file has no position)."""
    package = importlib.util.find_spec("mdreg")
    if package is None:
        raise InputError("The package mdreg is not installed; install the benchmark extra.")
    path = Path(package.submodule_search_locations[0]) / "datafiles" / "VFA.pkl"
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pickled with numpy 1
        content = pickle.load(file)
    frame = list(content["FA"]).index(FLIP_ANGLE_DEG)
    array = np.ascontiguousarray(content["array"][..., frame].transpose(2, 1, 0), dtype=np.float32)
    spacing = tuple(float(s) for s in content["spacing"])
    half = (np.asarray(array.shape[::-1]) - 1) / 2 * spacing
    return Volume(array, Grid(array.shape[::-1], spacing, tuple(-AXES_LPS @ half), tuple(AXES_LPS.ravel())))


def rough_liver(mr: Volume) -> Volume:
    """A rough liver label (1): a bright, even, compact region that grows from the right upper abdomen.

    Made at 3 mm: coil shading divided out, smoothed; the seed is the place on the patient's right where a wide
    neighbourhood is brightest and most even; values near the seed's are taken, thin bridges to neighbours are cut by an
    opening of 15 mm, the piece with the seed is kept, closed and filled.
    """
    fine = mr.resample_to(Grid.around(mr.grid.corners(), 3.0))
    image = fine.to_image()
    smooth = sitk.SmoothingRecursiveGaussian(image, 3.0)
    flat = sitk.GetArrayFromImage(smooth)
    body = flat > 0.25 * np.percentile(flat, 90)
    # Shading of the surface coils: the tissue's own very smooth mean.
    inside = sitk.GetImageFromArray(np.where(body, flat, 0).astype(np.float32))
    weight = sitk.GetImageFromArray(body.astype(np.float32))
    for volume in (inside, weight):
        volume.CopyInformation(image)
    wide = [sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(volume, 60.0)) for volume in (inside, weight)]
    flat = np.where(body, flat * wide[1] / np.maximum(wide[0], 1e-6), 0).astype(np.float32)

    even = sitk.GetImageFromArray(flat)
    even.CopyInformation(image)
    mean = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(even, 12.0))
    square = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.Square(even), 12.0))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    centre = _centre_of(body)
    quality = np.where(body, mean - 2 * spread, -np.inf)
    quality[:, :, int(centre[2]) :] = -np.inf  # x grows to the left: keep the right half
    seed = np.unravel_index(np.argmax(quality), quality.shape)

    level = mean[seed]
    candidates = sitk.GetImageFromArray(((flat > 0.72 * level) & (flat < 1.35 * level)).astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(candidates, [5, 5, 5], sitk.sitkBall)
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(opened))
    liver = sitk.GetImageFromArray((parts == parts[seed]).astype(np.uint8)) if parts[seed] else opened
    liver = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(liver, [3, 3, 3], sitk.sitkBall))
    rough = Volume(sitk.GetArrayFromImage(liver).astype(np.float32), fine.grid).resample_to(mr.grid)
    return Volume((rough.array > 0.5).astype(np.uint8), mr.grid)


def _centre_of(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


if __name__ == "__main__":
    run_script(main)
