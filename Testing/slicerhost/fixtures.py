"""The pytest fixture; Testing/conftest.py takes it in for every test folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from slicerhost import missing_packages, start

if TYPE_CHECKING:
    from slicerhost.host import SlicerHost


@pytest.fixture
def slicer_host() -> Iterator[SlicerHost]:
    """A Slicer as it stands after its start; skips where slicer-core or PySide6 is absent.

    An exception inside a slot or an observer, which Qt and VTK swallow, fails the test, unless it took the exception
    out of `slicer_host.errors`.
    """
    reason = missing_packages()
    if reason:
        pytest.skip(reason)
    host = start()
    host.reset()
    yield host
    errors = list(host.errors)
    host.reset()
    assert not errors, f"raised inside a slot or an observer: {errors!r}"
