"""Stand-in for ``slicer.i18n``: no translation is installed here, so a text translates to itself."""

from __future__ import annotations


def translate(context: str, text: str) -> str:
    import slicer

    return slicer.app.translate(context, text)


def tr(text: str) -> str:
    return translate("", text)
