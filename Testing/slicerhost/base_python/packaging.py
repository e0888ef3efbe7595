"""Stand-in for ``slicer.packaging``: answers what is installed, and never installs anything (a test must not)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement


def load_requirements(path: str | Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def pip_check(req: str | Requirement | list[str | Requirement]) -> bool:
    """Whether all of it is installed in versions that satisfy it."""
    requirements = req if isinstance(req, list) else [req]
    return all(_satisfied(Requirement(str(r))) for r in requirements)


def _satisfied(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def pip_install(*args, **kwargs) -> None:
    raise RuntimeError("the test host installs no packages; replace slicer.packaging.pip_install in the test")


pip_ensure = pip_uninstall = pip_install
