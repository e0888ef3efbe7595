"""The names: nothing in a stand-in, and nothing that a module says, may be missing from the real classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import surface_check
from slicerhost.standin import STAND_INS, stands_in

SURFACE = surface_check.Surface.load()
EXAMPLE = Path(__file__).parent / "example" / "HostExample"


def test_the_stand_ins_offer_only_what_the_real_classes_have(slicer_host):
    assert len(STAND_INS) > 40  # the host has imported them all
    differences = [d for cls in STAND_INS.values() for d in surface_check.stand_in_differences(SURFACE, cls)]
    assert differences == []


def test_the_check_of_stand_ins_finds_what_is_wrong(slicer_host):
    from PySide6.QtCore import Property, QObject, Signal
    from PySide6.QtWidgets import QPushButton

    kept = dict(STAND_INS)

    @stands_in()
    class ctkPushButton(QPushButton):
        colour = Property(str, lambda self: "")
        pressedHard = Signal(int)

        def squeeze(self): ...

    @stands_in()
    class ctkNothing(QObject):
        pass

    STAND_INS.clear()
    STAND_INS.update(kept)
    assert surface_check.stand_in_differences(SURFACE, ctkPushButton) == [
        "ctkPushButton has no property colour",
        "ctkPushButton has no signal pressedHard(int)",
        "ctkPushButton has no method squeeze",
    ]
    assert surface_check.stand_in_differences(SURFACE, ctkNothing) == ["ctkNothing is no class of Slicer"]


def test_the_example_says_only_what_exists(slicer_host):
    names = surface_check.unknown_names([EXAMPLE / "HostExample.py"], [EXAMPLE / "Resources/UI/HostExample.ui"])
    assert names == []


def test_unknown_names_are_found_in_ui_files(slicer_host, tmp_path):
    ui = (EXAMPLE / "Resources/UI/HostExample.ui").read_text(encoding="utf-8")
    changes = {
        'name="noneEnabled"': 'name="noneAllowed"',
        "setSegmentationNode(vtkMRMLNode*)": "setSegmentation(vtkMRMLNode*)",
        "currentNodeChanged(vtkMRMLNode*)": "nodeChanged(vtkMRMLNode*)",
        'class="QProgressBar"': 'class="ctkProgressWheel"',
    }
    for old, new in changes.items():
        assert old in ui
        ui = ui.replace(old, new)
    (tmp_path / "Wrong.ui").write_text(ui, encoding="utf-8")
    found = "\n".join(surface_check.unknown_names([], [tmp_path / "Wrong.ui"]))
    assert "qMRMLNodeComboBox (inputSelector) has no property noneAllowed" in found
    assert "qMRMLSegmentsTableView (segmentsTable) has no slot setSegmentation(vtkMRMLNode*)" in found
    assert "qMRMLNodeComboBox (resultSelector) has no signal nodeChanged(vtkMRMLNode*)" in found
    assert "ctkProgressWheel (progressBar) is no class of Qt nor of the extract" in found


def test_unknown_names_are_found_in_scripts(slicer_host, tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(
        """
import ctk, qt, slicer
slicer.app.processEvents()
slicer.app.mainWindowOfDreams()
slicer.util.getNode("CT")
slicer.util.findNode("CT")
slicer.vtkMRMLTumourNode()
qt.QPushButton()
qt.QHappyButton()
button = ctk.ctkCollapsibleButton()
button.collapsed = True
button.setCollapsed(True)
button.connect("contentsCollapsed(bool)", print)
button.connect("collapsedChanged(bool)", print)
class Widget:
    def setup(self):
        self.ui.inputSelector.currentNode()
        self.ui.inputSelector.selectedNode()
""",
        encoding="utf-8",
    )
    found = surface_check.unknown_names([script], [EXAMPLE / "Resources/UI/HostExample.ui"])
    assert [line.split(": ", 1)[1] for line in found] == [
        "qSlicerApplication (slicer.app) has no mainWindowOfDreams",
        "slicer.util has no findNode",
        "slicer has no vtkMRMLTumourNode",
        "qt has no QHappyButton",
        "ctkCollapsibleButton (button) has no setCollapsed",
        "ctkCollapsibleButton (button) has no signal collapsedChanged(bool)",
        "qMRMLNodeComboBox (self.ui.inputSelector) has no selectedNode",
    ]


def test_the_extract_is_what_the_shared_surface_says(slicer_host, shared_data):
    shared = shared_data.parent / "slicer_api" / "surface.json"
    if not shared.is_file():
        pytest.skip(f"needs {shared}")
    full = json.loads(shared.read_text(encoding="utf-8"))
    assert surface_check.extract(full, STAND_INS) == json.loads(surface_check.EXTRACT.read_text(encoding="utf-8"))
