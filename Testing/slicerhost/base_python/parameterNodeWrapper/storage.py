"""How a parameter of each type is kept in a vtkMRMLScriptedModuleNode: as text, or as a reference to another node."""

from __future__ import annotations

import enum
import json
import pathlib
import types
import typing
from collections.abc import Callable, MutableMapping, MutableSequence
from typing import Any

import slicer

PATH_TYPES = (pathlib.Path, pathlib.PurePath, type(pathlib.Path()), type(pathlib.PurePath()))


class Storage:
    """Text in the node's parameter; the simple types differ only in their two conversions."""

    def __init__(
        self,
        accepted: type | tuple[type, ...],
        to_text: Callable[[Any], str],
        from_text: Callable[[str], Any],
        default: Callable[[], Any],
    ):
        self.accepted, self.to_text, self.from_text, self.default = accepted, to_text, from_text, default

    def check(self, value: Any) -> None:
        if value is None:
            raise ValueError("the value must not be None")
        if not isinstance(value, self.accepted):
            raise TypeError(f"{value!r} is of type {type(value).__name__}; {self.accepted} is needed")

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, self.to_text(value))

    def read(self, node: Any, name: str) -> Any:
        return self.from_text(node.GetParameter(name))


class NodeStorage(Storage):
    """A node reference; the empty parameter beside it tells "set to None" from "never set"."""

    def __init__(self, accepted: tuple[type, ...]):
        super().__init__(accepted, lambda value: "", lambda text: None, lambda: None)

    def check(self, value: Any) -> None:
        if value is not None:
            super().check(value)

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)


class OptionalStorage(Storage):
    """A value or None, which is stored as an empty text; any other text is that of the value, after a colon."""

    def __init__(self, inner: Storage):
        self.inner = inner
        super().__init__(
            inner.accepted,
            lambda value: "" if value is None else ":" + inner.to_text(value),
            lambda text: inner.from_text(text[1:]) if text else None,
            lambda: None,
        )

    def check(self, value: Any) -> None:
        if value is not None:
            self.inner.check(value)


class CollectionStorage(Storage):
    """A list or a dictionary of simple values; what is read writes itself back when it is changed."""

    def __init__(self, kind: type, element: Storage):
        self.kind, self.element = kind, element
        super().__init__((kind, MutableSequence if kind is list else MutableMapping), self._dump, self._load, kind)

    def check(self, value: Any) -> None:
        super().check(value)
        for element in value.values() if self.kind is dict else value:
            self.element.check(element)

    def _dump(self, value: Any) -> str:
        if self.kind is dict:
            return json.dumps({key: self.element.to_text(v) for key, v in value.items()})
        return json.dumps([self.element.to_text(v) for v in value])

    def _load(self, text: str) -> Any:
        loaded = json.loads(text)
        if self.kind is dict:
            return {key: self.element.from_text(v) for key, v in loaded.items()}
        return [self.element.from_text(v) for v in loaded]

    def read(self, node: Any, name: str) -> Any:
        def changed(value: Any) -> None:
            self.check(value)
            self.write(node, name, value)

        return (ObservedDict if self.kind is dict else ObservedList)(super().read(node, name), changed)


class ObservedList(MutableSequence):
    def __init__(self, values: list, changed: Callable[[list], None]):
        self._values, self._changed = values, changed

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._values[index] = value
        self._changed(self._values)

    def __delitem__(self, index: Any) -> None:
        del self._values[index]
        self._changed(self._values)

    def insert(self, index: int, value: Any) -> None:
        self._values.insert(index, value)
        self._changed(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return self._values == (other._values if isinstance(other, ObservedList) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self._values)


class ObservedDict(MutableMapping):
    def __init__(self, values: dict, changed: Callable[[dict], None]):
        self._values, self._changed = values, changed

    def __getitem__(self, key: Any) -> Any:
        return self._values[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[key] = value
        self._changed(self._values)

    def __delitem__(self, key: Any) -> None:
        del self._values[key]
        self._changed(self._values)

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _enum_from_text(kind: type[enum.Enum]) -> Callable[[str], enum.Enum]:
    def from_text(text: str) -> enum.Enum:
        if text not in kind.__members__:
            raise ValueError(f"{text!r} is no name in {kind.__name__}")
        return kind[text]

    return from_text


def storage_for(kind: Any) -> Storage:
    """The storage of a type without its annotations; raises TypeError for one that cannot be stored."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return Storage(bool, lambda value: "True" if value else "False", lambda text: text == "True", bool)
    if kind is int:
        return Storage(int, str, int, int)
    if kind is float:
        return Storage((int, float), str, float, float)
    if kind is str:
        return Storage(str, str, str, str)
    if kind in PATH_TYPES:
        return Storage(kind, str, kind, kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return Storage(kind, lambda value: value.name, _enum_from_text(kind), lambda: next(iter(kind)))
    node_types = node_types_of(kind)
    if node_types:
        return NodeStorage(node_types)
    if origin in (typing.Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        return OptionalStorage(storage_for(next(a for a in arguments if a is not type(None))))
    if origin is list and len(arguments) == 1:
        return CollectionStorage(list, _simple(arguments[0]))
    if origin is dict and len(arguments) == 2 and arguments[0] is str:
        return CollectionStorage(dict, _simple(arguments[1]))
    raise TypeError(f"a parameter of type {kind} cannot be stored by this stand-in")


def _simple(kind: Any) -> Storage:
    storage = storage_for(kind)
    if type(storage) is not Storage:
        raise TypeError(f"a list or dictionary of {kind} cannot be stored by this stand-in")
    return storage


def node_types_of(kind: Any) -> tuple[type, ...]:
    """The node classes of a node type or a union of them (with or without None); empty for any other type."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    kinds = tuple(k for k in kinds if k is not type(None))
    nodes = all(isinstance(k, type) and issubclass(k, slicer.vtkMRMLNode) for k in kinds)
    return kinds if nodes else ()
