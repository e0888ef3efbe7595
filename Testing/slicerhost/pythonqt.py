"""The module ``qt`` as Slicer's Python sees it: PySide6 with the manners of PythonQt.

PySide6 calls getters and setters; PythonQt makes every Q_PROPERTY an attribute. PySide6 lets any attribute be set on
any object; PythonQt refuses what the class does not have. PythonQt connects signals by signature,
``button.connect("clicked(bool)", f)``, keeps a bound method alive while it is connected, and passes it as many
arguments as it takes. Code that works only with one of the two must fail here in the way it would fail in Slicer, so
the classes of PySide6 are patched once at the start, in place (`install`).
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

# Both are read when the first QApplication is made, and nothing here may ever open a window.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import shiboken6
from PySide6 import QtCore, QtGui, QtNetwork, QtUiTools, QtWidgets

SOURCES = (QtCore, QtGui, QtWidgets, QtNetwork, QtUiTools)
SHIBOKEN_OBJECT = QtCore.QObject.__base__

# (pointer of the sender, signature) -> what is connected there: PythonQt finds a connection by the callable, also when
# Python's wrapper of the sender has been made anew in between.
_connections: dict[tuple[int, str], list[tuple[Callable, Callable]]] = {}


# Properties and signals of each class of Qt by its name, with the inherited ones; filled in by install().
QT_PROPERTIES: dict[str, set[str]] = {}
QT_SIGNALS: dict[str, set[str]] = {}


def declared_names(cls: type, inherited: bool = True) -> tuple[set[str], set[str]]:
    """The names of its properties and the signatures of its signals.

    To be asked once, early: PySide6 gives the meta object of a class away with one of its instances' and then says that
    it is deleted.
    """
    meta = cls.staticMetaObject
    first_property, first_method = (0, 0) if inherited else (meta.propertyOffset(), meta.methodOffset())
    methods = [meta.method(index) for index in range(first_method, meta.methodCount())]
    return (
        {meta.property(index).name() for index in range(first_property, meta.propertyCount())},
        {
            m.methodSignature().data().decode()
            for m in methods
            if m.methodType() == QtCore.QMetaMethod.MethodType.Signal
        },
    )


class QtProperty:
    """A Q_PROPERTY as an attribute of instances; on the class it leaves what PySide6 has there (QTimer.singleShot)."""

    def __init__(self, name: str, writable: bool, class_attribute: Any, owner: type):
        self.name, self.writable, self.class_attribute = name, writable, class_attribute
        capital = name[0].upper() + name[1:]
        candidates = [getattr(owner, "is" + capital, None), class_attribute]
        self.getter = next((c for c in candidates if inspect.ismethoddescriptor(c)), None)
        self.setter_name = "set" + capital if hasattr(owner, "set" + capital) else None

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            if self.class_attribute is None:
                raise AttributeError(f"type object {owner.__name__!r} has no attribute {self.name!r}")
            return self.class_attribute
        return self.getter(instance) if self.getter else instance.property(self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if not self.writable:
            raise AttributeError(f"property {self.name!r} of {type(instance).__name__} is read-only")
        if self.setter_name:
            getattr(instance, self.setter_name)(value)
        elif not instance.setProperty(self.name, value):
            raise AttributeError(f"property {self.name!r} of {type(instance).__name__} does not accept {value!r}")


def install() -> types.ModuleType:
    """Patch PySide6's classes and put the module `qt` among the imported ones; a second call changes nothing."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    module = types.ModuleType("qt", __doc__)
    for source in SOURCES:
        for name in dir(source):
            if name.startswith(("Q", "q")):
                setattr(module, name, getattr(source, name))
    for cls in _qobject_classes():
        _patch_class(cls)
    _add_pythonqt_methods()
    sys.modules["qt"] = module
    return module


def _qobject_classes() -> Iterator[type]:
    """Every class of PySide6 that we hand out, bases first: a class copies its base's patched methods otherwise."""
    found = {
        value
        for source in SOURCES
        for value in (getattr(source, name) for name in dir(source))
        if isinstance(value, type) and issubclass(value, QtCore.QObject)
    }
    yield from sorted(found, key=lambda cls: (len(cls.__mro__), cls.__name__))


def _patch_class(cls: type) -> None:
    QT_PROPERTIES[cls.__name__], QT_SIGNALS[cls.__name__] = declared_names(cls)
    meta = cls.staticMetaObject
    for index in range(meta.propertyCount()):
        described = meta.property(index)
        name = described.name()
        if index < meta.propertyOffset() and name not in vars(cls):
            continue  # inherited as it is; a subclass that overrides the getter (QPushButton.sizeHint) hides the base's
        setattr(cls, name, QtProperty(name, described.isWritable(), getattr(cls, name, None), cls))
    cls.__getattribute__ = _make_getattribute(cls.__getattribute__)
    cls.__setattr__ = _setattr


def _make_getattribute(original: Callable) -> Callable:
    if getattr(original, "of_pythonqt", False):  # inherited from a base that is patched already
        original = original.original

    def __getattribute__(self, name: str) -> Any:
        # PySide6 finds its static QObject.connect before anything set on the class.
        if name == "connect":
            return partial(connect, self)
        if name == "disconnect":
            return partial(disconnect, self)
        try:
            return original(self, name)
        except AttributeError:
            if name == "name":
                return self.objectName
            if not name.startswith("_") and name in _dynamic_property_names(self):
                return self.property(name)
            raise

    __getattribute__.of_pythonqt, __getattribute__.original = True, original
    return __getattribute__


def _setattr(self: QtCore.QObject, name: str, value: Any) -> None:
    cls = type(self)
    declared = _class_attribute(cls, name)
    if isinstance(declared, QtCore.Property):
        # Python refuses to call PySide6's own __setattr__, which does this, over a patched class.
        if not self.metaObject().property(self.metaObject().indexOfProperty(name)).isWritable():
            raise AttributeError(f"property {name!r} of {cls.__name__} is read-only")
        if not self.setProperty(name, list(value) if isinstance(value, tuple) else value):
            raise AttributeError(f"property {name!r} of {cls.__name__} does not accept {value!r}")
    elif name == "name":
        self.setObjectName(value)
    elif hasattr(type(declared), "__set__") or _may_be_added(cls, name, value):
        SHIBOKEN_OBJECT.__setattr__(self, name, value)
    elif name in _dynamic_property_names(self):
        self.setProperty(name, value)
    else:
        raise AttributeError(f"attribute {name!r} does not exist on {cls.__name__} or cannot be set")


def is_cpp_class(cls: type) -> bool:
    """Whether it stands for a class written in C++, which takes no new attributes; the scripts' own subclasses do."""
    return cls.__module__.startswith("PySide6.") or "_stands_for_cpp" in vars(cls)


def _may_be_added(cls: type, name: str, value: Any) -> bool:
    # PySide6 itself keeps a signal on the instance from its first use on.
    return not is_cpp_class(cls) or name.startswith("_") or isinstance(value, QtCore.SignalInstance)


def _class_attribute(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _dynamic_property_names(instance: QtCore.QObject) -> set[str]:
    return {bytes(name.data()).decode() for name in instance.dynamicPropertyNames()}


def connect(sender: QtCore.QObject, signal: Any, *receiver: Any) -> bool:
    """``sender.connect("signal(type)", callable)``, the same with a receiver and its slot, or a static QObject.connect.

    Raises ValueError for a signal or a slot that the class does not have.
    """
    if isinstance(signal, QtCore.QObject):  # QObject.connect(sender, signal, receiver...), reached through an instance
        sender, signal, receiver = signal, receiver[0], receiver[1:]
    if signal.startswith("2"):  # PySide6's own way, from inside signal.connect(f) and QTimer.singleShot
        return QtCore.QObject.connect(sender, signal, *receiver)
    slot = _resolve_slot(*receiver)
    signature = _resolve_signal(sender, signal)
    count = _parameter_count(signature)

    def adapter(*values: Any) -> None:
        slot(*values[: _accepted_count(slot, count)])

    # PySide6 asks the adapter how many arguments it takes, and a variadic one gets all of this overload's.
    if not QtCore.QObject.connect(sender, "2" + signature, adapter):
        raise ValueError(f"{type(sender).__name__} cannot connect {signature}")
    pointer = shiboken6.getCppPointer(sender)[0]
    # Over a copy: the garbage collector may destroy senders, and so forget connections, at any moment.
    if not any(key[0] == pointer for key in list(_connections)):
        QtCore.QObject.connect(sender, "2destroyed()", partial(_forget, pointer))
    _connections.setdefault((pointer, signature), []).append((slot, adapter))
    return True


def disconnect(sender: QtCore.QObject, signal: Any = None, *receiver: Any) -> bool:
    """Undo one connection, or all of a signal, or all of the sender; False where there was none, as in PythonQt."""
    if isinstance(signal, QtCore.QObject):
        sender, signal, receiver = signal, receiver[0], receiver[1:]
    if signal is not None and signal.startswith("2"):
        return QtCore.QObject.disconnect(sender, signal, *receiver)
    pointer = shiboken6.getCppPointer(sender)[0]
    signature = None if signal is None else _resolve_signal(sender, signal)
    slot = _resolve_slot(*receiver) if receiver else None
    undone = False
    for key in [k for k in list(_connections) if k[0] == pointer and signature in (None, k[1])]:
        for connection in [c for c in _connections.get(key, ()) if slot in (None, c[0])]:
            QtCore.QObject.disconnect(sender, "2" + key[1], connection[1])
            _connections[key].remove(connection)
            undone = True
    return undone


def connection_count(sender: QtCore.QObject | None = None) -> int:
    """How many connections by signature there are now, of one sender or of all: a leak shows as growth."""
    pointer = None if sender is None else shiboken6.getCppPointer(sender)[0]
    return sum(len(found) for (owner, _), found in list(_connections.items()) if pointer in (None, owner))


def _forget(pointer: int) -> None:
    for key in [k for k in list(_connections) if k[0] == pointer]:
        del _connections[key]


def _resolve_slot(receiver: Any, slot_signature: str | None = None) -> Callable:
    if slot_signature is None:
        if not callable(receiver):
            raise ValueError(f"a callable is needed, not {receiver!r}")
        return receiver
    signature = QtCore.QMetaObject.normalizedSignature(slot_signature).data().decode()
    name = signature.split("(")[0]
    if not callable(getattr(receiver, name, None)):
        raise ValueError(f"{type(receiver).__name__} has no slot {slot_signature!r}")
    count = _parameter_count(signature)
    method = getattr(receiver, name)
    return lambda *values: method(*values[:count])


def _resolve_signal(sender: QtCore.QObject, signal: str) -> str:
    """The signature by which Qt knows the signal: a stand-in's C++ types (vtkMRMLNode*) are PyObject to PySide6."""
    wanted = QtCore.QMetaObject.normalizedSignature(signal).data().decode()
    for cls in type(sender).__mro__:
        if wanted in vars(cls).get("_cpp_signals", {}):
            wanted = vars(cls)["_cpp_signals"][wanted]
            break
    if sender.metaObject().indexOfSignal(wanted) < 0:
        raise ValueError(f"{type(sender).__name__} has no signal {signal!r}")
    return wanted


def _parameter_count(signature: str) -> int:
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    depth, count = 0, 1 if inside else 0
    for character in inside:
        depth += {"<": 1, ">": -1}.get(character, 0)
        count += character == "," and depth == 0
    return count


def _accepted_count(slot: Callable, offered: int) -> int:
    """PythonQt gives a function or a method as many of the arguments as it takes, anything else all of them."""
    if not isinstance(slot, (types.FunctionType, types.MethodType)):
        return offered
    code = getattr(slot, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARARGS:
        return offered
    return min(offered, code.co_argcount - isinstance(slot, types.MethodType))


def _add_pythonqt_methods() -> None:
    """What PythonQt adds to QObject, and the Python 2 spelling of exec that Slicer's own code uses."""
    QtCore.QObject.className = lambda self: self.metaObject().className()
    QtCore.QObject.delete = lambda self: shiboken6.delete(self)
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtWidgets.QApplication, QtCore.QEventLoop):
        cls.exec_ = lambda self, *args: self.exec(*args)
    QtCore.QObject.findChild = _accept_class_names(QtCore.QObject.findChild)
    QtCore.QObject.findChildren = _accept_class_names(QtCore.QObject.findChildren)
    file_dialog = QtWidgets.QFileDialog
    for name in ("getOpenFileName", "getOpenFileNames", "getSaveFileName"):
        setattr(file_dialog, name, staticmethod(_first_of(getattr(file_dialog, name))))


def _first_of(function: Callable) -> Callable:
    """PythonQt returns what C++ returns, PySide6 the selected filter too."""
    return lambda *arguments: function(*arguments)[0]


def _accept_class_names(original: Callable) -> Callable:
    """PythonQt's findChild and findChildren take a class or the name of one."""

    def find(self, kind: type | str, *arguments: Any) -> Any:
        if isinstance(kind, str):
            kind = getattr(sys.modules["qt"], kind)
        return original(self, kind, *arguments)

    return find
