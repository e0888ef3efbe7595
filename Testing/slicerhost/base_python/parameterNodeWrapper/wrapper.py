"""The class decorator: every annotated member becomes a property that lives in the parameter node."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Annotated, Any

import qt
import slicer
import vtk

from .annotations import Default, Validator
from .connectors import Connector, connector_for
from .storage import Storage, storage_for

SlicerParameterNamePropertyName = "SlicerParameterName"


@dataclass
class Parameter:
    name: str
    annotated: Any  # the type as it was written
    kind: Any
    annotations: list[Any]
    storage: Storage
    default: Default

    def write(self, node: Any, value: Any) -> None:
        self.storage.check(value)
        for annotation in self.annotations:
            if isinstance(annotation, Validator):
                annotation.validate(value)
        self.storage.write(node, self.name, value)

    def read(self, node: Any) -> Any:
        if not node.HasParameter(self.name):
            self.write(node, self.default.value)
        return self.storage.read(node, self.name)


class WrapperMethods:
    """What the decorated class is given: it stays the same class, as its methods may call super()."""

    allParameters: dict[str, Parameter]

    def __init__(self, parameterNode: Any):
        self.parameterNode = parameterNode
        self._guis: dict[int, tuple[dict[str, Connector], int]] = {}  # by tag: connectors, observer of the node
        self._next_tag = 0
        self._updating_gui = False
        for parameter in self.allParameters.values():
            parameter.read(parameterNode)
        # Slicer's wrapper caches each value, by an observer that lives as long as the wrapper. There is no cache here,
        # but a wrapper that somebody never lets go has to show as a leak all the same.
        self._observer = parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: None)

    def __del__(self):
        if hasattr(self, "_observer"):
            self.parameterNode.RemoveObserver(self._observer)

    @classmethod
    def _parameter(cls, name: str) -> Parameter:
        if name not in cls.allParameters:
            raise ValueError(f"{cls.__name__} has no parameter {name!r}; it has {', '.join(cls.allParameters)}")
        return cls.allParameters[name]

    def getValue(self, name: str) -> Any:
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        self._parameter(name).write(self.parameterNode, value)

    def default(self, name: str) -> Default:
        return self._parameter(name).default

    def isCached(self, name: str) -> bool:
        self._parameter(name)
        return False

    @classmethod
    def dataType(cls, name: str) -> Any:
        return cls._parameter(name).annotated

    def connectGui(self, gui: Any) -> int:
        """Bind the widgets that name a parameter in their property SlicerParameterName; returns a tag to undo it."""
        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = gui.findChildren(qt.QWidget) if is_widget else vars(gui).values()
        named = {w.property(SlicerParameterNamePropertyName): w for w in widgets}
        return self.connectParametersToGui({name: w for name, w in named.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {}
        for name, widget in mapping.items():
            parameter = self._parameter(name)
            connectors[name] = connector_for(widget, parameter.kind, parameter.annotations)
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.on_changed(lambda name=name, connector=connector: self._from_gui(name, connector))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._to_gui())
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._guis[tag] = (connectors, observer)
        return tag

    def disconnectGui(self, tag: int) -> None:
        connectors, observer = self._guis.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.on_changed(None)
        if observer is not None:
            self.RemoveObserver(observer)

    def _from_gui(self, name: str, connector: Connector) -> None:
        if not self._updating_gui:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    def _to_gui(self) -> None:
        if self._updating_gui:
            return
        self._updating_gui = True
        try:
            for connectors, _ in list(self._guis.values()):
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
        finally:
            self._updating_gui = False

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified: int) -> None:
        self.parameterNode.EndModify(wasModified)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)


RESERVED = {name for name in dir(WrapperMethods) if not name.startswith("__")} | {"parameterNode", "allParameters"}


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """``@parameterNodeWrapper`` with or without parentheses."""
    return _wrap if classtype is None else _wrap(classtype)


def _wrap(cls: type) -> type:
    parameters = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        if name in RESERVED:
            raise ValueError(f"a parameter cannot be named {name!r}")
        kind, *annotations = typing.get_args(Annotated[annotated, None])[:-1]
        storage = storage_for(kind)
        defaults = [a for a in annotations if isinstance(a, Default)]
        if hasattr(cls, name):
            defaults = [Default(getattr(cls, name))]
        default = defaults[0] if defaults else Default(generator=storage.default)
        annotations = [a for a in annotations if not isinstance(a, Default)]
        parameters[name] = Parameter(name, annotated, kind, annotations, storage, default)
    for name, member in vars(WrapperMethods).items():
        if name in ("__init__", "__del__") or not name.startswith("__"):
            setattr(cls, name, member)
    for name in parameters:
        setattr(cls, name, _property(name))
    cls.allParameters = parameters
    cls._is_parameter_node_wrapper = True
    return cls


def _property(name: str) -> property:
    return property(lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget: Any, parameter: str) -> Any:
    children = widget.findChildren(qt.QWidget)
    return next((w for w in children if w.property(SlicerParameterNamePropertyName) == parameter), None)
