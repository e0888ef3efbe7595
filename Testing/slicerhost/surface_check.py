"""Keeps the stand-ins and the module honest against the names that Slicer's real classes have.

surface.json is an extract of what the headers of Slicer, CTK and qMRML declare (properties, signals, slots and
invokable methods: what PythonQt lets a script reach), for the classes that the host stands in for. To make it anew:

    python -m slicerhost.surface_check ../shared/slicer_api/surface.json     (in the folder Testing)
"""

from __future__ import annotations

import ast
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slicerhost.pythonqt import QT_PROPERTIES, QT_SIGNALS

EXTRACT = Path(__file__).parent / "surface.json"

# Declared in the headers in a form that the extract's parser did not read: seen in the header that is named.
PARSE_GAPS = {
    "qMRMLNodeComboBox": {"addAttribute": "qMRMLNodeComboBox.h: Q_INVOKABLE with a QVariant() default"},
    "qSlicerAbstractModuleWidget": {"setEditedNode": "qSlicerAbstractModuleWidget.h: Q_INVOKABLE with QString()"},
}


@dataclass
class Names:
    """What a script may say to an instance of a class; signals with their parameters."""

    properties: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    signals: set[str] = field(default_factory=set)

    @property
    def attributes(self) -> set[str]:
        return self.properties | self.methods | {signal.split("(")[0] for signal in self.signals}


class Surface:
    """The real classes, each with what it inherits; Qt's own part is asked of PySide6."""

    def __init__(self, classes: dict[str, dict]):
        self.classes = classes

    @classmethod
    def load(cls, path: Path = EXTRACT) -> Surface:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def __contains__(self, name: str) -> bool:
        return name in self.classes

    def ancestry(self, name: str) -> Iterator[str]:
        """The class and its bases, of which the last is Qt's."""
        while name in self.classes:
            yield name
            name = self.classes[name]["base"]
        yield name

    def names(self, name: str) -> Names:
        found = Names()
        for ancestor in self.ancestry(name):
            if ancestor in self.classes:
                declared = self.classes[ancestor]
                found.properties |= set(declared["properties"])
                found.signals |= set(declared["signals"])
                found.methods |= {s.split("(")[0] for s in (*declared["slots"], *declared["invokable"])}
                found.methods |= set(PARSE_GAPS.get(ancestor, ()))
            else:
                _add_qt(found, ancestor)
        return found


def _add_qt(found: Names, class_name: str) -> None:
    import qt

    class_name = class_name if class_name in QT_PROPERTIES else "QObject"
    found.properties |= QT_PROPERTIES[class_name] | {"name"}
    found.signals |= QT_SIGNALS[class_name]
    found.methods |= {name for name in dir(getattr(qt, class_name)) if not name.startswith("_")}


def extract(full: dict[str, dict], wanted: Iterable[str]) -> dict[str, dict]:
    """The wanted classes and their ancestors, by name; a class that Slicer does not have is left out."""
    kept: dict[str, dict] = {}
    for name in wanted:
        while name in full and name not in kept:
            kept[name] = full[name] | {"invokable": [*full[name]["invokable"], *_decorations(full, name)]}
            name = full[name]["base"]
    return dict(sorted(kept.items()))


def _decorations(full: dict[str, dict], name: str) -> Iterator[str]:
    """What PythonQt adds to a class by a slot of a "decorators" class: of the instance, or of the class (static_)."""
    for decorators in (declared for key, declared in full.items() if key.endswith("PythonQtDecorators")):
        for slot in decorators["slots"]:
            if slot.split("(")[1].startswith((f"{name}*,", f"{name}*)")):
                yield slot.replace(f"{name}*,", "").replace(f"{name}*", "")
            elif slot.startswith(f"static_{name}_"):
                yield slot.removeprefix(f"static_{name}_")


def stand_in_differences(surface: Surface, cls: type) -> list[str]:
    """Names that a stand-in offers and the real class does not have."""
    from slicerhost.standin import public_surface

    if cls.__name__ not in surface:
        return [f"{cls.__name__} is no class of Slicer"]
    real, offered = surface.names(cls.__name__), public_surface(cls)
    wrong = {
        "property": offered["properties"] - real.properties,
        "signal": offered["signals"] - {_normal(signal) for signal in real.signals},
        "method": offered["methods"] - real.methods,
    }
    return [f"{cls.__name__} has no {kind} {name}" for kind, names in wrong.items() for name in sorted(names)]


def _normal(signature: str) -> str:
    from PySide6.QtCore import QMetaObject

    return QMetaObject.normalizedSignature(signature).data().decode()


def unknown_names(py_files: Iterable[Path], ui_files: Iterable[Path] = (), surface: Surface | None = None) -> list[str]:
    """What scripts and .ui files say that the real API does not have, as lines "file:line: what".

    Scripts are checked at ``slicer.X``, ``slicer.app.X``, ``slicer.util.X``, ``qt.X``, ``ctk.X``, and at the widgets
    whose class is plain: those of the .ui files (``self.ui.name``) and variables made by ``ctk.ctkX()`` or
    ``slicer.qMRMLX()``. The host must have been started.
    """
    surface = surface or Surface.load()
    found: list[str] = []
    widgets: dict[str, str] = {}
    for path in ui_files:
        checker = _UiChecker(path, surface)
        found += checker.problems
        widgets.update(checker.widgets)
    for path in py_files:
        checker = _ScriptChecker(path, surface, widgets)
        checker.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += checker.problems
    return found


class _UiChecker:
    def __init__(self, path: Path, surface: Surface):
        self.path, self.surface = path, surface
        self.problems: list[str] = []
        self.widgets: dict[str, str] = {}
        document = ET.parse(path).getroot()
        for element in document.iter("widget"):
            self._check_widget(element)
        for connection in document.iter("connection"):
            self._check_connection({part.tag: part.text or "" for part in connection})

    def _say(self, what: str) -> None:
        self.problems.append(f"{self.path.name}: {what}")

    def _check_widget(self, element: ET.Element) -> None:
        import qt

        class_name, name = element.get("class", ""), element.get("name", "")
        self.widgets[name] = class_name
        if class_name not in self.surface and not hasattr(qt, class_name):
            self._say(f"{class_name} ({name}) is no class of Qt nor of the extract")
            return
        properties = self.surface.names(class_name).properties
        for declared in element.findall("property"):
            if declared.get("stdset") != "0" and declared.get("name") not in properties:
                self._say(f"{class_name} ({name}) has no property {declared.get('name')}")

    def _check_connection(self, connection: dict[str, str]) -> None:
        sender, receiver = (self.widgets.get(connection[end], "") for end in ("sender", "receiver"))
        if _normal(connection["signal"]) not in {_normal(s) for s in self.surface.names(sender).signals}:
            self._say(f"{sender} ({connection['sender']}) has no signal {connection['signal']}")
        if connection["slot"].split("(")[0] not in self.surface.names(receiver).methods:
            self._say(f"{receiver} ({connection['receiver']}) has no slot {connection['slot']}")


class _ScriptChecker(ast.NodeVisitor):
    def __init__(self, path: Path, surface: Surface, widgets: dict[str, str]):
        self.path, self.surface = path, surface
        self.problems: list[str] = []
        self.known = {f"self.ui.{name}": cls for name, cls in widgets.items()}
        self.known["slicer.app"] = "qSlicerApplication"

    def _say(self, node: ast.AST, what: str) -> None:
        self.problems.append(f"{self.path.name}:{node.lineno}: {what}")

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Call):
            made = _dotted(node.value.func)
            class_name = made.split(".")[-1]
            if made.startswith(("ctk.", "slicer.q")) and class_name in self.surface:
                for target in node.targets:
                    self.known[_dotted(target)] = class_name
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = _dotted(node.value)
        if owner in ("slicer", "slicer.util", "qt", "ctk"):
            if not hasattr(_module(owner), node.attr) and not self._is_module_name(owner, node.attr):
                self._say(node, f"{owner} has no {node.attr}")
        elif owner in self.known and node.attr not in self.surface.names(self.known[owner]).attributes:
            self._say(node, f"{self.known[owner]} ({owner}) has no {node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("connect", "disconnect"):
            owner = _dotted(node.func.value)
            if owner in self.known and node.args and isinstance(node.args[0], ast.Constant):
                signals = {_normal(s) for s in self.surface.names(self.known[owner]).signals}
                if _normal(str(node.args[0].value)) not in signals:
                    self._say(node, f"{self.known[owner]} ({owner}) has no signal {node.args[0].value}")
        self.generic_visit(node)

    @staticmethod
    def _is_module_name(owner: str, name: str) -> bool:
        """``slicer.packaging`` and the like are attributes only once they are imported."""
        from importlib.util import find_spec

        return owner == "slicer" and find_spec(f"slicer.{name}") is not None


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _module(dotted: str) -> Any:
    import slicer

    return slicer.util if dotted == "slicer.util" else sys.modules[dotted]


def main() -> None:
    from slicerhost import start
    from slicerhost.standin import STAND_INS

    start()
    full = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    EXTRACT.write_text(json.dumps(extract(full, STAND_INS), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
