"""The words, cards and tables of report.html. Every text that comes from outside goes through `Wording`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .panels import LIVER_COLOUR, TRUTH_COLOUR, Row, Scene, definitions
from .style import SCRIPT, STYLE
from .wording import RUN_VERDICTS, TUMOUR_VERDICTS, UNKNOWN, Wording, figure, millilitres, number, percent, seconds

Json = Mapping[str, Any]
_RESEARCH = "Research use only. Not a medical device."


def page(result: Json, tumour_cards: Sequence[str], overview: str, scene: Scene, wording: Wording) -> str:
    """The whole page. result: content of result.json; tumour_cards, overview: HTML from this module."""
    body = "\n".join(
        [
            f'<header><h1>WeakTumourSeg: MRI labels on the CT</h1><div class="research">{_RESEARCH}</div></header>',
            _run(result, wording),
            _summary(result, wording),
            _tools(scene),
            *tumour_cards,
            _overview(overview, scene),
            _truth(result, wording),
            _tables(result, wording),
            f"<footer>{_RESEARCH} Pictures follow the radiological convention: the patient's right is on the left of "
            "axial and coronal pictures, anterior on the left of sagittal ones. CT window: level 60, width 400 HU. "
            "Points in LPS millimetres.</footer>",
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="robots" content="noindex"><title>WeakTumourSeg report</title>'
        f"<style>{STYLE}</style></head><body>{definitions()}<main>\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


# -- above the pictures ---------------------------------------------------------------------------------------------
def _run(result: Json, wording: Wording) -> str:
    run = result["run"]
    sentences = [wording.text(sentence) for sentence in run["reasons"]]
    reasons = f"<ul>{''.join(f'<li>{sentence}</li>' for sentence in sentences)}</ul>" if sentences else ""
    if run["verdict"] == "ok" and not reasons:
        reasons = (
            '<p class="soft">The checks that need no truth raised no objection. They cannot prove that a tumour lies '
            "where it is drawn: judge the pictures.</p>"
        )
    head = f"<h2>{RUN_VERDICTS[run['verdict']]}</h2>"
    return f'<section class="verdict {escape(run["verdict"])}">{head}{reasons}{_warnings(result, wording)}</section>'


def _warnings(of: Json, wording: Wording) -> str:
    return "".join(f'<p class="warning">{wording.text(sentence)}</p>' for sentence in of["warnings"])


def _summary(result: Json, wording: Wording) -> str:
    registration, settings = result["registration"], result["settings"]
    similarity = registration["similarity"]
    assessed = sum(tumour["verdict"] != "not_assessed" for tumour in result["tumours"])
    count = len(result["tumours"])
    stages = ", ".join(registration["stages_kept"]) or "none"
    better = f"{similarity['measure']}, {similarity['better']} is better"
    items = [
        (
            "Tumours carried over",
            str(count),
            f"{assessed} with a position uncertainty" if assessed else "position uncertainty not assessed",
        ),
        ("Started from", wording.text(registration["start"]), f"stages kept: {wording.text(stages)}"),
        (
            "Score before \u2192 after",
            f"{number(similarity['before'], 3)} \u2192 {number(similarity['after'], 3)}",
            wording.text(better),
        ),
        (
            "Folds in the body",
            number(registration["jacobian"]["folds_in_body"]),
            f"smallest Jacobian {number(registration['jacobian']['min'])}",
        ),
        ("Time to the result", seconds(_until_result(result)), _peak_memory(result)),
        (
            "Device",
            wording.text(settings["device"]),
            f"{_counted(settings['threads'], 'thread')}, preset {wording.text(settings['preset'])}",
        ),
    ]
    return f'<section><dl class="strip">{_facts(items)}</dl></section>'


def _until_result(result: Json) -> float | None:
    """The uncertainty comes after it."""
    timings = result["timings_s"]
    total = timings.get("total")
    return None if total is None else total - timings.get("uncertainty", 0.0)


def _peak_memory(result: Json) -> str:
    peak = result["peak_memory_mb"]
    return "" if peak is None else f"peak memory until then {number(peak, 0, 'MB')}"


def _counted(count: int, thing: str) -> str:
    return f"{number(count)} {thing}{'' if count == 1 else 's'}"


def _facts(items: Iterable[tuple[str, str, str]]) -> str:
    """(term, HTML, small HTML beneath) -> the inside of a <dl>."""
    return "".join(
        f"<div><dt>{term}</dt><dd>{shown}{f'<small>{small}</small>' if small else ''}</dd></div>"
        for term, shown, small in items
    )


def _tools(scene: Scene) -> str:
    def key(colour: str, text: str, dash: str = "") -> str:
        line = f'<path d="M2 5h22" stroke="{colour}" stroke-width="2"{dash}/>'
        return f'<span class="key"><svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>{text}</span>'

    keys = key(LIVER_COLOUR, "whole liver")
    keys += key(next(iter(scene.tumour_colours.values()), "#fff"), "tumour")
    if scene.labels_truth is not None:
        keys += key(TRUTH_COLOUR, "known truth", ' stroke-dasharray="4 3"')
    keys += key("#9fb3c8", "edge of the CT", ' stroke-dasharray="1.5 3"')
    return (
        '<div class="tools"><label>MRI (orange) over CT <input id="blend" type="range" min="0" max="100" value="50">'
        "</label>"
        f'<label><input id="lines" type="checkbox" checked> contours</label>{keys}</div>'
    )


# -- pictures -------------------------------------------------------------------------------------------------------
def picture_rows(rows: Sequence[Row]) -> str:
    head = "".join(f"<div>{plane}</div>" for plane in ("", "Axial", "Coronal", "Sagittal"))
    body = "".join(
        f'<div class="row"><div><h3>{row.title}</h3><p>{row.text}</p>{row.extra}</div>{"".join(row.pictures)}</div>'
        for row in rows
    )
    return f'<div class="row planes">{head}</div>{body}'


def tumour_card(tumour: Json, colour: str, pictures: str, wording: Wording) -> str:
    """One tumour: name, verdict, figures, warnings, pictures (HTML; empty: none were made)."""
    name = wording.label(tumour["label"], tumour["name"])
    uncertainty = (
        UNKNOWN if tumour["p50_mm"] is None else f"{number(tumour['p50_mm'], 1)} / {number(tumour['p95_mm'], 1, 'mm')}"
    )
    centroid = tumour["centroid_lps_mm"]
    items = [
        ("Volume", millilitres(tumour["volume_mm3"]), ""),
        ("Diameter", number(tumour["diameter_mm"], 1, "mm"), "of a sphere of that volume"),
        ("Volume CT / MRI", number(tumour["volume_ratio"]), f"the transform alone: {number(tumour['jacobian_ratio'])}"),
        ("Inside the CT", percent(tumour["inside_ct_fraction"]), ""),
        ("Position error, median / 95th", uncertainty, "not assessed" if tumour["p50_mm"] is None else "expected"),
        (
            "Visibility MRI / CT",
            f"{number(tumour['visibility_mr'])} / {number(tumour['visibility_ct'])}",
            _contrast(tumour),
        ),
        ("Centroid (LPS)", UNKNOWN if centroid is None else " ".join(number(c, 0) for c in centroid), "mm"),
    ]
    reason = f"<p>{wording.text(tumour['verdict_reason'])}</p>" if tumour["verdict_reason"] else ""
    if not pictures:
        pictures = (
            '<p class="none soft">Pictures are made for the largest tumours only; this one is in the segmentation.</p>'
        )
    return (
        '<section class="tumour"><div class="head">'
        f'<span class="swatch" style="background:{colour}"></span><h2>{name}</h2>'
        f'<span class="badge {escape(tumour["verdict"])}">{TUMOUR_VERDICTS[tumour["verdict"]]}</span></div>'
        f'<dl class="facts">{_facts(items)}</dl>{reason}{_warnings(tumour, wording)}{pictures}</section>'
    )


def _contrast(tumour: Json) -> str:
    if tumour["cnr_mr"] is None and tumour["cnr_ct"] is None:
        return "not measured"
    return f"contrast to noise {number(tumour['cnr_mr'], 1)} / {number(tumour['cnr_ct'], 1)}"


def _overview(pictures: str, scene: Scene) -> str:
    local = scene.deformation
    text = (
        "Local deformation in the body (the displacement less its best-fitting affine map): "
        f"median {number(local.median_mm, 1)}, 95th percentile {number(local.p95_mm, 1)}, "
        f"largest {number(local.max_mm, 1, 'mm')}."
    )
    return f'<section class="overview"><h2>Whole liver</h2><p class="soft">{text}</p>{pictures}</section>'


# -- tables ---------------------------------------------------------------------------------------------------------
def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table of HTML cells; columns from `numbers_from` on are aligned right. Empty without rows."""
    rows = list(rows)
    if not rows:
        return ""

    def line(cells: Sequence[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{' class=n' if i >= numbers_from else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
            + "</tr>"
        )

    heading = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    return (
        f"<div><h3>{title}</h3><table>{heading}<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table></div>"
    )


def _figures(figures: Json, wording: Wording) -> list[tuple[str, str]]:
    return [tuple(wording.text(part) for part in figure(name, value)) for name, value in figures.items()]


def _truth(result: Json, wording: Wording) -> str:
    """Figures against a known truth, kept apart from what the method can know itself."""
    truth = result["truth"]
    if truth is None:
        return ""
    kind = {"simulated": "simulated truth", "annotated": "annotated truth"}[truth["kind"]]
    names = {value: wording.label(int(value), label["name"]) for value, label in result["labels"].items()}
    columns = {
        "Whole liver": truth["whole_liver"],
        **{names.get(value, f"label {value}"): f for value, f in truth["labels"].items()},
    }
    keys = list(dict.fromkeys(key for figures in columns.values() for key in figures))
    head = ["", *(wording.text(figure(key, None)[0]) for key in keys)]
    rows = [[name, *(figure(key, figures.get(key))[1] for key in keys)] for name, figures in columns.items() if figures]
    points = table("Target registration error", (), _figures(truth["points"], wording))
    return (
        f'<section class="against-truth"><h2>Against the {kind}</h2><p class="soft">Known for this case only. '
        "The registration never saw it; dashed white contours show it.</p>"
        f'<div class="wide">{table("Labels", head, rows)}</div><div class="narrow">{points}</div></section>'
    )


def _tables(result: Json, wording: Wording) -> str:
    registration = result["registration"]
    jacobian = {f"jacobian_{name}": value for name, value in registration["jacobian"].items()}
    displacement = {f"displacement_{name}": value for name, value in registration["displacement"].items()}
    parts = [
        table("Figures", (), _figures({**result["metrics"], **displacement, **jacobian}, wording)),
        table(
            "Starts and stages tried",
            ("name", "stage", "score", "kept"),
            _candidates(registration, wording),
            numbers_from=2,
        ),
        table("Labels", ("name", "role", "volume", "pieces"), _labels(result, wording), numbers_from=2),
        table("Time", (), _timings(result["timings_s"], wording)),
        table("Settings", (), _settings(result["settings"], wording)),
        table(
            "Inputs",
            ("", "voxels", "spacing (mm)", "axes", "SHA-256"),
            _inputs(result["inputs"], wording),
            numbers_from=9,
        ),
        table("Models", ("id", "role", "SHA-256"), _models(result["models"], wording), numbers_from=9)
        or "<div><h3>Models</h3><p>None used.</p></div>",
        table("Versions", (), ((wording.text(n), wording.text(v or UNKNOWN)) for n, v in result["software"].items())),
    ]
    return f'<section><h2>Details</h2><div class="tables">{"".join(parts)}</div></section>'


def _candidates(registration: Json, wording: Wording) -> Iterable[Sequence[str]]:
    for candidate in registration["candidates"]:
        yield (
            wording.text(candidate["name"]),
            wording.text(candidate["stage"]),
            number(candidate["score"], 4),
            "yes" if candidate["kept"] else "no",
        )


def _labels(result: Json, wording: Wording) -> Iterable[Sequence[str]]:
    for value, label in result["labels"].items():
        pieces = label["components"]
        yield (
            wording.label(int(value), label["name"]),
            escape(label["role"]),
            millilitres(label["volume_mm3"]),
            str(len(pieces)) if pieces else UNKNOWN,
        )


def _timings(timings: Json, wording: Wording) -> Iterable[Sequence[str]]:
    total = max(timings.get("total") or 0.0, 1e-9)
    for stage, value in timings.items():
        bar = (
            ""
            if stage == "total"
            else f'<span class="time" style="width:{min(100.0, 100 * value / total):.1f}%"></span>'
        )
        yield wording.text(stage.replace("_", " ")) + bar, seconds(value)


def _settings(settings: Json, wording: Wording, within: str = "") -> Iterable[Sequence[str]]:
    for name, value in settings.items():
        words, shown = figure(name, value)
        if isinstance(value, Mapping):
            yield from _settings(value, wording, f"{words}: ")
            continue
        if isinstance(value, list):
            shown = (
                "; ".join(map(_in_short, value))
                if any(isinstance(item, Mapping) for item in value)
                else _in_short(value)
            )
        elif isinstance(value, int) and not isinstance(value, bool):
            shown = str(value)  # a seed has no thousands
        elif isinstance(value, float):
            shown = f"{value:g}{shown[shown.find(chr(0xA0)) :] if chr(0xA0) in shown else ''}"  # as it was set
        yield wording.text(within + words), wording.text(shown or "none")


def _in_short(value: Any) -> str:
    """A list or dictionary of plain values in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _inputs(inputs: Json, wording: Wording) -> Iterable[Sequence[str]]:
    """What was given, without its name: names of files often name patients."""
    words = {
        "mr": "MRI",
        "ct": "CT",
        "mr_labels": "MRI labels",
        "ct_liver": "CT liver",
        "initial_transform": "Initial transform",
    }
    for name, item in inputs.items():
        if item is not None:
            size = " \u00d7 ".join(map(str, item["size"])) if item["size"] else UNKNOWN
            spacing = (
                " \u00d7 ".join(f"{length:.3g}" for length in item["spacing_mm"]) if item["spacing_mm"] else UNKNOWN
            )
            checksum = f"<code>{escape(item['sha256'][:12])}\u2026</code>"
            yield (
                words.get(name, wording.text(name)),
                size,
                spacing,
                wording.text(item["orientation"] or UNKNOWN),
                checksum,
            )


def _models(models: Sequence[Json], wording: Wording) -> Iterable[Sequence[str]]:
    for model in models:
        yield wording.text(model["id"]), escape(model["role"]), f"<code>{escape(model['sha256'][:12])}\u2026</code>"
