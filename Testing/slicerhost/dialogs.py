"""Dialogs without waiting: each is written down for the test to read, and answered as the test said beforehand."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6.QtWidgets import QDialog, QFileDialog, QInputDialog, QMessageBox


@dataclass
class Message:
    kind: str  # error, warning, info or question
    text: str
    title: str = ""
    detail: str = ""


class Dialogs:
    """What was shown (`messages`), and the answers to come (`answers`, first in first out).

    An answer is what the call returns: True or False to slicer.util.confirm...(), a button to a message box, a path to
    a file dialog. Without one a question is answered as in Slicer's testing mode (yes), a file dialog is cancelled, and
    any other dialog raises, as it would have waited for ever.
    """

    def __init__(self):
        self.messages: list[Message] = []
        self.answers: deque[Any] = deque()

    def install(self) -> None:
        import slicer.util

        slicer.util._messageDisplay = self._message_display
        slicer.util.messageBox = self._message_box
        slicer.util.delayDisplay = self._delay_display
        QMessageBox.exec = lambda box, *_: self._exec_message_box(box)
        QDialog.exec = lambda dialog, *_: self._exec_dialog(dialog)
        QFileDialog.exec = lambda dialog, *_: self._exec_dialog(dialog)
        statics = (("critical", "error"), ("warning", "warning"), ("information", "info"), ("question", "question"))
        for name, kind in statics:
            setattr(QMessageBox, name, staticmethod(self._static_message_box(kind)))
        for name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
            setattr(QFileDialog, name, staticmethod(lambda *_, **__: self._answer("")))
        QFileDialog.getOpenFileNames = staticmethod(lambda *_, **__: self._answer([]))
        QInputDialog.getText = staticmethod(lambda *_, **__: self._answer(""))

    def _answer(self, default: Any) -> Any:
        answer = self.answers.popleft() if self.answers else default
        return os.fspath(answer) if isinstance(answer, os.PathLike) else answer

    def _record(self, kind: str, text: str, title: str | None = "", detail: str | None = "") -> None:
        self.messages.append(Message(kind, str(text), title or "", detail or ""))

    def _message_display(
        self, level: int, text: str, testing_answer: Any, windowTitle: str | None = None, **options: Any
    ) -> Any:
        """In place of the one function through which slicer.util shows errors, warnings and questions."""
        kind = {logging.ERROR: "error", logging.WARNING: "warning"}.get(level, "info")
        self._record(kind if testing_answer is None else "question", text, windowTitle, options.get("detailedText"))
        if testing_answer is None:
            return None
        # slicer.util compares a question's answer with this button; the caller's test thinks in True and False.
        yes = self._answer(testing_answer)
        return self._positive(options["standardButtons"]) if yes else QMessageBox.StandardButton.NoButton

    @staticmethod
    def _positive(buttons: Any) -> Any:
        standard = QMessageBox.StandardButton
        return next(b for b in (standard.Ok, standard.Yes, standard.Retry) if b in buttons)

    def _message_box(self, text: str, parent: Any = None, **options: Any) -> Any:
        self._record("info", text, options.get("windowTitle"), options.get("detailedText"))
        return self._answer(QMessageBox.StandardButton.Ok)

    def _delay_display(self, text: str, *_: Any, **__: Any) -> None:
        self._record("info", text)

    def _exec_message_box(self, box: QMessageBox) -> Any:
        icons = QMessageBox.Icon
        kinds = {icons.Critical: "error", icons.Warning: "warning", icons.Question: "question"}
        self._record(kinds.get(box.icon, "info"), box.text, box.windowTitle, box.detailedText)
        standard = QMessageBox.StandardButton
        return self._answer(standard.Yes if box.icon == icons.Question else standard.Ok)

    def _static_message_box(self, kind: str) -> Callable:
        def show(parent: Any, title: str, text: str, *_: Any, **__: Any) -> Any:
            self._record(kind, text, title)
            standard = QMessageBox.StandardButton
            return self._answer(standard.Yes if kind == "question" else standard.Ok)

        return show

    def _exec_dialog(self, dialog: QDialog) -> Any:
        if not self.answers:
            raise RuntimeError(f"{type(dialog).__name__} {dialog.windowTitle!r} would wait for ever; queue an answer")
        answer = self._answer(None)
        return answer(dialog) if callable(answer) else answer
