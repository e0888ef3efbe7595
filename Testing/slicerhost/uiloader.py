"""Loads a .ui file of Slicer: with the stand-ins for ctk and qMRML classes, and its connections by C++ signature.

PySide6 does not know a signal such as mrmlSceneChanged(vtkMRMLScene*), so the connections are taken out of the file and
made here. A class, a signal or a slot that does not exist raises; Qt would print a line and go on.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

from PySide6.QtCore import QBuffer, QByteArray, QFile, QIODevice
from PySide6.QtUiTools import QUiLoader
from PySide6.QtWidgets import QWidget

from slicerhost import pythonqt
from slicerhost.standin import STAND_INS


class UiLoader(QUiLoader):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._unknown: list[str] = []
        self._failed: list[Exception] = []

    def createWidget(self, class_name: str, parent: QWidget | None = None, name: str = "") -> QWidget:
        cls = STAND_INS.get(class_name) or getattr(sys.modules["qt"], class_name, None)
        if cls is None:
            self._unknown.append(f"{class_name} ({name})")
            cls = QWidget
        try:
            widget = cls(parent) if parent is not None else cls()
        except Exception as error:  # Qt would leave the widget out without a word; load() raises it
            self._failed.append(error)
            return QWidget(parent)
        widget.setObjectName(name)
        return widget

    def load(self, device: QIODevice, parent: QWidget | None = None) -> QWidget:
        # A module that closes its file at once and one that leaves it to Python must both work.
        document = ET.fromstring(bytes(device.readAll().data()))
        if isinstance(device, QFile):
            device.close()
        connections = document.find("connections")
        wanted = [] if connections is None else [{part.tag: part.text for part in c} for c in connections]
        if connections is not None:
            document.remove(connections)
        buffer = QBuffer()
        buffer.setData(QByteArray(ET.tostring(document)))
        buffer.open(QIODevice.OpenModeFlag.ReadOnly)
        self._unknown.clear()
        self._failed.clear()
        widget = super().load(buffer, parent)
        if self._failed:
            raise self._failed[0]
        if self._unknown:
            raise ValueError(f"the host has no stand-in for {', '.join(self._unknown)}")
        if widget is None:
            raise ValueError(f"not a user interface: {self.errorString()}")
        for connection in wanted:
            sender, receiver = (_named(widget, connection[end]) for end in ("sender", "receiver"))
            pythonqt.connect(sender, connection["signal"], receiver, connection["slot"])
        return widget


def _named(top: QWidget, name: str) -> QWidget:
    found = top if top.objectName == name else top.findChild(QWidget, name)
    if found is None:
        raise ValueError(f"the user interface connects {name!r}, which it does not have")
    return found
