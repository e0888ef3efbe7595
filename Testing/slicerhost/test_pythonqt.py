"""The module qt behaves as PythonQt where the two Pythons for Qt differ."""

from __future__ import annotations

import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)


def test_a_property_is_an_attribute(slicer_host):
    import qt

    button = qt.QPushButton("go")
    assert button.text == "go"
    button.text = "stop"
    button.checkable = True
    button.checked = True
    assert (button.text, button.checked, button.isChecked()) == ("stop", True, True)
    assert button.sizeHint.width() > 0  # overridden in a subclass, as a method of C++
    box = qt.QDoubleSpinBox()
    box.maximum = 7.5
    box.value = 100
    assert box.value == 7.5


def test_the_object_name_has_a_short_name(slicer_host):
    import qt

    label = qt.QLabel()
    label.name = "status"
    assert (label.objectName, label.name) == ("status", "status")


@pytest.mark.parametrize("name", ["colour", "onClicked", "setTekst"])
def test_unknown_attributes_are_refused(slicer_host, name):
    import qt

    button = qt.QPushButton()
    with pytest.raises(AttributeError, match=name):
        getattr(button, name)
    with pytest.raises(AttributeError, match=name):
        setattr(button, name, 1)


def test_a_read_only_property_cannot_be_set(slicer_host):
    import qt

    with pytest.raises(AttributeError, match="read-only"):
        qt.QPushButton().width = 3


def test_a_python_subclass_has_attributes_of_its_own(slicer_host):
    import qt

    class Panel(qt.QWidget):
        pass

    panel = Panel()
    panel.logic = "own"
    assert panel.logic == "own"


def test_a_dynamic_property_is_an_attribute_too(slicer_host):
    import qt

    edit = qt.QLineEdit()
    edit.setProperty("SlicerParameterName", "note")
    assert edit.property("SlicerParameterName") == "note"
    assert edit.SlicerParameterName == "note"


def test_connecting_by_signature_decides_the_arguments(slicer_host):
    import qt

    calls = []

    class Receiver:
        def nothing(self):
            calls.append("nothing")

        def optional(self, checked="default"):
            calls.append(checked)

    receiver, button = Receiver(), qt.QPushButton()
    button.checkable = True
    assert button.connect("clicked(bool)", receiver.nothing)
    button.connect("clicked(bool)", receiver.optional)
    button.connect("clicked()", receiver.optional)
    button.connect("toggled(bool)", lambda *values: calls.append(values))
    button.click()
    assert calls == [(True,), "nothing", True, "default"]


def test_a_connection_keeps_its_receiver_and_can_be_undone(slicer_host):
    import gc

    import qt

    calls = []

    class Receiver:
        def called(self):
            calls.append(1)

    button = qt.QPushButton()
    receiver = Receiver()
    button.connect("clicked()", receiver.called)
    del receiver
    gc.collect()
    button.click()
    assert calls == [1]
    other = Receiver()
    button.connect("clicked()", other.called)
    assert button.disconnect("clicked()", other.called)
    assert not button.disconnect("clicked()", other.called)
    button.click()
    assert calls == [1, 1]


def test_connecting_to_a_slot_of_another_object(slicer_host):
    import qt

    button, box = qt.QPushButton(), qt.QSpinBox()
    button.connect("clicked()", box, "stepUp()")
    button.click()
    assert box.value == 1
    with pytest.raises(ValueError, match="no slot"):
        button.connect("clicked()", box, "stepSideways()")


@pytest.mark.parametrize("signal", ["klicked()", "clicked(int)", "clicked"])
def test_unknown_signals_are_refused(slicer_host, signal):
    import qt

    with pytest.raises(ValueError, match="no signal"):
        qt.QPushButton().connect(signal, print)


def test_signals_of_stand_ins_go_by_their_cpp_signature(slicer_host):
    import slicer

    nodes, found = [], []
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    selector.connect("currentNodeChanged(vtkMRMLNode*)", nodes.append)
    selector.connect("currentNodeChanged(bool)", found.append)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    assert nodes == [node]
    assert found == [True]
    with pytest.raises(ValueError, match="no signal"):
        selector.connect("currentNodeChanged(vtkMRMLScalarVolumeNode*)", print)


def test_enumerations_are_found_scoped_and_unscoped(slicer_host):
    import qt

    assert qt.Qt.AlignLeft == qt.Qt.AlignmentFlag.AlignLeft
    label = qt.QLabel()
    label.alignment = qt.Qt.AlignRight
    assert label.alignment == qt.Qt.AlignRight


def test_timers_fire_while_events_are_processed(slicer_host):
    import qt

    fired = []
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.interval = 1
    timer.connect("timeout()", lambda: fired.append("timer"))
    timer.start()
    assert timer.active
    qt.QTimer.singleShot(0, lambda: fired.append("single"))
    slicer_host.wait_until(lambda: len(fired) == 2, what="both timers")
    assert not timer.active


def test_children_are_found_by_class_class_name_and_name(slicer_host):
    import qt

    panel = qt.QWidget()
    layout = qt.QVBoxLayout(panel)
    for name in ("first", "second"):
        label = qt.QLabel(name)
        label.name = name
        layout.addWidget(label)
    assert panel.findChild(qt.QLabel, "second").text == "second"
    assert [child.name for child in panel.findChildren("QLabel")] == ["first", "second"]
    assert panel.findChild(qt.QLabel, "third") is None


def test_settings_are_the_tests_own(slicer_host):
    import qt
    import slicer

    qt.QSettings().setValue("WeakTumourSeg/Folder", "/data")
    assert slicer.app.settings().value("WeakTumourSeg/Folder") == "/data"
    assert qt.QSettings().fileName().startswith(str(slicer_host.folder))
    slicer_host.reset()
    assert qt.QSettings().value("WeakTumourSeg/Folder") is None


def test_an_error_in_a_slot_is_not_lost(slicer_host):
    import qt

    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    assert [type(error) for error in slicer_host.errors] == [ZeroDivisionError]
    slicer_host.errors.clear()
