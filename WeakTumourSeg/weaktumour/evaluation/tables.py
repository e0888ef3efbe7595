"""What a benchmark says: tables over patients and tumours, plots, and the page that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .measure import markdown_table
from .peers import METHODS as PEERS

Row = dict
DIAMETERS_MM = ((0.0, 15.0), (15.0, 25.0), (25.0, 1e3))
MOTIONS_MM = ((0.0, 5.0), (5.0, 10.0), (10.0, 1e3))
FAILED_DICE = 0.8
NEAR_MM = 5.0


def tumours(rows: Sequence[Row], keep: Callable[[dict, Row], bool] = lambda tumour, row: True) -> list[dict]:
    return [tumour for row in rows for tumour in row["figures"]["tumours"] if keep(tumour, row)]


def values(entries: Sequence[dict], name: str, worst: float = np.nan) -> np.ndarray:
    """One figure of each entry; what is missing or infinite (an empty mask) counts as `worst`."""
    found = [entry.get(name) for entry in entries]
    return np.array([worst if value is None else float(value) for value in found], dtype=float)


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """One method's figures over its patients; medians unless the name says otherwise."""
    found = tumours(rows)
    middle = [t for t in found if 15 <= t["diameter_mm"] < 25]
    livers = [row["figures"]["liver"] for row in rows]
    points = [row["figures"]["points"] for row in rows if row["figures"]["points"]]
    fields = [row["figures"]["field"] for row in rows]
    error, ratio = values(found, "centroid_error_mm", np.inf), values(found, "volume_ratio", 0.0)
    return {
        "patients": len(rows),
        "tumours": len(found),
        "tumour error mm": _median(error),
        "tumour error p90 mm": _percentile(error, 90),
        "within 5 mm %": 100.0 * float(np.mean(error <= NEAR_MM)) if len(error) else np.nan,
        "tumour Dice 15-25 mm": _median(values(middle, "dice", 0.0)),
        "coverage +5 mm": _median(values(found, "coverage_5mm", 0.0)),
        "volume ratio": _median(ratio),
        "volume ratio p10": _percentile(ratio, 10),
        "liver Dice": _median(values(livers, "dice", 0.0)),
        "liver HD95 mm": _median(values(livers, "hd95_mm", np.inf)),
        "target error mm": _median(values(points, "median_mm")),
        "liver folds": int(np.nansum(values(fields, "liver_folds"))),
        "SDlogJ": _median(values(fields, "sd_log_jacobian")),
        "SDlogJ liver": _median(values(fields, "liver_sd_log_jacobian")),
        "failures": int(np.sum(values(livers, "dice", 0.0) < FAILED_DICE)),
        "s": _median(values(rows, "seconds")),
        "s with the affine start": _median(values(rows, "seconds_with_start")),
        "peak MB": _percentile(values(rows, "peak_mb"), 100),
    }


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that hold figures, of the patients that every method has them of; in the methods' order."""
    good = [row for row in rows if "figures" in row]
    methods = list(dict.fromkeys(row["method"] for row in good))
    common = (
        set.intersection(*({r["patient"] for r in good if r["method"] == m} for m in methods)) if methods else set()
    )
    return {m: [row for row in good if row["method"] == m and row["patient"] in common] for m in methods}


def bars(summaries: dict[str, dict[str, float]], ours: str = "ours", *, timed: bool = True) -> str:
    """What the project set itself to reach, and whether `ours` does; the best peer is the one with the smallest median
    tumour error. Empty where `ours` or every peer is missing. timed: whether the seconds are worth a comparison.
    """
    peers = {method: found for method, found in summaries.items() if method in PEERS}
    if ours not in summaries or not peers:
        return ""
    own = summaries[ours]
    best = min(peers, key=lambda method: peers[method]["tumour error mm"])
    other = "convexadam" if "convexadam" in peers else best
    conv = peers[other]
    at_most = [
        ("tumour error mm", own["tumour error mm"], 1.8),
        ("tumour error p90 mm", own["tumour error p90 mm"], 4.5),
        (f"tumour error over that of {best}", own["tumour error mm"] / peers[best]["tumour error mm"], 0.5),
        ("liver HD95 mm", own["liver HD95 mm"], 6.0),
        ("liver folds", own["liver folds"], 0),
        (f"SDlogJ over that of {other}", own["SDlogJ"] / conv["SDlogJ"], 1.0),
        (f"SDlogJ in the liver over that of {other}", own["SDlogJ liver"] / conv["SDlogJ liver"], 1.0),
        ("volume ratio, from above", own["volume ratio"], 1.1),
        ("failures", own["failures"], 0),
        ("peak MB", own["peak MB"], 2000),
    ]
    if timed:
        at_most.append((f"s over that of {other}", own["s"] / conv["s"], 1.0))
    at_least = [
        ("within 5 mm %", own["within 5 mm %"], 95.0),
        ("tumour Dice 15-25 mm", own["tumour Dice 15-25 mm"], 0.75),
        ("coverage +5 mm", own["coverage +5 mm"], 0.99),
        ("volume ratio, from below", own["volume ratio"], 0.9),
        ("volume ratio p10", own["volume ratio p10"], 0.75),
        ("liver Dice", own["liver Dice"], 0.95),
    ]
    lines = [
        [name, value, f"<= {bound:g}", "met" if value <= bound else "**MISSED**"] for name, value, bound in at_most
    ]
    lines += [
        [name, value, f">= {bound:g}", "met" if value >= bound else "**MISSED**"] for name, value, bound in at_least
    ]
    return markdown_table(["ours", "found", "wanted", ""], lines)


def strata(rows_of: dict[str, list[Row]]) -> str:
    """Tumour error by diameter, motion, what the CT shows of the tumour, and its phase: median (p90) of each method."""

    def line(name: str, keep: Callable[[dict, Row], bool]) -> list[object] | None:
        cells: list[object] = []
        count = 0
        for rows in rows_of.values():
            error = values(tumours(rows, keep), "centroid_error_mm", np.inf)
            count = len(error)
            cells.append(f"{_median(error):.1f} ({_percentile(error, 90):.1f})" if count else None)
        return [name, count, *cells] if count else None

    lines = [
        line(f"diameter {_span(low, high)} mm", lambda t, r, low=low, high=high: low <= t["diameter_mm"] < high)
        for low, high in DIAMETERS_MM
    ]
    lines += [
        line(f"motion {_span(low, high)} mm",
             lambda t, r, low=low, high=high: r.get("motion_mm") is not None and low <= r["motion_mm"] < high)
        for low, high in MOTIONS_MM
    ]  # fmt: skip
    lines += [
        line(f"{look} in the CT", lambda t, r, look=look: t.get("in_ct") == look)
        for look in ("invisible", "faint", "visible")
    ]
    phases = sorted({phase for rows in rows_of.values() for row in rows if (phase := _phase(row))})
    lines += [line(f"{phase} CT", lambda t, r, phase=phase: _phase(r) == phase) for phase in phases]
    kinds = {"phantom": "phantoms", "label_map": "livers of label maps", "real_ct": "real CT"}
    lines += [line(text, lambda t, r, kind=kind: r["kind"] == kind) for kind, text in kinds.items()]
    return markdown_table(["tumours", "number", *rows_of], [entry for entry in lines if entry])


def _phase(row: Row) -> str | None:
    """Of a simulated CT."""
    return (row.get("simulation") or {}).get("ct_phase")


def page(
    rows: Sequence[Row], *, title: str, notes: Sequence[str], pictures: Sequence[str], goals: bool = False,
    remarks: str = "",
) -> str:  # fmt: skip
    """The page in Markdown. notes: paragraphs under the title. pictures: file names beside the page. goals: with what
    the project set itself to reach. remarks: Markdown for the end.
    """
    rows_of = by_method(rows)
    summaries = {method: summary(found) for method, found in rows_of.items()}
    names = list(next(iter(summaries.values()), {}))
    table = markdown_table(["", *summaries], [[name, *(summaries[m][name] for m in summaries)] for name in names])
    failed = [f"- {row['patient']}, {row['method']}: {row['error']}" for row in rows if row.get("error")]
    worst = []
    for method, found in list(rows_of.items())[:1]:
        ranked = sorted(
            ((t.get("centroid_error_mm") if t.get("centroid_error_mm") is not None else np.inf, r, t)
             for r in found for t in r["figures"]["tumours"]),
            key=lambda entry: -entry[0],
        )  # fmt: skip
        worst = [[r["patient"], t["label"], t["diameter_mm"], e, r.get("motion_mm"), t.get("in_ct")]
                 for e, r, t in ranked[:5]]  # fmt: skip
        worst_title = f"The five worst tumours of `{method}`:"
    asked, compared = len({row["patient"] for row in rows}), next(iter(summaries.values()), {}).get("patients", 0)
    short = [f"**{compared} of {asked} patients are compared: those that every method has figures of.**"]
    timed = all(row.get("alone", True) for row in rows)
    wanted = bars(summaries, timed=timed) if goals else ""
    parts = [f"# {title}", *notes, "## All patients", *(short if compared < asked else []),
             "Medians over patients or tumours, unless a line says otherwise.", table,
             *(["## What was to be reached", wanted] if wanted else []),
             "## By tumour and patient", "Error of the tumour's centroid, mm: median (90th percentile).",
             strata(rows_of)]  # fmt: skip
    if worst:
        header = ["patient", "label", "diameter mm", "error mm", "motion mm", "in the CT"]
        parts += [worst_title, markdown_table(header, worst)]
    parts += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in pictures]
    if failed:
        parts += ["## Failed tasks", "\n".join(failed)]
    parts += [remarks] if remarks else []
    return "\n\n".join(parts) + "\n"


def plots(rows: Sequence[Row], folder: Path, prefix: str = "benchmark") -> list[str]:
    """Error against motion and diameter, error against time, cost against size; the files' names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows_of = by_method(rows)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for method, found in rows_of.items():
        errors = [(r.get("motion_mm"), t["diameter_mm"], t.get("centroid_error_mm")) for r in found
                  for t in r["figures"]["tumours"]]  # fmt: skip
        errors = np.array([[np.nan if v is None else v for v in entry] for entry in errors], dtype=float).reshape(-1, 3)
        for axis, column in zip(axes, (0, 1), strict=True):
            (drawn,) = axis.plot(errors[:, column], errors[:, 2], ".", ms=5, alpha=0.55, label=method)
            middle = _running_median(errors[:, column], errors[:, 2])
            axis.plot(*middle, color=drawn.get_color(), lw=1.6)
    axes[0].set(xlabel="motion, mm (after the best rigid fit)", ylabel="tumour centroid error, mm")
    axes[1].set(xlabel="tumour diameter, mm")
    for axis in axes:
        axis.set_yscale("log")
        axis.axhline(NEAR_MM, color="0.7", lw=0.8)
    axes[0].legend(fontsize=8)
    names = [_saved(figure, folder / f"{prefix}-error.png")]

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    for method, found in rows_of.items():
        error, seconds = values(tumours(found), "centroid_error_mm", np.nan), values(found, "seconds_with_start")
        axes[0].plot(_median(seconds), _median(error[np.isfinite(error)]), "o", label=method)
        axes[1].plot(1e-6 * values(found, "ct_voxels"), seconds, ".", label=method)
        axes[2].plot([len(r["figures"]["tumours"]) for r in found], seconds, ".", label=method)
    axes[0].set(xscale="log", xlabel="seconds, start included (median)", ylabel="tumour error, mm (median)")
    axes[1].set(yscale="log", xlabel="CT size, million voxels", ylabel="seconds")
    axes[2].set(yscale="log", xlabel="number of tumours", ylabel="seconds")
    axes[0].legend(fontsize=8)
    names.append(_saved(figure, folder / f"{prefix}-cost.png"))
    return names


def _saved(figure, path: Path) -> str:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path.name


def _running_median(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Medians of y over fifths of x."""
    good = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[good])
    parts = [part for part in np.array_split(order, 5) if len(part)]
    return [float(np.median(x[good][p])) for p in parts], [float(np.median(y[good][p])) for p in parts]


def _median(found: np.ndarray) -> float:
    return _percentile(found, 50)


def _percentile(found: np.ndarray, percent: float) -> float:
    """Also of infinite values, which numpy would turn into nan."""
    found = np.sort(found[~np.isnan(found)])
    if not len(found):
        return float("nan")
    at = percent / 100 * (len(found) - 1)
    low, high = found[int(np.floor(at))], found[int(np.ceil(at))]
    return float(low if low == high else low + (at - np.floor(at)) * (high - low))


def _span(low: float, high: float) -> str:
    return f"< {high:g}" if low == 0 else f">= {low:g}" if high >= 1e3 else f"{low:g} to {high:g}"
