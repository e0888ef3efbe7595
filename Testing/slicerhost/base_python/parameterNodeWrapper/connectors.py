"""Which widget shows which type of parameter. The widget's own class counts, as in Slicer: a subclass has none."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import ctk
import qt
import slicer

from .annotations import Choice, Decimals, Maximum, Minimum, SingleStep, WithinRange
from .storage import PATH_TYPES, node_types_of

COMBO_BOXES = (qt.QComboBox, ctk.ctkComboBox)
FLOAT_WIDGETS = (
    qt.QDoubleSpinBox,
    ctk.ctkSliderWidget,
    slicer.qMRMLSliderWidget,
    ctk.ctkDoubleSlider,
    ctk.ctkDoubleSpinBox,
    slicer.qMRMLSpinBox,
)


class Connector:
    """Reads and writes the widget, and calls back after the user changed it."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], signal: Any):
        self.read, self.write, self._signal = read, write, signal
        self._callback: Callable[[], None] | None = None

    def on_changed(self, callback: Callable[[], None] | None) -> None:
        if self._callback is not None:
            self._signal.disconnect(self._changed)
        self._callback = callback
        if callback is not None and self._signal is not None:
            self._signal.connect(self._changed)

    def _changed(self, *values: Any) -> None:
        self._callback()


def connector_for(widget: Any, kind: Any, annotations: list[Any]) -> Connector:
    """Raises RuntimeError where Slicer has no connector of this widget to this type."""
    widget_class = type(widget)
    if kind is bool and widget_class in (qt.QCheckBox, ctk.ctkCheckBox):
        return _attribute(widget, "checked", widget.stateChanged)
    if kind is bool and widget_class is qt.QPushButton:
        widget.checkable = True
        return _attribute(widget, "checked", widget.toggled)
    if kind is int and widget_class in (qt.QSlider, qt.QSpinBox):
        _set_limits(widget, annotations, -(2**31), 2**31 - 1)
        return _attribute(widget, "value", widget.valueChanged)
    if kind in (int, float) and widget_class in FLOAT_WIDGETS:
        if kind is int and widget_class is not ctk.ctkDoubleSlider:
            widget.decimals = 0
        _set_limits(widget, annotations, float("-inf"), float("inf"))
        return Connector(
            lambda: kind(widget.value), lambda value: setattr(widget, "value", kind(value)), widget.valueChanged
        )
    if widget_class in COMBO_BOXES and (choice := _first(annotations, Choice)):
        return _combo_box(widget, list(choice.choices), [str(c) for c in choice.choices])
    if widget_class in COMBO_BOXES and isinstance(kind, type) and issubclass(kind, enum.Enum):
        label = getattr(kind, "label", lambda member: member.name)
        return _combo_box(widget, list(kind), [label(member) for member in kind])
    if kind is str and widget_class is qt.QLineEdit:
        return _attribute(widget, "text", widget.textChanged)
    if kind is str and widget_class is qt.QLabel:
        return _attribute(widget, "text", None)
    if kind is str and widget_class is qt.QTextEdit:
        return Connector(widget.toPlainText, lambda text: _set_plain_text(widget, text), widget.textChanged)
    if kind in PATH_TYPES and widget_class is ctk.ctkPathLineEdit:
        return _path(widget, "currentPath", widget.currentPathChanged, kind)
    if kind in PATH_TYPES and widget_class is ctk.ctkDirectoryButton:
        return _path(widget, "directory", widget.directoryChanged, kind)
    if node_types_of(kind) and widget_class is slicer.qMRMLNodeComboBox:
        widget.nodeTypes = [node_type().GetClassName() for node_type in node_types_of(kind)]
        return Connector(widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged)
    raise RuntimeError(f"no connector of {widget_class.__name__} {widget.objectName!r} to a parameter of type {kind}")


def _first(annotations: list[Any], kind: type) -> Any:
    return next((a for a in annotations if isinstance(a, kind)), None)


def _attribute(widget: Any, name: str, signal: Any) -> Connector:
    def write(value: Any) -> None:
        if getattr(widget, name) != value:  # setting the text of a line edit moves its cursor
            setattr(widget, name, value)

    return Connector(lambda: getattr(widget, name), write, signal)


def _path(widget: Any, name: str, signal: Any, kind: type) -> Connector:
    return Connector(lambda: kind(getattr(widget, name)), lambda path: setattr(widget, name, str(path)), signal)


def _set_plain_text(widget: Any, text: str) -> None:
    if widget.toPlainText() != text:
        widget.setPlainText(text)


def _combo_box(widget: Any, values: list[Any], labels: list[str]) -> Connector:
    widget.clear()
    for label in labels:
        widget.addItem(label)

    def write(value: Any) -> None:
        widget.currentIndex = values.index(value)

    return Connector(lambda: values[widget.currentIndex], write, widget.currentIndexChanged)


def _set_limits(widget: Any, annotations: list[Any], lowest: float, highest: float) -> None:
    for kind, name in ((Decimals, "decimals"), (SingleStep, "singleStep")):
        if (annotation := _first(annotations, kind)) is not None:
            setattr(widget, name, annotation.value)
    within, low, high = (_first(annotations, kind) for kind in (WithinRange, Minimum, Maximum))
    minimum = within.minimum if within else low.minimum if low else lowest
    maximum = within.maximum if within else high.maximum if high else highest
    sliders = (qt.QSlider, ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)
    if type(widget) in sliders and (minimum == lowest or maximum == highest):
        raise RuntimeError(f"{type(widget).__name__} {widget.objectName!r} needs a parameter with a bounded range")
    widget.minimum = minimum
    widget.maximum = maximum
