"""Leaks are found, and a module that is written as Slicer's template has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import observers

EXAMPLE = Path(__file__).parent / "example" / "HostExample"


def test_a_forgotten_observer_is_counted_and_a_removed_one_is_not(slicer_host):
    import slicer

    before = observers.count()
    tag = slicer.mrmlScene.AddObserver(slicer.mrmlScene.NodeAddedEvent, lambda caller, event: None)
    slicer.app.connect("startupCompleted()", print)
    after = observers.count()
    assert observers.growth(before, after) == {"application": 1, "connections by signature": 1, "scene": 1}
    slicer.mrmlScene.RemoveObserver(tag)
    slicer.app.disconnect("startupCompleted()", print)
    assert observers.count() == before


def test_a_forgotten_observer_of_a_node_is_counted(slicer_host):
    import slicer
    import vtk

    node = slicer.app.applicationLogic().GetSelectionNode()
    before = observers.count()
    tags = [node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: None) for _ in range(2)]
    assert observers.growth(before, observers.count()) == {node.GetID(): 2}
    for tag in tags:
        node.RemoveObserver(tag)
    assert observers.count() == before


def test_the_example_leaks_nothing_over_its_life(slicer_host):
    slicer_host.load_module(EXAMPLE)
    selector = slicer_host.main_window.moduleSelector()

    def live_once():
        widget = slicer_host.show_module("HostExample")
        slicer_host.close_scene()
        widget.onReload()
        slicer_host.process_events()
        selector.selectModule("Volumes")
        slicer_host.process_events()

    live_once()  # the parameter node and the panel are made once
    before = observers.count()
    for _ in range(5):
        live_once()
    # Slicer itself keeps a reloaded module's old widgets, hidden, until the module is unloaded: they follow the scene.
    hidden = observers.growth(before, observers.count())
    assert set(hidden) <= {"scene", "connections by signature"}, hidden
    slicer_host.unload_modules()
    slicer_host.process_events()
    assert observers.count()["scene"] < before["scene"]


def test_entering_leaving_and_closing_the_scene_leak_nothing(slicer_host):
    slicer_host.load_module(EXAMPLE)
    selector = slicer_host.main_window.moduleSelector()

    def live_once():
        slicer_host.show_module("HostExample")
        slicer_host.close_scene()
        selector.selectModule("Volumes")
        slicer_host.close_scene()

    live_once()
    before = observers.count()
    for _ in range(20):
        live_once()
    assert observers.growth(before, observers.count()) == {}


def test_a_module_that_forgets_its_observers_is_found_out(slicer_host):
    import slicer

    slicer_host.load_module(EXAMPLE)
    widget = slicer_host.show_module("HostExample")
    enter, tags = widget.enter, []

    def careless_enter():
        enter()
        tags.append(slicer.mrmlScene.AddObserver(slicer.mrmlScene.NodeAddedEvent, lambda caller, event: None))

    widget.enter = careless_enter
    before = observers.count()
    for _ in range(3):
        slicer_host.main_window.moduleSelector().selectModule("Volumes")
        slicer_host.show_module("HostExample")
    assert observers.growth(before, observers.count()) == {"scene": 3}
    for tag in tags:
        slicer.mrmlScene.RemoveObserver(tag)
