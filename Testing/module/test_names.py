"""Every Qt, CTK and qMRML name that the module and its panel use is one of the real classes'."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from module_helpers import MODULE

UI = MODULE / "Resources/UI/WeakTumourSeg.ui"
SCRIPTS = [MODULE / "WeakTumourSeg.py", *sorted((MODULE / "WeakTumourSegLib").glob("*.py"))]


def test_every_name_exists_in_slicer(slicer_host):
    from slicerhost.surface_check import unknown_names

    assert unknown_names(SCRIPTS, [UI]) == []


def test_each_parameter_has_a_widget_or_a_reason():
    from WeakTumourSegLib.parameters import WeakTumourSegParameterNode

    bound = {
        entry.find("string").text
        for entry in ET.parse(UI).iter("property")
        if entry.get("name") == "SlicerParameterName"
    }
    # The models' combo boxes hold ids behind texts of their own and are bound by ModelsPanel.
    assert set(WeakTumourSegParameterNode.allParameters) - bound == {"registrationModel", "segmentationModel"}
    assert bound <= set(WeakTumourSegParameterNode.allParameters)


@pytest.mark.parametrize("name", ["applyButton", "progressBar", "tumourTable", "segmentEditorWidget", "logText"])
def test_the_panel_has_its_parts_once(name):
    names = [widget.get("name") for widget in ET.parse(UI).iter("widget")]
    assert names.count(name) == 1
    assert len(names) == len(set(names))
