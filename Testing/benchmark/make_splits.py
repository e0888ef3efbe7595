"""Write splits.json: which anatomies networks may learn from, which are for tuning, which only for the reported tables.

    python Testing/benchmark/make_splits.py [--smoke]

With --smoke it only checks that the kept file is what it would write.

The parts of label_maps were made once, before the first training; kept so that anyone can see how. By anatomy, never by
seed alone: maps that look like one patient (liver Dice above 0.87 with the centroids laid over each other; strangers
reach 0.865) must lie in one part, or the script stops.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

from common import shared_data
from weaktumour.volumes import read_volume

ALIKE = 0.87
SAME_PATIENT = [["lits_lits-0", "lits_0_tumour_fuentesdt"]]
# Neighbours among the first LiTS cases are so alike (6, 7, 9 and 10; 14 and 15; 22 and 23) that they must be follow-ups
# of the same people. All of that stretch is for training.
FOLLOW_UPS = [f"lits_lits-{number}" for number in range(28)]
# The few maps with more than a liver are worth most in training; the modelled female is kept for tuning.
FIXED = {
    "totalseg_ct_s0011": "train",
    "totalseg_ct_task1_a": "train",
    "amos_0013": "train",
    "hubmap_vh_male": "train",
    "hubmap_vh_female": "development",
    # A tumour that a person drew: training profits, and its patient goes with it.
    "lits_0_tumour_fuentesdt": "train",
    **dict.fromkeys(FOLLOW_UPS, "train"),
}
TEST_SHARE, DEVELOPMENT_SHARE = {"lits": 18, "msd8": 8}, {"lits": 9, "msd8": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="write nothing; check the file that is kept")
    options = parser.parse_args()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (shared_data() / "label_maps").glob("*.nii.gz"))
    parts: dict[str, list[str]] = {"train": [], "development": [], "test": []}
    for name, part in FIXED.items():
        if name in names:
            parts[part].append(name)
    for source in TEST_SHARE:
        rest = [name for name in names if name.startswith(source) and name not in FIXED]
        random.Random(2026).shuffle(rest)
        test, development = TEST_SHARE[source], DEVELOPMENT_SHARE[source]
        parts["test"] += rest[:test]
        parts["development"] += rest[test : test + development]
        parts["train"] += rest[test + development :]
    test_maps = sorted(parts["test"])
    known, unseen = halves(test_maps)
    check_strangers(names, {**parts, "test": known, "test of trust": unseen})
    patients = [name for name in test_maps if name.startswith("lits")][:10] + test_maps[-4:]
    tuned_on = [name for name in sorted(parts["development"]) if name.startswith(("lits", "msd8"))][:8:2]
    content = {
        "schema": 1,
        "about": "By anatomy. Tune on development only; tables use test. Made by Testing/benchmark/make_splits.py.",
        "label_maps": {part: sorted(found) for part, found in parts.items()},
        "same_patient": SAME_PATIENT,
        "real_images": {
            "never_trained_on": ["chaos_ct", "totalsegmentator_examples/ct", "totalsegmentator_examples/mr"],
        },
        # Seeds of the simulator's own anatomies: training draws from a range, the others are listed.
        "phantoms": {
            "train": {"first": 100_000, "last": 199_999},
            "development": list(range(20)),
            "test": list(range(900_000, 900_040)),
        },
        # The benchmark's 40 patients; the networks' figures on simulated patients use phantoms.test.
        "benchmark": {
            "phantoms": list(range(900_000, 900_020)),
            "label_maps": [{"map": name, "seed": 910_000 + i} for i, name in enumerate(patients)],
            "real_ct": [{"image": "chaos_ct", "seed": 920_000 + i} for i in range(6)],
        },
        # Those that methods, ours and others', are tuned on. The only real CT is for the test.
        "benchmark_development": {
            "phantoms": list(range(8)),
            "label_maps": [{"map": name, "seed": 911_000 + i} for i, name in enumerate(tuned_on)],
            "real_ct": [],
        },
        # Of the uncertainty (trust.py): patients with many tumours each, and seeds of pairs that are spoiled. A first
        # test part was looked at; what is left of it (phantoms 900000 on, maps 932000 on, spoiled ones 936000 on) and
        # the whole real CT calibrate since. The fit knows no anatomy of the second but that CT's; of its label maps
        # the first one had other patients.
        "trust": {
            "calibration": {
                "phantoms": [*range(930_000, 930_040), *range(900_000, 900_040)],
                "label_maps": [
                    {"map": name, "seed": 931_000 + 100 * turn + i}
                    for turn in range(2)
                    for i, name in enumerate(sorted(parts["development"]))
                ]
                + [
                    {"map": test_maps[i % len(test_maps)], "seed": 932_000 + i}
                    for i in range(len(test_maps) + 8)
                    if test_maps[i % len(test_maps)] in known
                ],
                "real_ct": [{"image": "chaos_ct", "seed": 933_000 + i} for i in range(24)],
                "spoiled": [{"first": 935_000, "of_each": 10}, {"first": 936_000, "of_each": 20}],
            },
            "test": {
                "phantoms": list(range(950_000, 950_044)),
                "label_maps": [{"map": unseen[i % len(unseen)], "seed": 952_000 + i} for i in range(36)],
                "real_ct": [
                    {"image": name, "seed": 953_000 + 100 * which + i}
                    for which, name in enumerate(("chaos_ct", "totalsegmentator_examples"))
                    for i in range(4)
                ],
                "spoiled": [{"first": 956_000, "of_each": 20}],
            },
        },
        # The cohort of weak_supervision.py, which trains and tests on it by cross-validation: fold k holds out every
        # fourth patient from the k-th on. Nothing else learns from these, or is tuned on them.
        "weak_supervision": {"phantoms": list(range(940_000, 940_024)), "folds": 4},
    }
    text = json.dumps(content, indent=1) + "\n"
    kept = Path(__file__).with_name("splits.json")
    if not options.smoke:
        kept.write_text(text, encoding="utf-8")
    elif kept.read_text(encoding="utf-8") != text:
        sys.exit(f"{kept.name} is not what this script makes")
    print({part: len(found) for part, found in parts.items()})


def halves(maps: list[str]) -> tuple[list[str], list[str]]:
    """Of each source the first and the second half, by name: most neighbours, who may be one patient, stay together."""
    first, second = [], []
    for source in TEST_SHARE:
        found = [name for name in maps if name.startswith(source)]
        first += found[: len(found) // 2]
        second += found[len(found) // 2 :]
    return first, second


def check_strangers(names: list[str], parts: dict[str, list[str]]) -> None:
    """Stop where two maps in different parts hold so nearly the same liver that they may be one patient."""
    livers = {name: liver_about_centroid(name) for name in names}
    part_of = {name: part for part, found in parts.items() for name in found}
    alike = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            dice = 2 * float((livers[a] & livers[b]).sum()) / float(livers[a].sum() + livers[b].sum())
            if dice > ALIKE and part_of[a] != part_of[b]:
                alike.append(f"{a} ({part_of[a]}) and {b} ({part_of[b]}): Dice {dice:.3f}")
    if alike:
        sys.exit("These may be one patient; put them into one part:\n" + "\n".join(alike))


def liver_about_centroid(name: str) -> np.ndarray:
    """(64, 64, 64) bool at 4 mm: liver, its tumours and vessels, centred."""
    volume = read_volume(shared_data() / "label_maps" / f"{name}.nii.gz", name)
    index = np.argwhere(np.isin(volume.array, (1, 2, 3)))[::3]
    place = np.round((index - index.mean(0)) * np.asarray(volume.grid.spacing[::-1]) / 4.0).astype(int) + 32
    mask = np.zeros((64, 64, 64), dtype=bool)
    mask[tuple(place[((place >= 0) & (place < 64)).all(1)].T)] = True
    return mask


if __name__ == "__main__":
    main()
