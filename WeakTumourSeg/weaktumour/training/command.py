"""`weaktumour train`: settings from a file, data from folders, weights into model files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import InputError, ModelError
from .config import RegistrationConfig, SegmentationConfig, read_config
from .weak_config import MODES, WeakConfig

if TYPE_CHECKING:
    from torch import nn

    from .sources import Sources

TASKS = {"registration": RegistrationConfig, "segmentation": SegmentationConfig}
WEAK = "weak"
_START = "start.json"
_SHARE_ALIKE = "CC-BY-SA-4.0"  # as the label maps of real livers ask for
_NEEDS = (
    "Training: {} is not installed; install the training extra, in the checkout of WeakTumourSeg: "
    "pip install -e '.[train]'."
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    text = "train a network on label maps under random contrast, or both on a cohort of MRI-CT pairs"
    parser = commands.add_parser("train", help=text, description=_sentence(text), allow_abbrev=False)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    parsers = {
        name: tasks.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        for name, text in {
            "registration": "MSCGUNet, from label maps under random contrast",
            "segmentation": "the UNet, from label maps under random contrast",
            WEAK: "both, from a cohort of MRI-CT pairs with labels on the MRIs",
        }.items()
    }
    for name, parser in parsers.items():
        parser.add_argument(
            "--out", required=True, metavar="DIR", help="folder of the run; the same one again goes on with it"
        )
        parser.add_argument(
            "--config", metavar="FILE", help="JSON file with any of the settings (a run's config.json holds them all)"
        )
        if name != WEAK:
            parser.add_argument(
                "--label-maps", metavar="DIR", help="label maps (.nii.gz) to learn from beside the phantoms"
            )
            parser.add_argument(
                "--splits", metavar="FILE", help="splits.json that says which label maps and seeds may be learnt from"
            )
            parser.add_argument("--until", type=int, metavar="STEP", help="stop after this step; start again to go on")
    weak = parsers[WEAK]
    weak.add_argument(
        "--mode", choices=MODES, required=True, help="what to do (sequential alternates, unified trains both at once)"
    )
    weak.add_argument("--cohort", metavar="DIR", required=True, help="folder of case folders")
    weak.add_argument("--splits", metavar="FILE", help="splits.json of `weaktumour dataset split`")
    weak.add_argument("--fold", type=int, metavar="K", help="hold out what fold K of --splits tests, from 0")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def run(options: Mapping[str, object]) -> int:
    """Train and write OUT/model.pt. Raises InputError."""
    _check_installed()
    task = str(options["task"])
    if task == WEAK:
        return _run_weak(options)
    kind = TASKS[task]
    config = read_config(str(options["config"]), kind) if options.get("config") else kind()
    given = {name: str(options[name]) for name in ("label_maps", "splits") if options.get(name)}
    config = replace(config, data=replace(config.data, **given))
    out = Path(str(options["out"]))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder.")
    until = None if options.get("until") is None else int(str(options["until"]))
    if until is not None and until < 1:
        raise InputError(f"--until: {until} is no step; give 1 or more.")
    weights = train_network(task, config, out, until)
    if weights is None:  # another process of a data-parallel run writes it
        return 0
    print(f"Weights: {weights.resolve()}  (weaktumour models import {weights} adds them)", flush=True)
    return 0


def _run_weak(options: Mapping[str, object]) -> int:
    from .cohort import read_cohort
    from .weak import run_weak

    config = read_config(str(options["config"]), WeakConfig) if options.get("config") else WeakConfig()
    given = {name: options[option] for name, option in (("folder", "cohort"), ("splits", "splits"), ("fold", "fold"))
             if options.get(option) is not None}  # fmt: skip
    config = replace(config, cohort=replace(config.cohort, **given))
    members = read_cohort(str(config.cohort.folder), config.cohort.splits, config.cohort.fold)
    for path in run_weak(str(options["mode"]), config, Path(str(options["out"])), members):
        print(f"Weights: {path.resolve()}  (weaktumour models import {path} adds them)", flush=True)
    return 0


def train_network(
    task: str, config: RegistrationConfig | SegmentationConfig, out: Path, until: int | None
) -> Path | None:
    """The model file of the finished (or stopped) run; None on all processes but the first. Raises InputError."""
    from . import loop
    from .registration import Registration
    from .segmentation import Segmentation
    from .sources import Sources

    # What is wrong with the settings is said before the anatomies are made, which takes minutes.
    loop.prepare_folder(out, config)
    _check_network(config)
    _check_start(config, out)
    sources = Sources.of(config.data, out)
    what = Registration(config, sources) if task == "registration" else Segmentation(config, sources)
    weights = loop.train(what, config, out, until=until)
    if weights is None:
        return None
    return write_model(task, config, what.network(), weights, sources, out)


def _check_network(config: RegistrationConfig | SegmentationConfig) -> None:
    from ..networks import build

    try:
        build(config.architecture, config.arguments)
    except ModelError as error:
        reason = (str(error.__cause__) or type(error.__cause__).__name__).splitlines()[0]
        raise InputError(
            f"Configuration: network {config.network} does not fit {config.architecture} ({reason}); correct it."
        ) from error


def _check_start(config: RegistrationConfig | SegmentationConfig, out: Path) -> None:
    """Note in OUT where a run begins: once it has begun, the model may be removed."""
    from ..models import find_any
    from ..networks import build
    from .loop import begin_with

    start = config.optimisation.start
    if start and not (out / "checkpoint.pt").exists():
        begin_with(build(config.architecture, config.arguments), start, config.architecture, config.arguments)
        entry = find_any(start)
        content = {"id": entry.id, "licence": entry.licence, **entry.training}
        (out / _START).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(
    task: str,
    config: RegistrationConfig | SegmentationConfig,
    network: nn.Module,
    weights: Path,
    sources: Sources,
    out: Path,
) -> Path:
    """The averaged weights with all that the pipeline and a reader need to know of them, as OUT/model.pt.

    network: takes the weights (a file of `loop.train`). sources: what was learnt from; says the licence.
    """
    import torch

    from ..models import save_weights
    from ..simulation import VERSION
    from .loop import read_checkpoint_state

    state = read_checkpoint_state(out)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    start = json.loads((out / _START).read_text(encoding="utf-8")) if config.optimisation.start else None
    real = any(anatomy.kind != "phantom" for anatomy in sources.anatomies)
    # What was learnt before is in the weights still.
    share_alike = real or (start is not None and start["licence"] == _SHARE_ALIKE)
    metadata = {
        "task": task,
        "input": {"spacing_mm": config.spacing_mm, "normalisation": "weaktumour-1"},
        "output": {"classes": ["background", "liver", "tumour"]} if task == "segmentation" else {"field": "velocity"},
        "licence": _SHARE_ALIKE if share_alike else "Apache-2.0",
        "training": {
            "software_version": __version__,
            "simulator_version": VERSION,
            "steps": state["step"],
            "hours": round(state["seconds"] / 3600, 2),
            "batch": config.optimisation.batch,
            "precision": config.computing.precision,
            "start": start,
            "anatomies": sources.counts(),
        },
        "figures": {},
        "description": "",
    }
    if task == "registration":
        metadata["input"] |= {"shape": list(config.shape), "passes": config.passes_asked}
    path = out / "model.pt"
    save_weights(path, network, config.architecture, config.arguments, metadata, half=task == "segmentation")
    return path


def _check_installed() -> None:
    from importlib.util import find_spec

    for module, name in (("lightning_fabric", "lightning-fabric"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise InputError(_NEEDS.format(name))
