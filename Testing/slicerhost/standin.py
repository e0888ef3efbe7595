"""How a Python class stands in for a C++ widget: declared properties and signals, and nothing else in public.

`stands_in` registers the class, so that .ui files, ``ctk`` and ``slicer`` find it by name, and makes it refuse unknown
attributes as PythonQt does. Names that begin with an underscore are the stand-in's own. test_surface_check.py compares
every public name with the real class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from PySide6.QtCore import Property

from slicerhost import pythonqt

pythonqt.install()  # a stand-in must find Qt's classes with the manners of PythonQt when it is made

STAND_INS: dict[str, type] = {}

# What PySide6 calls the parameters of a signal that Slicer declares with a C++ type.
_PYSIDE_TYPES = {"vtkMRMLNode*": "PyObject", "vtkMRMLScene*": "PyObject", "vtkIdType": "PyObject"}


def stands_in(*signals: str) -> Callable[[type], type]:
    """Class decorator; `signals` are those of its C++ signatures whose types PySide6 does not know."""

    def register(cls: type) -> type:
        cls._stands_for_cpp = True
        cls._cpp_signals = {signal: _as_pyside(signal) for signal in signals}
        cls._declared = pythonqt.declared_names(cls, inherited=False)
        STAND_INS[cls.__name__] = cls
        return cls

    return register


def _as_pyside(signal: str) -> str:
    name, types = signal[:-1].split("(")
    return f"{name}({','.join(_PYSIDE_TYPES.get(t, 'PyObject' if t.endswith('*') else t) for t in types.split(','))})"


def stored(kind: type | str, default: Any = None) -> Property:
    """A property that the real class acts on and the stand-in only remembers."""
    key = object()  # the class attribute's name is not known here

    def values(self: Any) -> dict:
        if "_stored" not in self.__dict__:
            self._stored = {}
        return self._stored

    return Property(
        kind, lambda self: values(self).get(key, default), lambda self, value: values(self).__setitem__(key, value)
    )


def forwarded(kind: type | str, target: str, getter: str, setter: str | None = None) -> Property:
    """A property of the widget `target` inside, by its Qt getter and setter."""

    def read(self: Any) -> Any:
        widget = getattr(self, target)
        return type(widget).property(widget, getter)

    def write(self: Any, value: Any) -> None:
        getattr(getattr(self, target), setter)(value)

    return Property(kind, read, write if setter else None)


def public_surface(cls: type) -> dict[str, set[str]]:
    """The properties, signals and methods that the stand-ins in `cls`'s ancestry add to their Qt class."""
    found: dict[str, set[str]] = {"properties": set(), "signals": set(), "methods": set()}
    for base in _stand_in_ancestry(cls):
        properties, signals = base._declared
        found["properties"] |= properties
        found["signals"] |= signals
        found["signals"] -= set(base._cpp_signals.values())
        found["signals"] |= set(base._cpp_signals)
        found["methods"] |= {n for n, v in vars(base).items() if not n.startswith("_") and callable(v)}
    found["methods"] -= {s.split("(")[0] for s in found["signals"]}
    found["methods"] -= found["properties"]
    return found


def _stand_in_ancestry(cls: type) -> Iterable[type]:
    return (base for base in cls.__mro__ if "_stands_for_cpp" in vars(base))
