"""Names and figures as the page may show them: words for codes, units for numbers, nothing that names a patient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

UNKNOWN = "\u2013"

TUMOUR_VERDICTS = {
    "localised": "Localised",
    "approximate": "Approximate position",
    "cannot_be_localised": "Cannot be localised",
    "outside_ct": "Outside the CT",
    "not_assessed": "Position uncertainty not assessed",
}
RUN_VERDICTS = {"ok": "No sign of misalignment found", "check_alignment": "Check the alignment"}

# Folders of any operating system, DICOM person names (FAMILY^GIVEN) and what is left of either.
_PATH = re.compile(
    r"(?:[A-Za-z]:)?\\?(?:[\\/][^\s\\/:*?\"'<>|;,]+){2,}[\\/]?|[A-Za-z]:[\\/]\S+|\S+\.(?:nii(?:\.gz)?|nrrd|mha|mhd|dcm|h5|tfm)\b"
)
_PERSON_NAME = re.compile(r"[^\s^/\\\"'(),;:]*\^[^\s/\\\"'(),;:]*")
_SHORTEST_STEM = 6


class Wording:
    """Cleans every text of a result: input names, folders and person names are replaced, then HTML is escaped."""

    def __init__(self, result: Mapping[str, Any], label_names: Mapping[int, str]) -> None:
        names = {item["file"] for item in result["inputs"].values() if item}
        # Stems too, but only those too particular to be a word of our own ("ct", "liver").
        stems = {name.split(".")[0] for name in names}
        names |= {stem for stem in stems if len(stem) >= _SHORTEST_STEM and re.search(r"[\d^_]", stem)}
        self._hidden = re.compile(
            "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)", re.IGNORECASE
        )
        self._label_names = dict(label_names)

    def text(self, value: object) -> str:
        """Any text of the result -> HTML."""
        cleaned = self._hidden.sub("[file]", str(value))
        cleaned = _PATH.sub("[file]", cleaned)
        return escape(_PERSON_NAME.sub("[name]", cleaned))

    def label(self, value: int, name: str) -> str:
        """A label's name -> HTML; one that holds a folder or a person's name becomes its number."""
        name = self._label_names.get(value) or name
        suspect = (
            self._hidden.search(name) or _PATH.search(name) or _PERSON_NAME.search(name) or re.search(r"[\\/]", name)
        )
        return f"label {value}" if suspect else escape(name)


def number(value: float | int | None, digits: int = 2, unit: str = "") -> str:
    """A figure with its unit; a dash where it is unknown."""
    if value is None:
        return UNKNOWN
    text = f"{value:,d}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return f"{text.replace(',', chr(0x2009))}{chr(0xA0) + unit if unit else ''}".replace("-", "\u2212")


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else number(100.0 * value, 0, "%")


def millilitres(volume_mm3: float | None) -> str:
    return (
        UNKNOWN
        if volume_mm3 is None
        else number(volume_mm3 / 1000.0, 2 if volume_mm3 < 10_000 else 0 if volume_mm3 > 200_000 else 1, "mL")
    )


def seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return number(value, 1, "s") if value < 100 else f"{int(value // 60)}\u00a0min {int(value % 60)}\u00a0s"


_UNITS = {"_mm3": "mm\u00b3", "_mm2": "mm\u00b2", "_mm": "mm", "_s": "s", "_deg": "\u00b0", "_mb": "MB", "_ml": "mL"}
_ABBREVIATIONS = {
    "hd95": "HD95",
    "assd": "ASSD",
    "tre": "TRE",
    "p50": "median",
    "p95": "95th percentile",
    "mr": "MRI",
    "ct": "CT",
    "lps": "LPS",
    "mind": "MIND",
    "nmi": "NMI",
    "ncc": "NCC",
    "mi": "MI",
    "5mm": "(5 mm margin)",
}


# Those whose name says too little by itself.
_EXPLAINED = {
    "unlikeness": "Unlikeness of MRI and CT (1: unrelated)",
    "vessel_agreement": "Agreement of the livers' vessels (correlation)",
    "inverse_consistency_mm": "Inverse consistency, largest in the liver",
    "jacobian_folds_in_body": "Folds in the body (voxels)",
}


def figure(name: str, value: Any) -> tuple[str, str]:
    """A figure's key and value -> its words and its number with unit: ("hd95_mm", 3.1) -> ("HD95", "3.10 mm")."""
    unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
    stem = name[: -len(next(ending for ending in _UNITS if name.endswith(ending)))] if unit else name
    if stem.endswith("_fraction") and isinstance(value, float):
        stem, shown = stem[: -len("_fraction")], percent(value)
    elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        digits = 1 if unit and value and abs(value) >= 100 else 2 if unit else 3
        shown = number(value, digits, unit)
    else:
        shown = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if name in _EXPLAINED:
        return _EXPLAINED[name], shown
    words = [_ABBREVIATIONS.get(word, word) for word in stem.split("_")]
    words[0] = words[0][:1].upper() + words[0][1:]
    return " ".join(words), shown
