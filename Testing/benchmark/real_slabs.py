"""A real MR slab onto a real CT slab of different people: ours against ConvexAdam, organ by organ.

The slabs overlap in part only and do not lie in one world, so that ConvexAdam needs a start: once the two slabs'
centres laid upon each other ("plain"), once our own affine alignment; and it works on our grid and on the one that was
best for it on development patients. Ours is compared with the best of these. Labels of both methods are carried in the
same way, and only CT voxels count whose mapped point lies inside the MR for both methods of a comparison. The reference
labels are a model's output (TotalSegmentator), not a reader's.

    python Testing/benchmark/real_slabs.py [--preset balanced] [--out FILE.json]
"""

from __future__ import annotations

import numpy as np

from common import (
    Bar,
    DisplacementField,
    carry_labels,
    maps_inside,
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
from weaktumour.evaluation.methods import PEER_SETTINGS
from weaktumour.evaluation.metrics import assd, dice, hd95
from weaktumour.evaluation.peers import PeerResult, run_peer

# The only values that mean the same in both files.
ORGANS = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    8: "right adrenal",
    9: "left adrenal",
}
LIVER = 5
FEWEST_VOXELS = 500
LIVER_BAR = 0.75
MARGIN_BAR = 0.05


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores)
    folder = shared_data() / "totalsegmentator_examples"
    files = {
        "mr": folder / "example_mr_sm.nii.gz",
        "ct": folder / "example_ct_sm.nii.gz",
        "mr_labels": folder / "example_seg_mr.nii.gz",
    }
    mr_labels = read_volume(files["mr_labels"], "MR labels")
    truth = read_volume(folder / "example_seg.nii.gz", "CT labels")
    counts = {v: [int(np.count_nonzero(labels.array == v)) for labels in (mr_labels, truth)] for v in ORGANS}
    organs = [value for value in ORGANS if min(counts[value]) >= FEWEST_VOXELS]

    with work_folder(arguments) as work:
        preset = "fast" if arguments.smoke else arguments.preset
        options = {**files, "mr_label_map": f"{LIVER}=liver", "preset": preset, "uncertainty": "off", "overwrite": True}
        ours = run_ours("register", out=work / "ours", **options)
        run_ours("register", out=work / "alignment", stages="alignment", **options)
        result = read_result(work / "ours")
        our_field = DisplacementField.read(work / "ours" / "transform.h5")
        our_affine = DisplacementField.read(work / "alignment" / "transform.h5").best_affine.matrix
    ours_mm = result["settings"]["working_spacing_mm"]
    spacings = sorted({PEER_SETTINGS["convexadam"].spacing_mm, ours_mm})
    if arguments.spacing or arguments.smoke:
        spacings = [arguments.spacing or ours_mm]

    centres = np.eye(4)
    mr = read_volume(files["mr"], "MRI")
    centres[:3, 3] = mr.grid.corners().mean(axis=0) - truth.grid.corners().mean(axis=0)
    peers: dict[str, PeerResult] = {
        f"ConvexAdam, {name}, {spacing:g} mm": run_peer(
            "convexadam", files["ct"], files["mr"], spacing_mm=spacing, start=start
        )
        for spacing in spacings
        for name, start in (("plain (slab centres)", centres), ("our affine", our_affine))
    }

    our_labels, our_inside = carry_labels(mr_labels, our_field, truth.grid), maps_inside(mr.grid, our_field, truth.grid)
    comparisons = {}
    for name, peer in peers.items():
        peer_labels = carry_labels(mr_labels, peer.field, truth.grid)
        region = our_inside & maps_inside(mr.grid, peer.field, truth.grid)
        comparisons[name] = {
            "share_of_ct": float(region.mean()),
            "ours": _scores(our_labels, truth.array, region, organs, truth.grid.spacing),
            "peer": _scores(peer_labels, truth.array, region, organs, truth.grid.spacing),
        }
    better = max(comparisons, key=lambda name: comparisons[name]["peer"]["mean_dice"])

    tables = [
        _table(name, comparison, organs, (ours.seconds, ours.peak_mb), peers[name])
        for name, comparison in comparisons.items()
    ]
    kept = result["registration"]
    tables.append(f"Ours: start {kept['start']}, stages kept {', '.join(kept['stages_kept']) or 'none'}")
    bars = [
        Bar(f"liver Dice, region shared with {name}", comparison["ours"]["dice"][LIVER], LIVER_BAR)
        for name, comparison in comparisons.items()
    ]
    ours_here, best_peer = (comparisons[better][whose]["mean_dice"] for whose in ("ours", "peer"))
    bars.append(Bar(f"mean Dice above that of {better}", ours_here - best_peer, MARGIN_BAR))
    figures = {
        "preset": preset,
        "working_spacing_mm": {"ours": ours_mm, "ConvexAdam": spacings},
        "convexadam_version": next(iter(peers.values())).version,
        "voxels_mr_ct": {ORGANS[value]: counts[value] for value in ORGANS},
        "comparisons": comparisons,
        "seconds": {"ours": ours.seconds, **{name: peer.seconds for name, peer in peers.items()}},
        "peak_mb": {"ours": ours.peak_mb, **{name: peer.peak_mb for name, peer in peers.items()}},
        "registration": result["registration"],
    }
    data = (
        "shared/data/totalsegmentator_examples: one real MR slab onto one real CT slab, two people, one pair; "
        f"ours: preset {preset}, working grid {ours_mm:g} mm"
    )
    return report(arguments, "Real slabs, MR onto CT", data, tables, figures, bars)


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--preset", default="balanced", choices=("fast", "balanced", "thorough"))
    options.add_argument(
        "--spacing", type=float, help="working spacing of ConvexAdam, mm (default: as in the benchmark)"
    )
    return options.parse_args()


def _scores(labels, truth, region, organs, spacing_mm) -> dict:
    per_organ = {value: dice((labels == value) & region, (truth == value) & region) for value in organs}
    liver = (labels == LIVER) & region, (truth == LIVER) & region
    return {
        "dice": per_organ,
        "mean_dice": float(np.mean(list(per_organ.values()))),
        "liver_hd95_mm": hd95(*liver, spacing_mm),
        "liver_assd_mm": assd(*liver, spacing_mm),
    }


def _table(name: str, comparison: dict, organs: list[int], our_cost: tuple[float, float], peer: PeerResult) -> str:
    ours, theirs = comparison["ours"], comparison["peer"]
    rows = [[f"{ORGANS[value]} (Dice)", ours["dice"][value], theirs["dice"][value]] for value in organs]
    rows += [
        ["**mean Dice**", ours["mean_dice"], theirs["mean_dice"]],
        ["liver HD95, mm", ours["liver_hd95_mm"], theirs["liver_hd95_mm"]],
        ["liver ASSD, mm", ours["liver_assd_mm"], theirs["liver_assd_mm"]],
        ["seconds", our_cost[0], peer.seconds],
        ["peak MB", our_cost[1], peer.peak_mb],
    ]
    share = f"Counted: {100 * comparison['share_of_ct']:.1f} % of the CT's voxels (inside the MR for both methods)."
    return f"{share}\n\n{markdown_table(['', 'ours', f'{name}, {peer.version}'], rows)}"


if __name__ == "__main__":
    run_script(main)
