"""Counts who listens: a module that forgets an observer or a connection leaves one more each time it is entered.

before = observers.count()
... enter, exit, reload, close the scene, some times ...
assert observers.growth(before, observers.count()) == {}
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from typing import Any

import slicer
import vtk

from slicerhost import pythonqt

# The singletons that outlive a closed scene, and with it the observers that were forgotten on them.
LASTING_NODES = (
    "vtkMRMLScriptedModuleNode",
    "vtkMRMLSelectionNode",
    "vtkMRMLInteractionNode",
    "vtkMRMLCrosshairNode",
    "vtkMRMLSubjectHierarchyNode",
    "vtkMRMLSliceNode",
    "vtkMRMLSliceCompositeNode",
    "vtkMRMLViewNode",
)


def count() -> Counter[str]:
    """The observers of the scene and of the application's logic, those that Python put on lasting nodes, and Qt's.

    What Python no longer reaches is collected first. A node is watched from the first count that sees it.
    """
    gc.collect()
    found: Counter[str] = Counter()
    found["scene"] = count_of(slicer.mrmlScene)
    found["application logic"] = count_of(slicer.app.applicationLogic())
    for class_name in LASTING_NODES:
        for node in slicer.util.getNodesByClass(class_name):
            found[node.GetID()] = watched(node)
    found["connections by signature"] = pythonqt.connection_count()
    found["module manager"] = pythonqt.connection_count(slicer.app.moduleManager())
    found["application"] = pythonqt.connection_count(slicer.app)
    return found


def growth(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """What there is more of, by how much: a readable message for an assertion."""
    return {name: after[name] - before[name] for name in sorted({*before, *after}) if after[name] > before[name]}


def count_of(observed: vtk.vtkObject) -> int:
    """The observers of a VTK object that is no node. VTK only prints them, so they are counted in what it prints."""
    return len(re.findall(r"^\s*Tag: \d+$", str(observed), re.MULTILINE))


def watched(node: Any) -> int:
    """How many more observers Python has put on the node than taken off since this was first asked.

    Nodes do not print their observers, so their two methods are shadowed in the node's Python object.
    """
    if not hasattr(node, "_observers_added"):
        node._observers_added = 0

        def add(*arguments: Any) -> int:
            node._observers_added += 1
            return type(node).AddObserver(node, *arguments)

        def remove(tag: int) -> None:
            node._observers_added -= 1
            type(node).RemoveObserver(node, tag)

        node.AddObserver, node.RemoveObserver = add, remove
    return node._observers_added
