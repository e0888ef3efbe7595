"""The module's own self-test, as `slicer --testing` runs it; here in the host."""

from __future__ import annotations

import sys

import slicer

from module_helpers import MODULE


def test_the_self_test_passes(slicer_host, tmp_path):
    slicer_host.load_module(MODULE)
    slicer.selfTests["WeakTumourSeg"]()
    assert "torch" not in sys.modules
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2  # the patient's, the result's


def test_without_torch_it_tests_the_rest_and_says_so(slicer_host, monkeypatch):
    slicer_host.load_module(MODULE)
    from WeakTumourSegLib import installation

    said = []
    monkeypatch.setattr(installation, "hasTorch", lambda: False)
    monkeypatch.setattr(slicer.util, "delayDisplay", lambda text, *args, **keywords: said.append(text))
    slicer.selfTests["WeakTumourSeg"]()
    assert any("the worker was not tested" in text for text in said)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
