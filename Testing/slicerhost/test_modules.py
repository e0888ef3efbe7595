"""A scripted module in the host: from loading to reloading, by the mouse, through the scene file and back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import gestures

EXAMPLE = Path(__file__).parent / "example" / "HostExample"


@pytest.fixture
def example(slicer_host):
    slicer_host.load_module(EXAMPLE)
    return slicer_host.show_module("HostExample")


@pytest.fixture
def volume(slicer_host):
    import slicer

    values = np.zeros((12, 14, 16), np.int16)
    values[4:8, 5:9, 6:10] = 100
    return slicer.util.addVolumeFromArray(values, name="CT")


def test_the_module_describes_itself_and_is_found_by_name(slicer_host):
    import slicer

    module = slicer_host.load_module(EXAMPLE)
    assert module.title == "Host example"
    assert slicer.modules.hostexample is module
    assert "HostExample" in slicer.util.moduleNames()
    assert slicer.util.modulePath("HostExample") == str(EXAMPLE / "HostExample.py")


def test_the_ui_file_gives_widgets_with_its_properties(example):
    import ctk
    import qt
    import slicer

    assert type(example.ui.inputSelector) is slicer.qMRMLNodeComboBox
    assert list(example.ui.inputSelector.nodeTypes) == ["vtkMRMLScalarVolumeNode"]
    assert type(example.ui.thresholdSlider) is ctk.ctkSliderWidget
    assert type(example.ui.applyButton) is qt.QPushButton
    assert example.ui.advancedButton.collapsed
    assert example.ui.inputSelector.mrmlScene() is slicer.mrmlScene


def test_parameters_and_widgets_follow_each_other(example, volume):
    parameters = example._parameterNode
    example.ui.thresholdSlider.value = 60.0
    assert parameters.threshold == 60.0
    parameters.threshold = 70.0
    assert example.ui.thresholdSlider.value == 70.0
    example.ui.inputSelector.setCurrentNode(volume)
    assert parameters.inputVolume is volume
    gestures.choose(example.ui.presetBox, "thorough")
    assert parameters.preset == "thorough"
    parameters.invert = True
    assert example.ui.invertBox.checked
    parameters.tumours["a"] = 3
    parameters.stages.append("three")
    assert dict(parameters.tumours) == {"a": 3}
    assert list(parameters.stages) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("threshold", 2000.0, ValueError),
        ("threshold", "40", TypeError),
        ("preset", "slow", ValueError),
        ("invert", 1, TypeError),
        ("repeats", 0, ValueError),
        ("note", None, ValueError),
    ],
)
def test_a_wrong_value_is_refused_and_the_old_one_stays(example, name, value, error):
    before = getattr(example._parameterNode, name)
    with pytest.raises(error):
        setattr(example._parameterNode, name, value)
    assert getattr(example._parameterNode, name) == before


def test_a_click_of_the_mouse_runs_the_logic(slicer_host, example, volume):
    import slicer

    with pytest.raises(AssertionError, match="disabled"):
        gestures.click(example.ui.applyButton)
    example.ui.inputSelector.setCurrentNode(volume)
    gestures.click(example.ui.applyButton)
    result = example._parameterNode.result
    array = slicer.util.arrayFromSegmentBinaryLabelmap(result, "above", volume)
    assert array.sum() == 4 * 4 * 4
    assert example.ui.segmentsTable.displayedSegmentIDs() == ["above"]


def test_an_error_is_shown_and_recorded(slicer_host, example, volume):
    example.ui.inputSelector.setCurrentNode(volume)
    example._parameterNode.threshold = 999.0
    gestures.click(example.ui.applyButton)
    (message,) = slicer_host.messages
    assert message.kind == "error"
    assert "nothing is above 999.0" in message.text
    assert [type(error) for error in slicer_host.errors] == [ValueError]  # tryWithErrorDisplay raises it again
    slicer_host.errors.clear()


def test_a_section_opens_by_a_click_on_its_header(example):
    assert not example.ui.noteEdit.isVisible()
    gestures.click(example.ui.advancedButton)
    assert not example.ui.advancedButton.collapsed
    example.ui.noteEdit.clear()
    gestures.type_text(example.ui.noteEdit, "seen")
    assert example._parameterNode.note == "seen"


def test_the_scene_file_brings_nodes_parameters_and_panel_back(slicer_host, example, volume, tmp_path):
    import slicer

    example.ui.inputSelector.setCurrentNode(volume)
    example.ui.thresholdSlider.value = 55.0
    example._parameterNode.stages = ["refine"]
    example._parameterNode.limit = 2.5
    gestures.click(example.ui.applyButton)
    path = slicer_host.save_scene(tmp_path / "case.mrb")
    slicer_host.close_scene()
    assert example._parameterNode.inputVolume is None
    assert example._parameterNode.threshold == 40.0
    assert example.ui.inputSelector.currentNode() is None
    slicer_host.load_scene(path)
    assert example._parameterNode.inputVolume.GetName() == "CT"
    assert example.ui.inputSelector.currentNode() is slicer.util.getNode("CT")
    assert example.ui.thresholdSlider.value == 55.0
    assert list(example._parameterNode.stages) == ["refine"]
    assert example._parameterNode.limit == 2.5
    restored = slicer.util.arrayFromSegmentBinaryLabelmap(
        example._parameterNode.result, "above", example._parameterNode.inputVolume
    )
    assert restored.sum() == 4 * 4 * 4


def test_reloading_makes_a_new_widget_of_the_new_source(slicer_host, example):
    import slicer

    first = sys.modules["HostExample"]
    example.onReload()
    slicer_host.process_events()
    again = slicer.util.getModuleWidget("HostExample")
    assert again is not example
    assert sys.modules["HostExample"] is not first
    assert not example.Observations
    assert again.ui.applyButton.isVisible()


def test_leaving_and_unloading_call_exit_and_cleanup(slicer_host, example):
    calls = []
    leave, clean = example.exit, example.cleanup
    example.exit = lambda: (calls.append("exit"), leave())
    example.cleanup = lambda: (calls.append("cleanup"), clean())
    slicer_host.unload_modules()
    assert calls == ["exit", "cleanup"]
    assert "HostExample" not in sys.modules


def test_the_modules_own_test_runs(slicer_host):
    import slicer

    slicer_host.load_module(EXAMPLE)
    slicer.selfTests["HostExample"]()
