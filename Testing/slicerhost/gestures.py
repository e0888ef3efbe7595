"""What a user does with the mouse and the keyboard, through Qt's own event handling."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QPoint, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractItemView, QApplication, QScrollArea, QWidget


def click(widget: QWidget, position: QPoint | None = None, button: Any = Qt.MouseButton.LeftButton) -> None:
    """Press and release the mouse on the widget, scrolled into view: at its centre, or where its own click area is.

    AssertionError if a user could not have clicked there: hidden, disabled, or covered by another widget.
    """
    QApplication.processEvents()  # a section that was just opened has yet to be laid out
    _scroll_to(widget)
    if not widget.isVisible():
        raise AssertionError(f"{_describe(widget)} cannot be clicked: it is not visible")
    if not widget.isEnabled():
        raise AssertionError(f"{_describe(widget)} cannot be clicked: it is disabled")
    position = position or _click_point(widget)
    window = widget.window()
    hit = window.childAt(widget.mapTo(window, position)) or window
    if hit is not widget and not widget.isAncestorOf(hit):
        raise AssertionError(f"{_describe(widget)} cannot be clicked: {_describe(hit)} is in front of it")
    # To whatever is there, as a mouse would: the line edit inside a selector, the viewport of a table.
    QTest.mouseClick(hit, button, Qt.KeyboardModifier.NoModifier, hit.mapFrom(window, widget.mapTo(window, position)))


def click_cell(table: QAbstractItemView, row: int, column: int) -> None:
    """Click on a cell of a table or tree, scrolled into view."""
    index = table.model().index(row, column)
    table.scrollTo(index)
    click(table.viewport(), table.visualRect(index).center())


def type_text(widget: QWidget, text: str) -> None:
    """Click into the widget and type."""
    click(widget)
    QTest.keyClicks(widget, text)


def press_key(widget: QWidget, key: Any, modifiers: Any = Qt.KeyboardModifier.NoModifier) -> None:
    QTest.keyClick(widget, key, modifiers)


def choose(combo_box: QWidget, text: str) -> None:
    """Choose an entry of a combo box by its text, with the keyboard and then Return, as a user may."""
    index = combo_box.findText(text)
    if index < 0:
        entries = [combo_box.itemText(i) for i in range(combo_box.count)]
        raise AssertionError(f"{_describe(combo_box)} has no entry {text!r}, only {entries}")
    if not combo_box.isEnabled():
        raise AssertionError(f"{_describe(combo_box)} is disabled")
    _scroll_to(combo_box)
    for _ in range(combo_box.count):
        if combo_box.currentIndex == index:
            return
        QTest.keyClick(combo_box, Qt.Key.Key_Down if combo_box.currentIndex < index else Qt.Key.Key_Up)
    raise AssertionError(f"{_describe(combo_box)} did not reach {text!r} by keyboard")


def _scroll_to(widget: QWidget) -> None:
    ancestor = widget.parentWidget()
    while ancestor is not None:
        if isinstance(ancestor, QScrollArea):
            ancestor.ensureWidgetVisible(widget)
        ancestor = ancestor.parentWidget()


def _click_point(widget: QWidget) -> QPoint:
    """The centre; but a wide check box or a section's header reacts only to a part of itself."""
    centre = QPoint(widget.width // 2, widget.height // 2)
    if not hasattr(widget, "hitButton") or widget.hitButton(centre):
        return centre
    return QPoint(10, min(widget.height // 2, 10))


def _describe(widget: QWidget) -> str:
    return f"{type(widget).__name__} {widget.objectName!r}"
