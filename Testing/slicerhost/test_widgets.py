"""The stand-ins for widgets behave as the module relies on."""

from __future__ import annotations

import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import gestures


@pytest.fixture
def scene(slicer_host):
    return slicer_host.scene


@pytest.fixture
def selector(scene):
    import slicer

    widget = slicer.qMRMLNodeComboBox()
    widget.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    widget.noneEnabled = True
    widget.setMRMLScene(scene)
    return widget


def add(scene, name, kind="vtkMRMLScalarVolumeNode"):
    return scene.AddNewNodeByClass(kind, name)


def entries(selector):
    return [selector._combo.itemText(row) for row in range(selector._combo.count)]


def test_the_selector_follows_the_scene(scene, selector):
    assert entries(selector) == ["None"]
    ct = add(scene, "CT")
    add(scene, "Table", "vtkMRMLTableNode")
    mr = add(scene, "MR")
    assert entries(selector) == ["None", "CT", "MR"]
    ct.SetName("CT of today")
    assert entries(selector) == ["None", "CT of today", "MR"]
    selector.setCurrentNode(mr)
    assert (selector.currentNode(), selector.currentNodeID) == (mr, mr.GetID())
    scene.RemoveNode(mr)
    assert selector.currentNode() is None
    assert entries(selector) == ["None", "CT of today"]


def test_without_none_the_selector_always_has_a_node_once_there_is_one(scene, selector):
    selector.noneEnabled = False
    changes = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", changes.append)
    first, second = add(scene, "first"), add(scene, "second")
    assert selector.currentNode() is first
    scene.RemoveNode(first)
    assert selector.currentNode() is second
    assert changes == [first, second]


def test_subclasses_are_listed_unless_they_are_excluded(scene, selector):
    add(scene, "labels", "vtkMRMLLabelMapVolumeNode")
    assert entries(selector) == ["None", "labels"]
    selector.showChildNodeTypes = False
    assert entries(selector) == ["None"]
    selector.showChildNodeTypes = True
    selector.hideChildNodeTypes = ["vtkMRMLLabelMapVolumeNode"]
    assert entries(selector) == ["None"]


def test_attributes_and_hidden_nodes_filter(scene, selector):
    marked, hidden = add(scene, "marked"), add(scene, "hidden")
    marked.SetAttribute("Role", "fixed")
    hidden.SetHideFromEditors(True)
    add(scene, "plain")
    selector.addAttribute("vtkMRMLScalarVolumeNode", "Role", "fixed")
    assert entries(selector) == ["None", "marked"]
    selector.removeAttribute("vtkMRMLScalarVolumeNode", "Role")
    assert entries(selector) == ["None", "marked", "plain"]
    selector.showHidden = True
    assert entries(selector) == ["None", "marked", "hidden", "plain"]


def test_a_user_chooses_a_node_by_keyboard(scene, selector):
    add(scene, "CT")
    mr = add(scene, "MR")
    selector.show()
    gestures.choose(selector._combo, "MR")
    assert selector.currentNode() is mr


def test_the_selector_makes_nodes_of_its_types(scene, selector):
    made = selector.addNode("vtkMRMLScalarVolumeNode")
    assert selector.currentNode() is made
    assert selector.addNode("vtkMRMLModelNode") is None


def test_a_deleted_selector_leaves_the_scene_alone(slicer_host, scene, selector):
    from slicerhost import observers

    node = add(scene, "CT")
    before = observers.count_of(scene), observers.watched(node)
    selector.delete()
    assert observers.count_of(scene) < before[0]
    assert observers.watched(node) == before[1] - 1
    node.SetName("CT of yesterday")  # an observer that was left would touch the deleted widget
    add(scene, "MR")


def test_the_segments_table_follows_the_segmentation(scene):
    import slicer

    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    node.CreateDefaultDisplayNodes()
    table = slicer.qMRMLSegmentsTableView()
    table.setMRMLScene(scene)
    table.setSegmentationNode(node)
    for name in ("liver", "tumour"):
        node.GetSegmentation().AddEmptySegment(name, name, [0.0, 1.0, 0.0])
    assert table.displayedSegmentIDs() == ["liver", "tumour"]
    chosen = []
    table.connect(
        "selectionChanged(QItemSelection,QItemSelection)", lambda *_: chosen.append(table.selectedSegmentIDs())
    )
    table.resize(400, 200)
    table.show()
    gestures.click_cell(table.tableWidget(), 1, 3)
    assert chosen[-1] == ["tumour"]
    node.GetSegmentation().RemoveSegment("liver")
    assert table.displayedSegmentIDs() == ["tumour"]
    assert table.segmentCount == 1


def test_slider_widgets_keep_value_range_and_signal(slicer_host):
    import ctk

    for slider in (ctk.ctkSliderWidget(), ctk.ctkDoubleSlider(), ctk.ctkDoubleSpinBox()):
        values = []
        slider.connect("valueChanged(double)", values.append)
        slider.minimum, slider.maximum = -5.0, 5.0
        values.clear()
        slider.value = 2.5
        slider.value = 2.5
        slider.value = 40.0
        assert values == [2.5, 5.0], type(slider).__name__


def test_a_path_line_says_when_it_changes_and_browses(slicer_host, tmp_path):
    import ctk

    line, paths = ctk.ctkPathLineEdit(), []
    line.connect("currentPathChanged(QString)", paths.append)
    line.filters = ctk.ctkPathLineEdit.Dirs
    line.show()
    slicer_host.answer(tmp_path)
    gestures.click(line._browse_button)
    assert paths == [str(tmp_path)]
    gestures.click(line._browse_button)  # cancelled
    assert line.currentPath == str(tmp_path)


def test_a_collapsed_section_keeps_hidden_what_was_hidden(slicer_host):
    import ctk
    import qt

    section = ctk.ctkCollapsibleButton()
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.hide()
    section.show()
    section.collapsed = True
    assert not shown.visible
    section.collapsed = False
    assert shown.visible
    assert not hidden.visible


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("qMRMLWidget", "qMRMLWindget"), "no stand-in for qMRMLWindget"),
        (("<slot>setMRMLScene", "<slot>setMyScene"), "no slot"),
        (("<signal>mrmlSceneChanged", "<signal>sceneChanged"), "no signal"),
        (("<receiver>selector", "<receiver>selectr"), "does not have"),
    ],
)
def test_a_ui_file_with_a_wrong_name_does_not_load(slicer_host, tmp_path, change, message):
    import slicer

    good = """<ui version="4.0"><class>Panel</class><widget class="qMRMLWidget" name="Panel">
      <layout class="QVBoxLayout" name="v"><item><widget class="qMRMLNodeComboBox" name="selector"/></item></layout>
      </widget><connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
      <receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
    path = tmp_path / "Panel.ui"
    path.write_text(good, encoding="utf-8")
    assert slicer.util.childWidgetVariables(slicer.util.loadUI(str(path))).selector is not None
    assert change[0] in good
    path.write_text(good.replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        slicer.util.loadUI(str(path))


def test_a_user_cannot_click_what_is_hidden_disabled_or_covered(slicer_host):
    import qt

    panel = qt.QWidget()
    button, cover = qt.QPushButton("go", panel), qt.QLabel("cover", panel)
    panel.resize(200, 100)
    for widget in (button, cover):
        widget.setGeometry(0, 0, 100, 40)
    panel.show()
    with pytest.raises(AssertionError, match="in front"):
        gestures.click(button)
    cover.hide()
    gestures.click(button)
    button.enabled = False
    with pytest.raises(AssertionError, match="disabled"):
        gestures.click(button)
    button.hide()
    with pytest.raises(AssertionError, match="not visible"):
        gestures.click(button)
