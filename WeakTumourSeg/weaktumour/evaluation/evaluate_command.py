"""`weaktumour evaluate`: the options, and what is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError


def add_evaluate_parser(commands: argparse._SubParsersAction) -> None:
    text = "compare label maps on CTs with their references by the metrics of the CHAOS challenge"
    parser = commands.add_parser(
        "evaluate", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.add_argument("prediction", metavar="PREDICTION", help="a label file, or a folder of results or label files "
                        "named as the cases")  # fmt: skip
    parser.add_argument("reference", metavar="REFERENCE", help="a label file, a case folder, or a cohort with "
                        "ct_labels.nii.gz")  # fmt: skip
    parser.add_argument("--splits", metavar="FILE", help="take what each fold of this file tests (predictions may lie "
                        "in fold-0, fold-1, ...)")  # fmt: skip
    parser.add_argument("--fold", type=int, metavar="K", help="only what fold K of --splits tests, from 0")
    parser.add_argument("--missing", choices=("refuse", "empty"), default="refuse", help="where a case has no "
                        "prediction: stop, or count it as empty (default: refuse)")  # fmt: skip
    parser.add_argument("--match", choices=("label", "any"), default="label", help="label: a tumour has the same value "
                        "in both; any: values mean nothing (default: label)")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write evaluation.json and evaluation.md here")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty, over a former "
                        "evaluation")  # fmt: skip
    parser.add_argument("--replicates", type=int, default=2000, metavar="N", help="of the bootstrap over patients "
                        "(default: 2000)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")


def run_evaluate_command(options: Mapping[str, object]) -> int:
    """Exit code 0. Raises InputError."""
    from ..datasets.splits import read_splits
    from .evaluate import comparisons, evaluate, page, single_images, summary, unknown
    from .measure import json_ready

    replicates, seed = int(str(options["replicates"])), int(str(options["seed"]))
    if replicates < 1 or seed < 0:
        raise InputError("--replicates must be 1 or more and --seed 0 or more.")
    out = None if options.get("out") is None else Path(str(options["out"]))
    folds = read_splits(str(options["splits"])) if options.get("splits") else []
    fold = None if options.get("fold") is None else int(str(options["fold"]))
    sides = str(options["prediction"]), str(options["reference"])
    found = comparisons(*sides, folds, fold, missing_is_empty=options.get("missing") == "empty")
    left_out = unknown(sides[1], folds, fold)
    if left_out:
        print(f"Left out, since nobody labelled the CT (no ct_labels.nii.gz): {', '.join(left_out)}", flush=True)
    singles = single_images(*sides, folds, fold)
    if singles:
        print(f"Left out, since there is no MRI to carry labels from: {', '.join(singles)}", flush=True)
    if out is not None:
        if out.is_dir() and any(out.iterdir()) and not options.get("overwrite"):
            raise InputError(f"--out: {out} is not empty; choose another folder, or add --overwrite.")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out: {out} cannot be made ({error.strerror}); choose another folder.") from error
    rows = [evaluate(comparison, str(options["match"])) for comparison in found]
    table = summary(rows, replicates, seed)
    missing = sum(comparison.predicted is None for comparison in found)
    text = page(rows, table, [*_notes(rows, options, len(folds), fold), *_on_gaps(left_out, singles, missing)])
    print(text.split("## Patients")[0].strip())
    if out is not None:
        content = {"match": options["match"], "replicates": replicates, "seed": seed, "summary": table, "rows": rows}
        (out / "evaluation.json").write_text(json.dumps(json_ready(content), indent=1) + "\n", encoding="utf-8")
        (out / "evaluation.md").write_text(text, encoding="utf-8")
        print(f"\nWritten: {out / 'evaluation.md'}, {out / 'evaluation.json'}")
    return 0


def _on_gaps(left_out: list[str], singles: list[str], missing: int) -> list[str]:
    notes = [f"{len(left_out)} tested cases have no reference and are left out."] if left_out else []
    if singles:
        notes.append(f"{len(singles)} CTs without an MRI are left out.")
    return [*notes, f"{missing} cases have no prediction and count as empty."] if missing else notes


def _notes(rows: list[dict], options: Mapping[str, object], folds: int, fold: int | None) -> list[str]:
    parts = f", {folds} folds, {'each patient tested in one of them' if folds > 1 else 'its test part'}"
    if fold is not None:
        parts = f", fold {fold} of 0 to {folds - 1}, its test part"
    notes = [
        f"{len(rows)} label maps{parts if folds else ''}. Means over patients with 95 % "
        f"intervals (bootstrap over patients, {options['replicates']} replicates, seed {options['seed']}). Surfaces "
        "are border voxels, as in the CHAOS challenge; an empty prediction counts with the image's diagonal.",
    ]
    mixed = sum(row["pairing"] == "different_people" for row in rows)
    if mixed:
        notes.append(
            f"**In {mixed} of these cases MRI and CT are of different people**: of labels carried over from the MRI "
            "the figures say how well two people's anatomies were matched, not how well a patient's was found."
        )
    without = [row for row in rows if len(row["figures"]) == 1]
    claimed = [row for row in without if row["false_tumour_ml"] > 0]
    if without:
        notes.append(f"{len(without)} references have no tumour; in {len(claimed)} of these the prediction claims one.")
    total = sum(row["false_tumour_ml"] for row in rows)
    notes.append(f"Tumour predicted where the reference has none: {total / len(rows):.1f} ml a patient on average.")
    return notes
