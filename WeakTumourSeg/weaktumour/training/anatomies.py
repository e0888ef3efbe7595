"""Anatomies to learn from: tissue maps, made once and kept as small files in a folder."""

from __future__ import annotations

import json
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .. import simulation
from ..errors import InputError
from ..simulation.contrast import TISSUE_NAMES
from ..simulation.tissue_maps import CODE, KINDS, TissueMap, composed_map, phantom_map, read_label_map

_VERSION = f"{simulation.VERSION}.1"  # of the maps: those of another version are made anew


def write_map(anatomy: TissueMap, path: Path) -> None:
    # A name of its own: processes that torchrun starts together make the same maps at the same time.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, tissues=anatomy.tissues, kind=np.array(anatomy.kind), version=np.array(_VERSION))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_map(path: Path) -> TissueMap:
    """Raises InputError where the file is not one of ours."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            tissues, kind = content["tissues"], str(content["kind"])
    # IndexError: an array that is no archive.
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Anatomies: {path} cannot be read; delete it and start again to make it anew.") from error
    proper = tissues.ndim == 3 and tissues.dtype == np.uint8 and kind in KINDS
    if not proper or not np.any(tissues == CODE["liver"]) or int(tissues.max()) >= len(TISSUE_NAMES):
        raise InputError(f"Anatomies: {path} holds no tissue map; delete it and start again to make it anew.")
    return TissueMap(path.stem, tissues, kind)


def prepare_anatomies(
    folder: str | Path,
    phantom_seeds: Iterable[int],
    label_maps: Mapping[str, Path],
    *,
    processes: int = 1,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Path]:
    """Make what the folder lacks; return the files asked for.

    phantom_seeds: phantoms; the label map number i is set into the torso of seed i, counted round. report: (made, of).
    Raises InputError where a label map or the folder cannot be used.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Anatomies: {folder} cannot be made ({error.strerror}); choose another folder.") from error
    seeds = list(phantom_seeds)
    jobs: list[tuple[Path, int | None, Path | None]] = [(folder / f"phantom-{seed}.npz", seed, None) for seed in seeds]
    for number, (name, path) in enumerate(sorted(label_maps.items())):
        # Without phantoms of its own a map is set into the torso of its number.
        jobs.append((folder / f"{name}.npz", seeds[number % len(seeds)] if seeds else number, path))
    missing = [job for job in jobs if not _is_current(job[0])]
    if processes > 1 and len(missing) > 1:
        with ProcessPoolExecutor(processes) as pool:
            for done, _ in enumerate(pool.map(_make, missing), start=1):
                report(done, len(missing))
    else:
        for done, job in enumerate(missing, start=1):
            _make(job)
            report(done, len(missing))
    return [job[0] for job in jobs]


def label_maps_in(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Path]:
    """name -> file of a folder of label maps. names: only these. Raises InputError where one is missing or all are."""
    folder = Path(folder)
    found = {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("*.nii.gz"))}
    if not found:
        raise InputError(f"Label maps: {folder} holds no .nii.gz file; give a folder of label maps.")
    if names is None:
        return found
    missing = sorted(set(names) - set(found))
    if missing:
        raise InputError(f"Label maps: {folder} lacks {', '.join(missing[:5])}; give the folder that the split names.")
    return {name: found[name] for name in names}


def read_split(path: str | Path, part: str) -> tuple[list[str], Sequence[int]]:
    """Names of label maps and phantom seeds of one part (train, development, test) of splits.json.

    The file gives seeds as a list, or as the first and the last of a range. Raises InputError.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        maps, seeds = [str(name) for name in content["label_maps"][part]], content["phantoms"][part]
        seeds = (
            range(int(seeds["first"]), int(seeds["last"]) + 1) if isinstance(seeds, dict) else [int(s) for s in seeds]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Splits: {path} does not name the anatomies of the part {part}; restore the file.") from error
    return maps, seeds


def _is_current(path: Path) -> bool:
    """A map of this version; one that cannot be read counts as such, and reading it says so."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return "version" in content and str(content["version"]) == _VERSION
    except FileNotFoundError:
        return False
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        return True


# -- making them --------------------------------------------------------------------------------------------------
def _make(job: tuple[Path, int | None, Path | None]) -> None:
    target, seed, labels = job
    if _is_current(target):  # another process was faster
        return
    if labels is None:
        write_map(phantom_map(seed), target)
        return
    write_map(composed_map(read_label_map(labels), seed, target.stem), target)
