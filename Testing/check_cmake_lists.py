"""Compares the files that WeakTumourSeg/CMakeLists.txt ships with the files there are.

Slicer's packages hold what is listed and nothing else, so a forgotten name is a broken package that no test here would
notice. Exit 1 names what is missing or left over; --fix writes the list anew, sorted.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
_LIST = re.compile(r"(?<=set\(WeakTumourSeg_FILES\n)(.*?)(?=^[ ]*\))", re.MULTILINE | re.DOTALL)
_NOT_SHIPPED = re.compile(r"(^|/)(__pycache__|\.|[^/]+\.egg-info)|\.py[co]$|(^|/)CMakeLists\.txt$")


def files_of(folder: Path) -> list[str]:
    """The files below `folder` that a package must hold, as sorted paths relative to it with forward slashes."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if not _NOT_SHIPPED.search(name))


def listed_in(cmake_text: str) -> list[str]:
    """The names in set(WeakTumourSeg_FILES ...) in their order. Raises ValueError where there is no such list."""
    found = _LIST.search(cmake_text)
    if found is None:
        raise ValueError("no set(WeakTumourSeg_FILES ...) with one name a line")
    names = (line.partition("#")[0].strip().strip('"') for line in found.group().splitlines())
    return [name for name in names if name]


def differences(folder: Path) -> list[str]:
    """One line for each difference between the list in `folder`/CMakeLists.txt and the files below `folder`."""
    listed, present = listed_in((folder / "CMakeLists.txt").read_text(encoding="utf-8")), files_of(folder)
    return [
        *(f"not listed: {name}" for name in sorted(set(present) - set(listed))),
        *(f"listed, but not there: {name}" for name in sorted(set(listed) - set(present))),
        *(f"listed twice: {name}" for name in sorted({name for name in listed if listed.count(name) > 1})),
    ]


def write_list(folder: Path) -> None:
    """Put the files that there are, sorted, into `folder`/CMakeLists.txt."""
    path = folder / "CMakeLists.txt"
    body = "".join(f"  {name}\n" for name in files_of(folder))
    path.write_text(_LIST.sub(lambda _: body, path.read_text(encoding="utf-8"), count=1), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "WeakTumourSeg")
    parser.add_argument("--fix", action="store_true", help="write the list anew, sorted")
    options = parser.parse_args(arguments)
    if options.fix:
        write_list(options.folder)
    found = differences(options.folder)
    for line in found:
        print(f"{options.folder.name}/CMakeLists.txt: {line}", file=sys.stderr)
    if found:
        print("To mend it: make format", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
