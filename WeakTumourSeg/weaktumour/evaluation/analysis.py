"""What can be seen and what cannot: Dice and error of results by how well the CT shows a structure.

The published work compared healthy livers, which the CT shows, with tumours that it does not (Dice 0.72 against 0.16).
The same study for any folder of results: the liver, the tumours that can be seen in the CT and those that cannot,
against the truth of their cases where there is one, with what the results said of themselves (verdict, p95) beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..labels import LIVER, read_labels
from ..quality import VISIBLE_CNR, visibility
from ..volumes import Volume, read_volume
from .measure import json_ready, markdown_table
from .metrics import centroid_mm, dice

MD, JSON, PLOT = "analysis.md", "analysis.json", "analysis.png"


@dataclass(frozen=True)
class Structure:
    """A liver or a tumour of one result. cnr_stated: where the result puts it; cnr_true: where the truth has it.

    What is not known is None.
    """

    case: str
    kind: str  # liver or tumour
    name: str
    verdict: str | None = None
    p95_mm: float | None = None
    cnr_mr: float | None = None
    cnr_stated: float | None = None
    cnr_true: float | None = None
    dice: float | None = None
    error_mm: float | None = None
    diameter_mm: float | None = None

    @property
    def group(self) -> str:
        """By what the CT shows at the true place, or, where that is not known, at the stated one."""
        if self.kind == "liver":
            return "liver"
        cnr = self.cnr_stated if self.cnr_true is None else self.cnr_true
        if cnr is None:
            return "tumour, visibility unknown"
        return "tumour, visible in the CT" if abs(cnr) >= VISIBLE_CNR else "tumour, invisible in the CT"


def write_analysis(root: Path, cohort: Path | None, out: Path) -> str:
    """Table, figures and plot into `out`; returns the table's page. Raises InputError."""
    found = analyse(root, cohort)
    try:
        out.mkdir(parents=True, exist_ok=True)
        content = [asdict(structure) | {"group": structure.group} for structure in found]
        (out / JSON).write_text(json.dumps(json_ready(content), indent=1) + "\n", encoding="utf-8")
        text = page(found, plot(found, out / PLOT), left_out(root, cohort))
        (out / MD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror}); choose another folder.") from error
    return text


def result_folders(root: Path) -> list[Path]:
    """RESULT itself, or the result folders in it and in its folders. Raises InputError where there are none."""
    found = [path.parent for pattern in ("result.json", "*/result.json", "*/*/result.json")
             for path in sorted(root.glob(pattern))]  # fmt: skip
    if not found:
        raise InputError(f"RESULT: {root} holds no result folder (result.json); give what register or batch wrote.")
    return found


def case_of(folder: Path, cohort: Path) -> Path | None:
    """The case that a result was made from. cohort: may be that case itself, which is believed."""
    if (cohort / "case.json").is_file():
        return cohort
    # A result written into its case's own folder is named after that.
    names = [name for name in (folder.name, folder.parent.name) if (cohort / name / "case.json").is_file()]
    return cohort / names[0] if names else None


def left_out(root: Path, cohort: Path | None) -> list[str]:
    """Names of the results that belong to no case of the cohort."""
    return [] if cohort is None else [f.name for f in result_folders(root) if case_of(f, cohort) is None]


def analyse(root: Path, cohort: Path | None) -> list[Structure]:
    """Liver and tumours of every result, with a cohort of those that belong to one of its cases.

    Raises InputError: no results, or a truth that does not belong to one.
    """
    structures: list[Structure] = []
    folders = result_folders(root)
    if cohort is not None and (cohort / "case.json").is_file() and len(folders) > 1:
        raise InputError(f"--data: {cohort} is one case and RESULT holds {len(folders)} results; give the cohort.")
    for folder in folders:
        truth = None if cohort is None else case_of(folder, cohort)
        if cohort is None or truth is not None:
            structures += _of_result(folder, truth)
    if cohort is not None and all(s.dice is None for s in structures):
        raise InputError(
            f"--data: {cohort} is no case with ct_labels.nii.gz and holds none that is named as a result is; give the "
            "cohort that the results were made from, or of one result its case."
        )
    return structures


def _of_result(folder: Path, truth_folder: Path | None) -> list[Structure]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        tumours = result["tumours"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"RESULT: {folder / 'result.json'} cannot be read; run that case again.") from error
    name = truth_folder.name if truth_folder else folder.name
    truth = None
    if truth_folder is not None and (truth_folder / "ct_labels.nii.gz").is_file():
        truth = read_labels(truth_folder / "ct_labels.nii.gz", f"truth of {name}")
        ct = read_volume(truth_folder / "ct.nii.gz", "CT")
        carried = read_volume(folder / "ct_labels.nii.gz", "labels on the CT")
        if not carried.grid.same_as(truth.volume.grid):
            raise InputError(f"RESULT: {folder} is on another grid than the truth of {name}; it is of another CT.")
    structures = [Structure(name, "liver", "whole liver")]
    if truth is not None:
        values = [int(value) for value, label in result["labels"].items() if label["role"] in ("liver", "tumour")]
        structures = [Structure(name, "liver", "whole liver", dice=dice(np.isin(carried.array, values),
                                                                         truth.whole_liver().array))]  # fmt: skip
    for tumour in tumours:
        known = {}
        if truth is not None:
            mask, found = truth.volume.array == tumour["label"], carried.array == tumour["label"]
            seen = visibility(Volume(ct.array, ct.grid), mask, truth.mask(LIVER)) if mask.any() else None
            known = {"cnr_true": seen.cnr if seen else None, "dice": dice(found, mask)}
            if mask.any() and found.any():
                off = centroid_mm(found, carried.grid) - centroid_mm(mask, carried.grid)
                known["error_mm"] = float(np.linalg.norm(off))
        structures.append(
            Structure(
                name, "tumour", tumour["name"], tumour["verdict"], tumour["p95_mm"], tumour["cnr_mr"], tumour["cnr_ct"],
                diameter_mm=tumour["diameter_mm"], **known,
            )
        )  # fmt: skip
    return structures


def page(structures: list[Structure], picture: str | None, absent_from_data: Sequence[str] = ()) -> str:
    """Markdown: by visibility, and by verdict. absent_from_data: results that are left out."""
    groups: dict[str, list[Structure]] = {}
    for structure in structures:
        groups.setdefault(structure.group, []).append(structure)
    lines = [
        [group, len(found), *_medians(found, ("dice", "error_mm", "p95_mm")), _within(found)]
        for group, found in sorted(groups.items())
    ]
    tumours = [s for s in structures if s.kind == "tumour"]
    absent = [s for s in tumours if s.cnr_mr is not None and s.cnr_stated is not None]
    share = np.mean([abs(s.cnr_mr) >= VISIBLE_CNR > abs(s.cnr_stated) for s in absent]) if absent else np.nan
    verdicts = {verdict: [s for s in tumours if s.verdict == verdict] for verdict in dict.fromkeys(
        s.verdict for s in tumours)}  # fmt: skip
    parts = [
        "# What the CT shows, and what it does not",
        f"{len({s.case for s in structures})} results, {len(tumours)} tumours. A tumour counts as visible where its "
        f"contrast to the ring round it is at least {VISIBLE_CNR:g} standard deviations of that ring, at its true "
        "place where that is known. Medians; errors are those of the centroid.",
        f"Left out, since the data hold no case of that name: {', '.join(absent_from_data)}." if absent_from_data
        else "",
        markdown_table(["structures", "number", "Dice", "error mm", "p95 mm", "error within p95 %"], lines),
        f"Feature absence: {100 * share:.0f} % of the tumours are visible in the MRI and not in the CT where they were "
        "put." if absent else "",
        markdown_table(["verdict", "number", "Dice", "error mm", "error within p95 %"],
                       [[str(v).replace("_", " "), len(f), *_medians(f, ("dice", "error_mm")), _within(f)]
                        for v, f in verdicts.items()]) if verdicts else "",
        f"![Error and Dice against contrast in the CT]({picture})" if picture else "",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _medians(found: list[Structure], names: tuple[str, ...]) -> list[float | None]:
    medians = []
    for name in names:
        values = [value for s in found if (value := getattr(s, name)) is not None]
        medians.append(float(np.median(values)) if values else None)
    return medians


def _within(found: list[Structure]) -> float | None:
    held = [s.error_mm <= s.p95_mm for s in found if s.error_mm is not None and s.p95_mm is not None]
    return 100.0 * float(np.mean(held)) if held else None


def plot(structures: list[Structure], path: Path) -> str | None:
    """Error and Dice against the contrast in the CT; the file's name, None where nothing is known or matplotlib is not
    there.
    """
    tumours = [s for s in structures if s.kind == "tumour" and s.dice is not None]
    points = [(abs(cnr), s) for s in tumours if (cnr := s.cnr_stated if s.cnr_true is None else s.cnr_true) is not None]
    if not points:
        return None
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    shown = [(cnr, s) for cnr, s in points if s.error_mm is not None]
    axes[0].plot([cnr for cnr, _ in shown], [s.error_mm for _, s in shown], "o", label="error of the centroid")
    stated = [(cnr, s) for cnr, s in shown if s.p95_mm is not None]
    if stated:
        axes[0].plot([cnr for cnr, _ in stated], [s.p95_mm for _, s in stated], "_", ms=12, label="stated p95")
    axes[0].set(yscale="log", ylabel="mm")
    for ticks in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        ticks(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.1e}"[0] in "125" else ""))
    axes[1].plot([cnr for cnr, _ in points], [s.dice for _, s in points], "o", label="tumours")
    livers = [s.dice for s in structures if s.kind == "liver" and s.dice is not None]
    if livers:
        axes[1].axhline(float(np.median(livers)), color="0.6", label="liver, median")
    axes[1].set(ylim=(0, 1), ylabel="Dice")
    for axis in axes:
        axis.axvline(VISIBLE_CNR, color="0.8", lw=0.8)
        axis.set_xlabel("contrast to noise in the CT")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path.name
