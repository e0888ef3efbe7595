"""Methods of a benchmark behind one door: a case folder in, a transform with its price out.

Ours and the affine alignment run as `weaktumour register` in a process of its own, peers as `peers.run_peer` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..deformation import DisplacementField
from ..errors import InputError, WeakTumourError
from ..models import TASKS, default_id, find
from .measure import run_measured
from .peers import METHODS as PEERS
from .peers import PACKAGES, child_environment, run_peer

# Of our stages those that find the transform, the UNet's livers included; the rest writes the result.
_REGISTRATION = ("segmentation", "alignment", "mscgunet", "refinement")
OURS = ("ours", "ours-fast", "ours-thorough", "affine")
NAMES = (*OURS, *PEERS)


@dataclass(frozen=True)
class PeerSettings:
    """spacing_mm: of the working grid. affine_start: begin with our alignment. options: of the method."""

    spacing_mm: float
    affine_start: bool
    options: Mapping[str, object] = field(default_factory=dict)


# Those that did best on development patients (Testing/benchmark/tune_peers.py). SyN was a tenth better with more steps,
# which take four times as long.
PEER_SETTINGS: dict[str, PeerSettings] = {
    "convexadam": PeerSettings(2.0, True),
    "syn": PeerSettings(3.0, True, {"flow_sigma": 6, "total_sigma": 1}),
    "elastix": PeerSettings(3.0, True, {"iterations": 250, "bending": 2000.0}),
}


@dataclass(frozen=True)
class Outcome:
    """transform: CT point -> MR point. seconds, peak_mb: of the whole process, without a peer's affine start."""

    transform: DisplacementField
    seconds: float
    peak_mb: float
    version: str
    settings: dict[str, object]


_REGISTERS = ("pipeline.py", "deformation.py", "segmentation.py", "registration/*.py", "networks/*.py")


@cache
def engine(*more: str) -> dict[str, str]:
    """Version and checksum of what registers: while it is worked on the version alone says little.

    more: patterns of further files of the package that count.
    """
    package = Path(__file__).resolve().parents[1]
    digest = sha256("".join(f"{task} {find(None, task).sha256}" for task in TASKS if default_id(task)).encode())
    for name in (*_REGISTERS, *more):
        for path in sorted(package.glob(name)):
            digest.update(path.read_bytes())
    return {"version": __version__, "code": digest.hexdigest()[:12]}


def check_installed(methods: Sequence[str]) -> None:
    """Raises InputError where a package that one of them needs is missing."""
    for method in methods:
        for package in ("psutil", *([PACKAGES[method]] if method in PEERS else [])):
            try:
                metadata.version(package)
            except metadata.PackageNotFoundError as error:
                raise InputError(
                    f"{method}: the package {package} is not installed; in the checkout of WeakTumourSeg: "
                    "pip install -e '.[benchmark]'."
                ) from error


def wants_affine(method: str) -> bool:
    return method in PEER_SETTINGS and PEER_SETTINGS[method].affine_start


def run_method(
    method: str, case: Path, folder: Path, *, threads: int | None = None, start: DisplacementField | None = None,
    settings: PeerSettings | None = None, timeout_s: float | None = None,
) -> Outcome:  # fmt: skip
    """Register a case folder. folder: for what the method writes. threads: for the process; None leaves the choice.

    start: what "affine" gave, for methods that want it. settings: of a peer, instead of those that were chosen for it.
    Raises InputError and WeakTumourError.
    """
    if method not in NAMES:
        raise InputError(f'"{method}" is not a method that is known here; choose from {", ".join(NAMES)}.')
    if method in PEERS:
        settings = settings or PEER_SETTINGS[method]
        found = run_peer(
            method,
            case / "ct.nii.gz",
            case / "mr.nii.gz",
            spacing_mm=settings.spacing_mm,
            start=start.best_affine.matrix if settings.affine_start and start is not None else None,
            options=settings.options,
            threads=threads,
            timeout_s=timeout_s,
        )
        return Outcome(found.field, found.seconds, found.peak_mb, found.version,
                       {"spacing_mm": settings.spacing_mm, "affine_start": settings.affine_start,
                        "options": dict(settings.options)})  # fmt: skip
    preset = {"ours-fast": "fast", "ours-thorough": "thorough"}.get(method, "balanced")
    stages = "alignment" if method == "affine" else "alignment,mscgunet,refinement"
    argv = [sys.executable, "-m", "weaktumour.cli", "register", "--out", str(folder), "--overwrite", "--device", "cpu",
            "--preset", preset, "--stages", stages, "--uncertainty", "off"]  # fmt: skip
    for option, name in (("--mr", "mr"), ("--ct", "ct"), ("--mr-labels", "mr_labels")):
        argv += [option, str(case / f"{name}.nii.gz")]
    measured = run_measured(argv, environment=child_environment(threads), timeout_s=timeout_s)
    if measured.returncode != 0:
        lines = measured.output.strip().splitlines() or ["no message"]
        raise WeakTumourError(f"{method}: {lines[-1]}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Outcome(
        DisplacementField.read(folder / "transform.h5"), measured.seconds, measured.peak_mb, __version__,
        {"preset": preset, "stages": stages, "verdict": result["run"]["verdict"],
         "registration_s": sum(result["timings_s"].get(s) or 0.0 for s in _REGISTRATION)},
    )  # fmt: skip
