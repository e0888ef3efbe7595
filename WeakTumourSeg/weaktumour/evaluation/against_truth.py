"""A result against the truth of its case, where one is known: figures for result.json, contours for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cases import read_case
from ..deformation import DisplacementField
from ..errors import InputError
from ..report import ReportData, write_report
from ..result import Truth, write_result
from ..volumes import read_volume
from ..workspace import update_workspace
from .metrics import evaluate_case


def add_truth(result_folder: str | Path, case_folder: str | Path) -> dict[str, Any]:
    """Write what `evaluate_case` finds, which is returned, into result.json and report.html of a finished result.

    The run must have begun without an initial transform. Raises InputError: the case has no labels on its CT, or one of
    both folders cannot be read.
    """
    folder, case = Path(result_folder), read_case(case_folder)
    if case.ct_labels is None:
        raise InputError(f"Case: {case_folder} has no ct_labels.nii.gz; there is no truth to compare with.")
    content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    labels = read_volume(folder / "ct_labels.nii.gz", "labels on the CT")
    field = DisplacementField.read(folder / "transform.h5")
    figures = evaluate_case(labels, case.ct_labels, field, case.truth_points)
    kind = "simulated" if case.info.get("kind") == "simulated" else "annotated"
    content["truth"] = vars(Truth.of(figures, kind))
    content["truth"]["labels"] = {str(value): entry for value, entry in content["truth"]["labels"].items()}
    likely = folder / "tumour_probability.nii.gz"
    shown = ReportData(
        ct=case.ct,
        mr_before=case.mr,
        mr_after=read_volume(folder / "mr_on_ct.nii.gz", "MRI on the CT"),
        labels=labels,
        label_names={int(value): label["name"] for value, label in content["labels"].items()},
        labels_before=case.mr_labels,
        field=field,
        result=content,
        truth_labels=case.ct_labels,
        probability=read_volume(likely, "probability") if likely.exists() else None,
    )
    with update_workspace(folder, last="result.json") as partial:
        write_report(partial / "report.html", shown)
        write_result(partial / "result.json", content)
    return figures
