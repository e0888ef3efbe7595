"""Stand-ins for the CTK widgets that a scripted module's panel is made of; they make up the module ``ctk``."""

from __future__ import annotations

import sys
import types

from PySide6.QtCore import Property, QEvent, Qt, Signal
from PySide6.QtGui import QColor, QIcon
from PySide6.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOptionButton,
    QStylePainter,
    QTextBrowser,
    QToolButton,
    QWidget,
)

from slicerhost.standin import STAND_INS, forwarded, stands_in, stored

SLIDER_STEPS = 10_000  # a QSlider counts in integers


def install() -> types.ModuleType:
    """Put the module `ctk` among the imported ones."""
    module = sys.modules.setdefault("ctk", types.ModuleType("ctk", __doc__))
    for name, cls in STAND_INS.items():
        if name.startswith("ctk"):
            setattr(module, name, cls)
    return module


@stands_in()
class ctkCollapsibleButton(QAbstractButton):
    """A header that shows and hides what is laid out below it."""

    contentsCollapsed = Signal(bool)
    collapsedHeight = stored(int, 10)
    flat = stored(bool, False)
    contentsLineWidth = stored(int, 1)
    contentsMidLineWidth = stored(int, 0)

    def __init__(self, text: str | QWidget | None = None, parent: QWidget | None = None):
        super().__init__(parent if isinstance(text, str) else text)
        if isinstance(text, str):
            self.setText(text)
        self._collapsed = False
        self._hidden_here: list[QWidget] = []
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.toggled.connect(lambda checked: self._set_collapsed(not checked))

    def _header_height(self) -> int:
        return self.fontMetrics().height() + 8

    def _is_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        if collapsed:
            self._hide_children()
        else:
            for child in self._hidden_here:
                child.setVisible(True)
            self._hidden_here = []
        self.setMaximumHeight(self._header_height() if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, _is_collapsed, _set_collapsed)

    def _hide_children(self) -> None:
        """Remembers which: a child that was hidden on purpose must not come back with its section."""
        for child in self.children():
            if isinstance(child, QWidget) and not child.isHidden():
                child.hide()
                self._hidden_here.append(child)

    def event(self, event: QEvent) -> bool:
        # A .ui file may collapse the section before it fills it.
        if self._collapsed and event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Show):
            self._hide_children()
        return super().event(event)

    def hitButton(self, position) -> bool:
        return position.y() < self._header_height()

    def paintEvent(self, event) -> None:
        painter = QStylePainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect.setHeight(self._header_height())
        option.text = ("▸ " if self._collapsed else "▾ ") + type(self).property(self, "text")
        option.state |= QStyle.StateFlag.State_Raised
        painter.drawControl(QStyle.ControlElement.CE_PushButton, option)


@stands_in()
class ctkCollapsibleGroupBox(QGroupBox):
    """A group box whose title's check mark collapses it."""

    collapsedHeight = stored(int, 14)

    def __init__(self, title: str | QWidget | None = None, parent: QWidget | None = None):
        super().__init__(parent if isinstance(title, str) else title)
        if isinstance(title, str):
            self.setTitle(title)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._show_contents)

    def _show_contents(self, shown: bool) -> None:
        for child in self.children():
            if isinstance(child, QWidget):
                child.setVisible(shown)

    def _is_collapsed(self) -> bool:
        return not self.isChecked()

    def _set_collapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = Property(bool, _is_collapsed, _set_collapsed)


@stands_in()
class ctkComboBox(QComboBox):
    defaultText = stored(str, "")
    defaultIcon = stored(QIcon, QIcon())
    forceDefault = stored(bool, False)
    elideMode = stored(Qt.TextElideMode, Qt.TextElideMode.ElideNone)

    def _user_data(self) -> str:
        data = self.currentData()
        return "" if data is None else str(data)

    def setCurrentUserDataAsString(self, data: str) -> None:
        self.setCurrentIndex(next((i for i in range(self.count) if str(self.itemData(i)) == data), -1))

    currentUserDataAsString = Property(str, _user_data, setCurrentUserDataAsString)


@stands_in()
class ctkPathLineEdit(QWidget):
    """A line with a path and a button that browses; without the history menu."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    label = stored(str, "")
    nameFilters = stored("QStringList", [])
    settingKey = stored(str, "")
    showHistoryButton = stored(bool, True)
    minimumContentsLength = stored(int, 0)

    # The values of ctkPathLineEdit::Filter, which are QDir's.
    Dirs, Files, Drives, NoSymLinks = 0x001, 0x002, 0x004, 0x008
    Readable, Writable, Executable = 0x010, 0x020, 0x040

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._filters = self.Dirs | self.Files
        self._line = QLineEdit(self)
        self._browse_button = QToolButton(self)
        self._browse_button.setText("...")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._line)
        layout.addWidget(self._browse_button)
        self._line.textChanged.connect(self.currentPathChanged)
        self._browse_button.clicked.connect(self.browse)

    def setCurrentPath(self, path: str) -> None:
        self._line.setText(path)

    currentPath = forwarded(str, "_line", "text", "setText")

    def _get_filters(self) -> int:
        return self._filters

    def _set_filters(self, filters: int) -> None:
        self._filters = int(filters)

    filters = Property(int, _get_filters, _set_filters)

    def _browse_shown(self) -> bool:
        return not self._browse_button.isHidden()

    def _show_browse(self, shown: bool) -> None:
        self._browse_button.setVisible(shown)

    showBrowseButton = Property(bool, _browse_shown, _show_browse)

    def browse(self) -> None:
        if self._filters & self.Files:
            path = QFileDialog.getOpenFileName(self, "Select a file", self.currentPath, ";;".join(self.nameFilters))
        else:
            path = QFileDialog.getExistingDirectory(self, "Select a folder", self.currentPath)
        if path:
            self.setCurrentPath(path)

    def addCurrentPathToHistory(self) -> None:
        """The history is not kept."""


@stands_in()
class ctkDirectoryButton(QWidget):
    directoryChanged = Signal(str)
    directorySelected = Signal(str)
    caption = stored(str, "")

    def __init__(self, directory: str | QWidget = ".", parent: QWidget | None = None):
        super().__init__(parent if isinstance(directory, str) else directory)
        self._directory = directory if isinstance(directory, str) else "."
        self._button = QPushButton(self._directory, self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._button)
        self._button.clicked.connect(self.browse)

    def _get_directory(self) -> str:
        return self._directory

    def _set_directory(self, directory: str) -> None:
        if directory != self._directory:
            self._directory = directory
            self._button.setText(directory)
            self.directoryChanged.emit(directory)

    directory = Property(str, _get_directory, _set_directory)

    def browse(self) -> None:
        directory = QFileDialog.getExistingDirectory(self, self.caption, self._directory)
        if directory:
            self.directory = directory
            self.directorySelected.emit(directory)


@stands_in()
class ctkDoubleSpinBox(QWidget):
    valueChanged = Signal(float)
    editingFinished = Signal()
    decimalsChanged = Signal(int)
    decimals = forwarded(int, "_spin", "decimals", "setDecimals")
    minimum = forwarded(float, "_spin", "minimum", "setMinimum")
    maximum = forwarded(float, "_spin", "maximum", "setMaximum")
    singleStep = forwarded(float, "_spin", "singleStep", "setSingleStep")
    value = forwarded(float, "_spin", "value", "setValue")
    prefix = forwarded(str, "_spin", "prefix", "setPrefix")
    suffix = forwarded(str, "_spin", "suffix", "setSuffix")
    readOnly = forwarded(bool, "_spin", "readOnly", "setReadOnly")
    cleanText = forwarded(str, "_spin", "cleanText")

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._spin = QDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._spin)
        self._spin.valueChanged.connect(self.valueChanged)
        self._spin.editingFinished.connect(self.editingFinished)

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)


class _SliderOfFloats(QSlider):
    """A QSlider whose integers span a range of floats."""

    floatChanged = Signal(float)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(Qt.Orientation.Horizontal, parent)
        self.setRange(0, SLIDER_STEPS)
        self._low, self._high = 0.0, 100.0
        self._float = 0.0
        self.valueChanged.connect(self._moved)

    def _moved(self, position: int) -> None:
        self._float = self._low + position / SLIDER_STEPS * (self._high - self._low)
        self.floatChanged.emit(self._float)

    def _set_float(self, value: float) -> None:
        value = min(max(value, self._low), self._high)
        if value == self._float:
            return
        self._float = value
        self.blockSignals(True)
        span = self._high - self._low
        self.setValue(round((value - self._low) / span * SLIDER_STEPS) if span > 0 else 0)
        self.blockSignals(False)
        self.floatChanged.emit(value)

    def _set_limits(self, low: float, high: float) -> None:
        self._low, self._high = low, max(low, high)
        value, self._float = self._float, float("nan")
        self._set_float(value)


@stands_in()
class ctkDoubleSlider(QWidget):
    valueChanged = Signal(float)
    singleStep = stored(float, 1.0)
    pageStep = stored(float, 10.0)
    tracking = stored(bool, True)
    orientation = forwarded(Qt.Orientation, "_slider", "orientation", "setOrientation")

    def __init__(self, orientation: Qt.Orientation | QWidget | None = None, parent: QWidget | None = None):
        super().__init__(orientation if isinstance(orientation, QWidget) else parent)
        self._slider = _SliderOfFloats(self)
        if isinstance(orientation, Qt.Orientation):
            self._slider.setOrientation(orientation)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        self._slider.floatChanged.connect(self.valueChanged)

    def setValue(self, value: float) -> None:
        self._slider._set_float(value)

    value = Property(float, lambda self: self._slider._float, setValue)
    minimum = Property(
        float, lambda self: self._slider._low, lambda self, low: self._slider._set_limits(low, self._slider._high)
    )
    maximum = Property(
        float, lambda self: self._slider._high, lambda self, high: self._slider._set_limits(self._slider._low, high)
    )


@stands_in()
class ctkSliderWidget(QWidget):
    """A slider and a spin box that show one value."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)
    decimals = forwarded(int, "_spin", "decimals", "setDecimals")
    value = forwarded(float, "_spin", "value", "setValue")
    prefix = forwarded(str, "_spin", "prefix", "setPrefix")
    suffix = forwarded(str, "_spin", "suffix", "setSuffix")
    singleStep = forwarded(float, "_spin", "singleStep", "setSingleStep")
    pageStep = stored(float, 10.0)
    tickInterval = stored(float, 0.0)
    tracking = stored(bool, True)
    popupSlider = stored(bool, False)
    invertedAppearance = stored(bool, False)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._slider = _SliderOfFloats(self)
        self._spin = QDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._spin)
        self._set_range(0.0, 100.0)
        self._slider.floatChanged.connect(self._spin.setValue)
        self._spin.valueChanged.connect(self._spin_changed)

    def _spin_changed(self, value: float) -> None:
        self._slider.blockSignals(True)
        self._slider._set_float(value)
        self._slider.blockSignals(False)
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def setValue(self, value: float) -> None:
        self._spin.setValue(value)

    def setDecimals(self, decimals: int) -> None:
        self._spin.setDecimals(decimals)

    def _set_minimum(self, minimum: float) -> None:
        self._set_range(minimum, max(minimum, self.maximum))

    def _set_maximum(self, maximum: float) -> None:
        self._set_range(min(maximum, self.minimum), maximum)

    def _set_range(self, minimum: float, maximum: float) -> None:
        self._slider._set_limits(minimum, maximum)
        self._spin.setRange(minimum, maximum)

    minimum = Property(float, lambda self: self._spin.minimum, _set_minimum)
    maximum = Property(float, lambda self: self._spin.maximum, _set_maximum)

    def _spin_shown(self) -> bool:
        return not self._spin.isHidden()

    def setSpinBoxVisible(self, visible: bool) -> None:
        self._spin.setVisible(visible)

    spinBoxVisible = Property(bool, _spin_shown, setSpinBoxVisible)


@stands_in()
class ctkMessageBox(QMessageBox):
    dontShowAgain = stored(bool, False)
    dontShowAgainVisible = stored(bool, False)
    dontShowAgainSettingsKey = stored(str, "")

    def setDontShowAgain(self, state: bool) -> None:
        self.dontShowAgain = state


@stands_in()
class ctkPushButton(QPushButton):
    elideMode = stored(Qt.TextElideMode, Qt.TextElideMode.ElideNone)


@stands_in()
class ctkMenuButton(QPushButton):
    pass


@stands_in()
class ctkCheckBox(QCheckBox):
    indicatorIcon = stored(QIcon, QIcon())


@stands_in()
class ctkExpandButton(QToolButton):
    orientation = stored(Qt.Orientation, Qt.Orientation.Horizontal)
    mirrorOnExpand = stored(bool, False)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self.setCheckable(True)


@stands_in()
class ctkSearchBox(QLineEdit):
    showSearchIcon = stored(bool, False)


@stands_in()
class ctkFittedTextBrowser(QTextBrowser):
    """A text browser as high as its text; it has no "more" link here, so collapsible text is simply shown."""

    collapsed = stored(bool, True)
    disableMouseScroll = stored(bool, True)
    showDetailsText = stored(str, "")
    hideDetailsText = stored(str, "")

    def setCollapsibleText(self, text: str) -> None:
        self.setText(text)

    def setCollapsibleHtml(self, html: str) -> None:
        self.setHtml(html)

    def setCollapsiblePlainText(self, text: str) -> None:
        self.setPlainText(text)


@stands_in()
class ctkCheckablePushButton(QPushButton):
    """Here a push button without the check box beside its text."""

    checkBoxControlsButtonToggleState = stored(bool, True)


@stands_in()
class ctkColorPickerButton(QPushButton):
    colorChanged = Signal(QColor)
    displayColorName = stored(bool, True)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._color = QColor("black")

    def setColor(self, color: QColor) -> None:
        if color != self._color:
            self._color = color
            self.colorChanged.emit(color)

    color = Property(QColor, lambda self: self._color, setColor)


class _TwoValues(QWidget):
    """What the widgets for a range of values have in common: two spin boxes, the lower never above the upper."""

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._low, self._high = QDoubleSpinBox(self), QDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._low)
        layout.addWidget(self._high)
        self._high.setValue(99.0)
        self._low.valueChanged.connect(lambda _: self._changed(self._low))
        self._high.valueChanged.connect(lambda _: self._changed(self._high))

    def _changed(self, moved: QDoubleSpinBox) -> None:
        other = self._high if moved is self._low else self._low
        if self._low.value > self._high.value:
            other.setValue(moved.value)
        self.valuesChanged.emit(self._low.value, self._high.value)

    def _set_values(self, low: float, high: float) -> None:
        self._low.setValue(low)
        self._high.setValue(high)

    def _set_limits(self, minimum: float, maximum: float) -> None:
        self._low.setRange(minimum, maximum)
        self._high.setRange(minimum, maximum)


@stands_in()
class ctkRangeWidget(_TwoValues):
    valuesChanged = Signal(float, float)
    decimals = stored(int, 2)
    singleStep = stored(float, 1.0)
    minimumValue = forwarded(float, "_low", "value", "setValue")
    maximumValue = forwarded(float, "_high", "value", "setValue")
    minimum = Property(float, lambda self: self._low.minimum, lambda self, v: self._set_limits(v, self._low.maximum))
    maximum = Property(float, lambda self: self._low.maximum, lambda self, v: self._set_limits(self._low.minimum, v))

    def setValues(self, low: float, high: float) -> None:
        self._set_values(low, high)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._set_limits(minimum, maximum)


@stands_in()
class ctkDoubleRangeSlider(_TwoValues):
    valuesChanged = Signal(float, float)
    singleStep = stored(float, 1.0)
    minimumValue = forwarded(float, "_low", "value", "setValue")
    maximumValue = forwarded(float, "_high", "value", "setValue")
    minimum = Property(float, lambda self: self._low.minimum, lambda self, v: self._set_limits(v, self._low.maximum))
    maximum = Property(float, lambda self: self._low.maximum, lambda self, v: self._set_limits(self._low.minimum, v))

    def setValues(self, low: float, high: float) -> None:
        self._set_values(low, high)
