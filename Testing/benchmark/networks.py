"""What the networks are worth: the UNet's livers and tumours, MSCGUNet's prediction, and both in the pipeline.

    python Testing/benchmark/networks.py segmentation [--split test] [--cases 40] [--keep DIR] [--out FILE.json]
    python Testing/benchmark/networks.py ablation     [--split test] [--cases 40] [--keep DIR] [--out FILE.json]

segmentation: liver Dice on simulated MR and CT, on the real CT of shared/data/chaos_ct and on both real slabs; tumours
on the simulated MR. ablation: alignment; + MSCGUNet; + refinement; + both; each with and without the UNet's liver on
the CT, on the simulated patients and on the real slab pair. Patients are the phantoms of splits.json, never trained
on; tune on `--split development`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import (
    Bar,
    Volume,
    markdown_table,
    parser,
    read_volume,
    report,
    run_script,
    shared_data,
    use_cores,
    work_folder,
)
from weaktumour import pipeline
from weaktumour.cases import Case, read_case, write_case
from weaktumour.deformation import Affine
from weaktumour.evaluation.metrics import dice, equivalent_diameter_mm, evaluate_case
from weaktumour.labels import TUMOUR, LabelMap, name_labels, parse_label_map, read_labels
from weaktumour.models import find
from weaktumour.progress import Monitor
from weaktumour.propagation import propagate_labels
from weaktumour.registration.prediction import predict
from weaktumour.segmentation import Segmentation, segment
from weaktumour.simulation import VERSION, simulate_patient

SLAB_LIVER = 5
FIGURES = ("target mm", "target p90 mm", "liver Dice", "liver HD95 mm", "tumour mm", "tumour p90 mm", "folds", "s")
STAGES = {"alignment": (), "+ MSCGUNet": ("mscgunet",), "+ refinement": ("refinement",),
          "+ both": ("mscgunet", "refinement")}  # fmt: skip


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    torch.set_num_threads(1 if arguments.processes > 1 else arguments.cores)
    seeds = _seeds(arguments)
    with work_folder(arguments) as work:
        return (_segmentation if arguments.what == "segmentation" else _ablation)(arguments, work, seeds)


def _arguments() -> argparse.Namespace:
    command = parser(__doc__)
    command.add_argument("what", nargs="?", choices=("segmentation", "ablation"), default="segmentation")
    command.add_argument("--split", choices=("development", "test"), default="test")
    command.add_argument("--cases", type=int, default=None, help="so many of the split's patients (default: all)")
    command.add_argument("--preset", choices=tuple(pipeline.PRESETS), default="balanced")
    command.add_argument("--processes", type=int, default=2)
    command.add_argument("--segmentation-model", metavar="ID")
    command.add_argument("--registration-model", metavar="ID")
    return command.parse_args()


def _seeds(arguments: argparse.Namespace) -> list[int]:
    splits = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))
    seeds = splits["phantoms"][arguments.split]
    return seeds[: 1 if arguments.smoke else arguments.cases]


def _case(work: Path, seed: int, smoke: bool) -> Case:
    """The patient of a seed, simulated once for each folder of --keep."""
    folder = work / f"case-v{VERSION}-{seed}{'-smoke' if smoke else ''}"
    if not (folder / "case.json").exists():
        coarse = {"ct_spacing_mm": 3.0, "mr_spacing_mm": 3.0, "anatomy_spacing_mm": 2.5} if smoke else {}
        write_case(folder, simulate_patient(seed, **coarse))
    return read_case(folder)


def _in_parallel(arguments: argparse.Namespace, work: Path, seeds: list[int], task) -> Iterator[dict]:
    jobs = [(arguments, work, seed) for seed in seeds]
    if arguments.processes <= 1 or len(jobs) == 1:
        yield from map(task, jobs)
        return
    with ProcessPoolExecutor(arguments.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(task, jobs)


# -- segmentation -------------------------------------------------------------------------------------------------
def _segmentation(arguments: argparse.Namespace, work: Path, seeds: list[int]) -> int:
    rows = list(_in_parallel(arguments, work, seeds, _segment_case))
    livers = {kind: np.array([row[kind] for row in rows]) for kind in ("mr", "ct")}
    large = [hit for row in rows for diameter, hit in row["tumours"] if diameter >= 15]
    false = np.array([row["false"] for row in rows])
    real = {} if arguments.smoke else _real_livers(arguments)
    table = [
        ["simulated MR", len(rows), livers["mr"].mean(), np.median(livers["mr"]), livers["mr"].min()],
        ["simulated CT", len(rows), livers["ct"].mean(), np.median(livers["ct"]), livers["ct"].min()],
        *[[name, 1, value, value, value] for name, value in real.items()],
    ]
    tables = [
        markdown_table(["liver Dice on", "volumes", "mean", "median", "worst"], table),
        f"Tumours of 15 mm and more on simulated MR: {sum(large)} of {len(large)} found; "
        f"false positives a case: mean {false.mean():.2f}, most {false.max()}",
    ]
    bars = [
        Bar("liver Dice, simulated MR, mean", livers["mr"].mean(), 0.95),
        Bar("liver Dice, simulated CT, mean", livers["ct"].mean(), 0.95),
        *[Bar(f"liver Dice, {name}", value, 0.90 if name == "chaos_ct" else 0.80) for name, value in real.items()],
        Bar("sensitivity, tumours >= 15 mm", sum(large) / max(1, len(large)), 0.8),
        Bar("false positives a case", float(false.mean()), 1.0, at_least=False),
    ]
    data = (
        f"{len(rows)} simulated patients ({arguments.split}, simulator version {VERSION}), real images of shared/data"
    )
    return report(arguments, "UNet", data, tables, {"cases": rows, "real": real}, bars)


def _segment_case(job: tuple[argparse.Namespace, Path, int]) -> dict:
    arguments, work, seed = job
    case = _case(work, seed, arguments.smoke)
    found, seconds = {}, {}
    for kind, image in (("mr", case.mr), ("ct", case.ct)):
        begun = time.monotonic()
        found[kind] = _labels_of(image, kind, arguments)
        seconds[kind] = time.monotonic() - begun
    result = {
        "seed": seed,
        "mr": dice(found["mr"].mask("liver", TUMOUR), case.mr_labels.array > 0),
        "ct": dice(found["ct"].mask("liver", TUMOUR), case.ct_labels.array > 0),
        "seconds": seconds,
    }
    truth, labels = case.mr_labels, found["mr"].volume.array
    tumours = []
    for value in range(2, int(truth.array.max()) + 1):
        mask = truth.array == value
        if mask.any():
            # Found: some tumour that was found overlaps it, and lies in it or round it.
            tumours.append((equivalent_diameter_mm(mask, truth.grid), bool((labels[mask] > 1).mean() > 0.2)))
    result["tumours"] = tumours
    result["false"] = sum(not (truth.array[labels == label.value] > 1).mean() > 0.1 for label in found["mr"].tumours)
    return result


def _labels_of(image: Volume, kind: str, arguments: argparse.Namespace) -> LabelMap:
    entry = find(arguments.segmentation_model, "segmentation")
    found: Segmentation = segment(image, kind, entry, torch.device("cpu"), Monitor())
    return found.labels_on(image.grid)


def _real_livers(arguments: argparse.Namespace) -> dict[str, float]:
    chaos, slabs = shared_data() / "chaos_ct", shared_data() / "totalsegmentator_examples"
    result = {}
    for name, kind, image, labels, value in (
        ("chaos_ct", "ct", chaos / "ct.nii.gz", chaos / "liver.nii.gz", None),
        ("CT slab", "ct", slabs / "example_ct_sm.nii.gz", slabs / "example_seg.nii.gz", SLAB_LIVER),
        ("MR slab", "mr", slabs / "example_mr_sm.nii.gz", slabs / "example_seg_mr.nii.gz", SLAB_LIVER),
    ):
        truth = read_volume(labels, "labels").array
        found = _labels_of(read_volume(image, name), kind, arguments)
        result[name] = dice(found.mask("liver", TUMOUR), truth > 0 if value is None else truth == value)
    return result


# -- ablation -----------------------------------------------------------------------------------------------------
def _ablation(arguments: argparse.Namespace, work: Path, seeds: list[int]) -> int:
    rows = []
    for row in _in_parallel(arguments, work, seeds, _ablate_case):
        rows.append(row)
        print(f"patient {row['seed']}: " + json.dumps(row["both with masks"]), flush=True)
    tables = [_ablation_table([row["variants"] for row in rows])]
    offered = [row["variants"][name] for row in rows for name in ("masks: + both", "no masks: + both")]
    kept = sum(entry["mscgunet kept"] for entry in offered)
    tables.append(f"MSCGUNet's field was kept as the refinement's start in {kept} of {len(offered)} runs.")
    before, after = (
        np.array([row["variants"][f"masks: {name}"]["target mm"] for row in rows])
        for name in ("alignment", "MSCGUNet alone")
    )
    folds = sum(row["variants"]["masks: MSCGUNet alone"]["folds"] for row in rows)
    bars = [
        Bar(
            "target error in the liver, MSCGUNet after alignment, reduction",
            1 - np.median(after) / np.median(before),
            0.3,
        ),
        Bar("folds inside the liver", float(folds), 0.0, at_least=False),
    ]
    figures = {"cases": rows}
    if not arguments.smoke:
        slabs = _ablate_slabs(arguments)
        tables.append(markdown_table(["real slabs", "liver Dice", "s"], [[n, *v] for n, v in slabs.items()]))
        figures["slabs"] = slabs
    data = (
        f"{len(rows)} simulated patients ({arguments.split}, simulator version {VERSION}), preset {arguments.preset}; "
        "the real slab pair: two people"
    )
    return report(arguments, "Networks in the pipeline", data, tables, figures, bars)


def _ablation_table(rows: list[dict[str, dict]]) -> str:
    lines = []
    for name in rows[0]:
        found = {key: np.array([row[name][key] for row in rows]) for key in ("target mm", "liver Dice", "folds", "s")}
        target = np.concatenate([row[name]["targets"] for row in rows])
        tumours = np.concatenate([row[name]["tumours"] for row in rows])
        lines.append(
            [name, np.median(target), np.percentile(target, 90), found["liver Dice"].mean(),
             np.mean([row[name]["liver HD95 mm"] for row in rows]), np.median(tumours),
             np.percentile(tumours, 90), int(found["folds"].sum()), np.median(found["s"])]
        )  # fmt: skip
    return markdown_table(["variant", *FIGURES], lines)


def _ablate_case(job: tuple[argparse.Namespace, Path, int]) -> dict:
    arguments, work, seed = job
    case = _case(work, seed, arguments.smoke)
    labels = LabelMap(case.mr_labels, name_labels(list(case.label_names), None, case.label_names))
    inputs = pipeline.Inputs(case.mr, case.ct, labels, None, Affine.identity())
    variants = {}
    for name, registration, inputs_used, seconds in _variants(inputs, arguments):
        field = pipeline.in_world(registration.transform, inputs_used)
        carried = propagate_labels(labels, field, case.ct.grid, Monitor()).labels.volume
        figures = evaluate_case(carried, case.ct_labels, field, case.truth_points)
        points = case.truth_points
        errors = np.linalg.norm(field.transform_points(points[:, :3]) - points[:, 3:], axis=1)
        determinant = field.jacobian_determinant()
        index = np.round(field.grid.world_to_index(points[:, :3])).astype(int)
        x, y, z = np.clip(index, 0, np.asarray(field.grid.size) - 1).T
        variants[name] = {
            "target mm": float(np.median(errors)),
            "targets": errors.tolist(),
            "liver Dice": figures["liver"]["dice"],
            "liver HD95 mm": figures["liver"]["hd95_mm"],
            "tumours": [tumour["centroid_error_mm"] for tumour in figures["tumours"]],
            "volume ratios": [tumour["volume_ratio"] for tumour in figures["tumours"]],
            "folds": int((determinant[z, y, x] <= 0).sum()),
            "score": registration.score,
            "stages kept": registration.stages_kept,
            "mscgunet kept": "mscgunet" in registration.stages_kept,
            "s": seconds,
        }
    both = variants["masks: + both"]
    return {
        "seed": seed,
        "motion": case.info.get("simulation"),
        "variants": variants,
        "both with masks": {key: both[key] for key in ("target mm", "liver Dice", "tumours", "mscgunet kept")},
    }


def _variants(inputs: pipeline.Inputs, arguments: argparse.Namespace) -> Iterator[tuple]:
    """Every combination; what they share (segmentation, alignment, prediction) is computed once and counted in each."""
    device, monitor = torch.device("cpu"), Monitor()
    preset = pipeline.PRESETS["fast" if arguments.smoke else arguments.preset]
    entry = find(arguments.segmentation_model, "segmentation")
    network = find(arguments.registration_model, "registration")
    for masks in (False, True):
        begun = time.monotonic()
        used = pipeline.find_livers(inputs, entry, device, monitor) if masks else inputs
        aligned = pipeline._align(used, ("alignment",), 0, monitor)
        of_alignment = time.monotonic() - begun
        begun = time.monotonic()
        predicted = pipeline._predict(aligned, network, device, monitor)
        of_prediction = time.monotonic() - begun
        name = "masks" if masks else "no masks"
        # What the network alone makes of it, whatever the score says: its own figure.
        yield f"{name}: MSCGUNet alone", _forced(aligned, network, device), used, of_alignment + of_prediction
        for stages, kept in STAGES.items():
            start = predicted if "mscgunet" in kept else aligned
            seconds = of_alignment + (of_prediction if "mscgunet" in kept else 0.0)
            begun = time.monotonic()
            done = pipeline._refine(used, start, kept, preset, device, monitor)
            yield f"{name}: {stages}", done, used, seconds + time.monotonic() - begun


def _forced(aligned: pipeline.Registered, network, device: torch.device) -> pipeline.Registered:
    found = predict(aligned.fixed, aligned.moving, aligned.alignment.transform, network, device, Monitor())
    return replace(aligned, deformation=found.transform)


def _ablate_slabs(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    folder = shared_data() / "totalsegmentator_examples"
    mr = read_volume(folder / "example_mr_sm.nii.gz", "MRI")
    ct = read_volume(folder / "example_ct_sm.nii.gz", "CT")
    truth = read_volume(folder / "example_seg.nii.gz", "CT labels").array == SLAB_LIVER
    labels = read_labels(folder / "example_seg_mr.nii.gz", "MR labels", parse_label_map(f"{SLAB_LIVER}=liver"))
    inputs = pipeline.Inputs(mr, ct, labels, None, Affine.identity())
    result = {}
    for name, registration, used, seconds in _variants(inputs, arguments):
        field = pipeline.in_world(registration.transform, used)
        carried = propagate_labels(labels, field, ct.grid, Monitor()).labels.volume.array == SLAB_LIVER
        inside = np.ones_like(truth)
        for z in range(truth.shape[0]):
            row = ct.grid.crop((0, 0, z), (*ct.grid.size[:2], 1))
            inside[z] = mr.grid.contains(field.transform_points(row.points()))[0]
        result[name] = (dice(carried & inside, truth & inside), seconds)
    return result


if __name__ == "__main__":
    run_script(main)
