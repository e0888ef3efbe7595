"""Label maps against references: the CHAOS metrics of each patient, and the published table's two rows over them all.

The table of the published system has a row for the healthy liver, which the CT shows (here: the whole liver, with its
tumours), and one for tumours that it does not show. Which tumours those are is known of simulated patients (case.json);
of others it is not, and they get a row of their own instead of a guess. Patients, not folds or images, are what the
confidence intervals draw from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..cases import read_case_info, subjects_of
from ..datasets.splits import Fold
from ..errors import InputError
from ..labels import LIVER as LIVER_ROLE
from ..labels import TUMOUR as TUMOUR_ROLE
from ..labels import read_label_roles, read_labels
from ..volumes import Grid, Volume
from .chaos import METRICS, chaos_metrics
from .measure import markdown_table

Row = dict
LIVER = "visible healthy liver"
TUMOURS = {
    "invisible": "invisible tumours",
    "faint": "faint tumours",
    "visible": "visible tumours",
    "mixed": "tumours, visible and invisible together",
    None: "tumours, visibility not known",
}
MATCHES = ("label", "any")
FIGURES = (*METRICS, "score")


@dataclass(frozen=True)
class Comparison:
    """One prediction and its reference, both label maps of one CT. predicted: None where nothing was found.

    info: the case's case.json. fold: from 0, if any.
    """

    name: str
    predicted: Path | None
    reference: Path
    info: dict[str, object] = field(default_factory=dict)
    fold: int | None = None


def comparisons(
    prediction: str | Path,
    reference: str | Path,
    folds: Sequence[Fold] = (),
    fold: int | None = None,
    *,
    missing_is_empty: bool = False,
) -> list[Comparison]:
    """Two label files; a result folder and its case; or a folder of results and a cohort, of which with folds each case
    is taken that a fold tests.

    fold: only what this one tests, from 0. A case's prediction is PREDICTION/NAME/ct_labels.nii.gz or
    PREDICTION/NAME.nii.gz, also below results; with folds also below fold-K. Cases of a fold that have no reference are
    `unknown`, CTs without an MRI may be `single_images`.
    Raises InputError: a missing prediction is no reason to leave a patient out; missing_is_empty: it counts as empty,
    unless all are missing.
    """
    prediction, reference = Path(prediction), Path(reference)
    if fold is not None and not folds:
        raise InputError("--fold: it counts the folds of --splits; give both or neither.")
    if fold is not None and not 0 <= fold < len(folds):
        raise InputError(f"--fold: {fold}; --splits has the folds 0 to {len(folds) - 1}.")
    if not folds and prediction.is_dir() and (reference / "case.json").is_file():  # one result and its case
        prediction, info = _reference(prediction), read_case_info(reference)
        for what, path in (("prediction", prediction), ("reference", _reference(reference))):
            if not path.is_file():
                raise InputError(f"Evaluate: the {what} {path} does not exist; give a result folder and its case.")
        return [Comparison(reference.resolve().name, prediction, _reference(reference), info)]
    if prediction.is_file() and reference.is_file():
        if folds:
            raise InputError("--splits: there are no folds in two files; leave it out, or give folders.")
        return [Comparison(prediction.name.removesuffix(".nii.gz"), prediction, reference)]
    for what, path in (("predictions", prediction), ("references", reference)):
        if not path.is_dir():
            raise InputError(f"Evaluate: the {what} {path} are no folder; give two label files or two folders.")
    wanted = _labelled(reference, folds, fold)
    singles = single_images(prediction, reference, folds, fold)
    wanted = [(name, number) for name, number in wanted if name not in singles]
    if not wanted:
        raise InputError(f"Evaluate: {reference} holds no case with a ct_labels.nii.gz to compare with.")
    found = [_comparison(prediction, reference, name, number, missing_is_empty) for name, number in wanted]
    if all(comparison.predicted is None for comparison in found):
        raise InputError(f"Evaluate: {prediction} holds no prediction at all; give the folder that they are in.")
    return found


def unknown(reference: str | Path, folds: Sequence[Fold], fold: int | None = None) -> list[str]:
    """Cases that folds (or one) test and whose CT nobody labelled. Raises InputError: a case is not in the cohort."""
    names = [name for name, _ in _tested(folds, fold)]
    absent = [name for name in names if not (Path(reference) / name).is_dir()]
    if absent:
        raise InputError(f"Evaluate: the case {absent[0]} of the splits is not in {reference}; give its cohort.")
    return [name for name in names if not _reference(Path(reference) / name).is_file()]


def single_images(
    prediction: str | Path, reference: str | Path, folds: Sequence[Fold] = (), fold: int | None = None
) -> list[str]:
    """Labelled CTs of which there is no MRI, where the predictions are results of registration, which had nothing to do
    there. Where others are among them, as by `weaktumour segment`, such a CT lacks a prediction.

    [] of two files, or a result and its case.
    """
    prediction, reference = Path(prediction), Path(reference)
    if not prediction.is_dir() or not reference.is_dir() or (reference / "case.json").is_file():
        return []
    labelled = _labelled(reference, folds, fold)
    found = [place for name, number in labelled for place in _places(prediction, name, number) if place.is_file()]
    if not found or not all((place.parent / "result.json").is_file() for place in found):
        return []
    return [
        name
        for name, _ in labelled
        if (reference / name / "case.json").is_file() and read_case_info(reference / name).get("pairing") == "single"
    ]


def _labelled(reference: Path, folds: Sequence[Fold], fold: int | None) -> list[tuple[str, int | None]]:
    """Name and fold of each case that is asked for and has a reference."""
    if folds:
        left_out = unknown(reference, folds, fold)
        return [(name, number) for name, number in _tested(folds, fold) if name not in left_out]
    return [(path.name, None) for path in sorted(reference.iterdir()) if _reference(path).is_file()]


def _tested(folds: Sequence[Fold], fold: int | None) -> list[tuple[str, int]]:
    return [(name, k) for k, parts in enumerate(folds) if fold in (None, k) for name in parts.test]


def _reference(folder: Path) -> Path:
    return folder / "ct_labels.nii.gz"


def _places(prediction: Path, name: str, fold: int | None) -> list[Path]:
    folders = [prediction / f"fold-{fold}", prediction] if fold is not None else [prediction]
    folders = [each for folder in folders for each in (folder / "results", folder)]  # as `weaktumour batch` writes them
    return [place for f in folders for place in (f / name / "ct_labels.nii.gz", f / f"{name}.nii.gz")]


def _comparison(prediction: Path, reference: Path, name: str, fold: int | None, missing_is_empty: bool) -> Comparison:
    places = _places(prediction, name, fold)
    found = next((place for place in places if place.is_file()), None)
    if found is None and not missing_is_empty:
        raise InputError(
            f"Evaluate: there is no prediction for {name} ({places[-2]} or {places[-1].name}); make it, or where "
            "`weaktumour segment` found no liver and wrote none, let it count as empty with --missing empty."
        )
    return Comparison(name, found, _reference(reference / name), read_case_info(reference / name), fold)


def evaluate(comparison: Comparison, match: str = "label") -> Row:
    """{patient, fold, subjects, pairing, figures: {row name: CHAOS metrics}, false_tumour_ml} of one patient.

    match: "label" where a tumour's value is the same in both maps, as after propagation; "any" where values mean
    nothing, as after segmentation: then all tumours of a patient count as one. A labels.json beside a label map says
    what its values are (see `in_our_scheme`); without one 1 is liver, 2 and above are tumours.
    false_tumour_ml: predicted tumour where the reference has none. Raises InputError.
    """
    truth = read_labels(comparison.reference, f"Reference {comparison.name}").volume
    predicted = _read_prediction(comparison, truth.grid)
    if not predicted.grid.same_as(truth.grid, tolerance_mm=1e-2):
        raise InputError(
            f"Prediction {comparison.name}: it lies on another grid than the reference; resample it onto that CT first."
        )
    schemes = [{} if path is None else _scheme(path) for path in (comparison.predicted, comparison.reference)]
    predicted, truth = (
        Volume(in_our_scheme(volume.array, mine, other), volume.grid)
        for volume, mine, other in ((predicted, *schemes), (truth, *schemes[::-1]))
    )
    if not (truth.array > 0).any():
        raise InputError(f"Reference {comparison.name}: its labels.json names no liver and no tumour; correct it.")
    spacing = truth.grid.spacing
    figures = {LIVER: chaos_metrics(predicted.array > 0, truth.array > 0, spacing)}
    for row, values in _tumour_rows(truth.array, comparison.info, match).items():
        mask = predicted.array >= 2 if match == "any" else np.isin(predicted.array, values)
        figures[row] = chaos_metrics(mask, np.isin(truth.array, values), spacing)
    false = np.count_nonzero((predicted.array >= 2) & (truth.array < 2))
    return {
        "patient": comparison.name,
        "fold": comparison.fold,
        "subjects": list(subjects_of(comparison.info)) if comparison.info else [comparison.name],
        "pairing": comparison.info.get("pairing"),
        "figures": figures,
        "false_tumour_ml": false * truth.grid.voxel_volume_mm3 * 1e-3,
    }


def _scheme(path: Path) -> dict[int, str]:
    """value -> role from the labels.json beside a label map; {} without one, or where it says what holds anyway."""
    roles = read_label_roles(path.parent / "labels.json")
    usual = all(role == (LIVER_ROLE if value == 1 else TUMOUR_ROLE) for value, role in roles.items())
    return {} if usual else roles


def in_our_scheme(array: np.ndarray, roles: dict[int, str], other: dict[int, str]) -> np.ndarray:
    """A label map with 1 liver and 2, 3, ... its tumours in the order of their values; what is neither becomes 0.

    roles: value -> role, {} where the values are such already. other: the same of the map that it is compared with,
    so that a tumour which only one of them names keeps the same number in both.
    """
    if not roles:
        return array
    tumours = sorted({value for named in (roles, other) for value, role in named.items() if role == TUMOUR_ROLE})
    result = np.zeros(array.shape, dtype=np.uint16)
    for value, role in roles.items():
        if role in (LIVER_ROLE, TUMOUR_ROLE):
            result[array == value] = 1 if role == LIVER_ROLE else 2 + tumours.index(value)
    return result


def _read_prediction(comparison: Comparison, grid: Grid) -> Volume:
    """Also one that is empty, which a reader of labels takes for a mistake: here it is a result, and a bad one.

    grid: of one that is not there.
    """
    if comparison.predicted is None:
        return Volume(np.zeros(grid.shape, dtype=np.uint8), grid)
    try:
        return read_labels(comparison.predicted, f"Prediction {comparison.name}").volume
    except InputError as error:
        if "label map is empty" not in str(error):
            raise
        image = sitk.ReadImage(str(comparison.predicted))
        return Volume(np.zeros(image.GetSize()[::-1], dtype=np.uint8), Grid.of(image))


def _tumour_rows(truth: np.ndarray, info: dict[str, object], match: str) -> dict[str, list[int]]:
    """The table's row of each true tumour: row name -> values."""
    looks = (info.get("simulation") or {}).get("tumours_in_ct") or []
    rows: dict[str, list[int]] = {}
    for value in (int(v) for v in np.unique(truth) if v >= 2):
        look = looks[value - 2] if value - 2 < len(looks) else None
        rows.setdefault(TUMOURS.get(look, TUMOURS[None]), []).append(value)
    if match == "any" and len(rows) > 1:
        return {TUMOURS["mixed"]: sorted(value for values in rows.values() for value in values)}
    return rows


# -- over patients ------------------------------------------------------------------------------------------------
def summary(rows: Sequence[Row], replicates: int = 2000, seed: int = 0) -> dict[str, dict]:
    """Row name -> {patients, dice, ...: {mean, low, high}}: means over patients with 95 % bootstrap intervals."""
    names = [LIVER, *TUMOURS.values()]
    result = {}
    for name in names:
        having = [row for row in rows if name in row["figures"]]
        if not having:
            continue
        groups = _by_subject(having)
        table = np.array([[row["figures"][name][figure] for figure in FIGURES] for row in having])
        low, high = bootstrap_interval(table, groups, replicates, seed)
        result[name] = {"patients": len(set(groups)), "label_maps": len(having)} | {
            figure: {"mean": float(mean), "low": float(a), "high": float(b)}
            for figure, mean, a, b in zip(FIGURES, table.mean(axis=0), low, high, strict=True)
        }
    return result


def bootstrap_interval(
    table: np.ndarray, groups: Sequence[int], replicates: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval (low, high), each (k,), of the column means of a table (n, k), drawing whole groups.

    groups: (n,) patient number of each line. With one patient there is nothing to draw from: nan.
    """
    members = [np.flatnonzero(np.asarray(groups) == g) for g in sorted(set(groups))]
    if len(members) < 2:
        return (np.full(table.shape[1], np.nan),) * 2
    random = np.random.default_rng(seed)
    sums = np.array([table[m].sum(axis=0) for m in members])
    sizes = np.array([len(m) for m in members])
    drawn = random.integers(len(members), size=(replicates, len(members)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)[:, None]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def _by_subject(rows: Sequence[Row]) -> list[int]:
    """A patient's number for each row; rows with a subject in common have the same."""
    numbers: list[int] = []
    of_subject: dict[str, int] = {}
    for row in rows:
        known = {of_subject[s] for s in row["subjects"] if s in of_subject}
        number = min(known, default=len(numbers))
        numbers = [number if n in known else n for n in numbers] + [number]
        of_subject = {s: number if n in known else n for s, n in of_subject.items()}
        of_subject |= dict.fromkeys(row["subjects"], number)
    return numbers


# -- the page -----------------------------------------------------------------------------------------------------
_HEADS = {"dice": "DICE", "ravd_percent": "RAVD %", "assd_mm": "ASSD mm", "mssd_mm": "MSSD mm", "score": "score"}


def page(rows: Sequence[Row], table: dict[str, dict], notes: Sequence[str]) -> str:
    """The table, the folds where there are some, and each patient, in Markdown."""
    head = ["", "patients", *(_HEADS[figure] for figure in FIGURES)]
    lines = [[name, line["patients"], *(_interval(line[f], f) for f in FIGURES)] for name, line in table.items()]
    parts = ["# Evaluation", *notes, markdown_table(head, lines)]
    folds = sorted({row["fold"] for row in rows if row["fold"] is not None})
    if folds:
        cells = []
        for fold in folds:
            of_fold = [row for row in rows if row["fold"] == fold]
            for name in table:
                found = [row["figures"][name] for row in of_fold if name in row["figures"]]
                if found:
                    means = [float(np.mean([f[figure] for f in found])) for figure in FIGURES]
                    cells.append([f"fold {fold}", name, len(found), *means])
        parts += ["## Folds", markdown_table(["", "", "label maps", *head[2:]], cells)]
    each = [
        [row["patient"], name, *(row["figures"][name][f] for f in FIGURES)] for row in rows for name in row["figures"]
    ]
    parts += ["## Patients", markdown_table(["patient", "", *head[2:]], each)]
    parts.append("For research only. Not a medical device; not for diagnosis or treatment.")
    return "\n\n".join(parts) + "\n"


def _interval(value: dict[str, float], figure: str) -> str:
    digits = {"dice": 3, "score": 1}.get(figure, 2)
    if not np.isfinite(value["low"]):
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
