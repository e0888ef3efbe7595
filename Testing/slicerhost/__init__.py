"""A headless host for the Slicer module: what a test needs of 3D Slicer, on the real MRML libraries.

``slicerhost.start()`` makes ``slicer``, ``qt`` and ``ctk`` importable as they are inside Slicer. README.md says what
is real here, what is a stand-in and what is missing.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slicerhost.host import SlicerHost


@functools.cache
def missing_packages() -> str:
    """Why the host cannot run here, or an empty string: a package, or a library of the system that it needs."""
    for name in ("slicer_core", "PySide6.QtWidgets"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"needs the extra slicer (make set-up-tests): {error}"
    return ""


def start() -> SlicerHost:
    """The host of this process, started at the first call (about 2 s). There can be only one, as there is one qt."""
    from slicerhost.host import SlicerHost

    return SlicerHost.instance()
