"""Settings of a training run: typed, saved with the run, read from JSON."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import InputError

T = TypeVar("T")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
LOSSES = ("labels", "published")


@dataclass(frozen=True)
class Data:
    """What to learn from. splits: a splits.json, whose `train` part is used and whose `development` part validates.

    label_maps: folder of label maps, None for phantoms alone. phantoms: how many of the split's seeds.
    cache: where tissue maps are kept between runs; None for a folder in the run's own.
    """

    splits: str | None = None
    label_maps: str | None = None
    phantoms: int = 48
    validation_phantoms: int = 6
    cache: str | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        at_least(self, phantoms=0, validation_phantoms=0, processes=1)

    def learnt(self) -> dict[str, Any]:
        """What may not change between the sessions of a run; where files lie and how many processes read them, may."""
        given = {name: bool(getattr(self, name)) for name in ("splits", "label_maps")}
        return asdict(replace(self, cache=None, processes=1)) | given


@dataclass(frozen=True)
class Optimisation:
    """steps: of the optimiser. batch: samples a step, over all processes. average: decay of the kept weights (EMA).

    start: id of an installed model of the same architecture to begin with; without it, random weights.
    """

    steps: int = 5000
    batch: int = 1
    learning_rate: float = 1e-3
    warm_up: int = 100
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    average: float = 0.999
    seed: int = 0
    start: str | None = None

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, warm_up=0, weight_decay=0, average=0, seed=0)
        positive(self, "learning_rate", "gradient_clip")
        if self.average > 1:
            raise InputError(f"Configuration: average is {self.average}; give a number from 0 to 1.")


@dataclass(frozen=True)
class Computing:
    """As Lightning Fabric names them; but auto is CUDA or the CPU. precision: bf16-mixed is several times faster on
    recent CPUs and GPUs.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "32-true"
    threads: int | None = None

    def __post_init__(self) -> None:
        at_least(self, devices=1, nodes=1, threads=1)
        one_of(self, "precision", PRECISIONS)


@dataclass(frozen=True)
class Reporting:
    """Seconds between checkpoints, and steps between validations with a picture and between rows of the metrics."""

    checkpoint_s: float = 300.0
    validate_every: int = 500
    rows_every: int = 20
    validation_cases: int = 6

    def __post_init__(self) -> None:
        at_least(self, checkpoint_s=0, validate_every=1, rows_every=1, validation_cases=1)


@dataclass(frozen=True)
class SegmentationConfig:
    """voxels: of a training patch, about; its sides vary. See `networks.unet.UNet` for `network`."""

    data: Data = field(default_factory=Data)
    optimisation: Optimisation = field(default_factory=Optimisation)
    computing: Computing = field(default_factory=Computing)
    reporting: Reporting = field(default_factory=Reporting)
    network: dict = field(default_factory=lambda: {"widths": [16, 16, 32, 64, 128], "norm": "instance"})
    spacing_mm: float = 3.0
    voxels: int = 512_000
    tumour_weight: float = 3.0

    def __post_init__(self) -> None:
        at_least(self, voxels=4096, tumour_weight=0)
        positive(self, "spacing_mm")
        if {"in_channels", "out_channels"} & set(self.network):
            raise InputError("Configuration: network has a fixed number of channels in and out; leave them away.")

    @property
    def architecture(self) -> str:
        return "unet"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `networks.build`."""
        return {"in_channels": 1, "out_channels": 3, **self.network}


@dataclass(frozen=True)
class RegistrationConfig:
    """loss: "labels" (Dice over labels under random contrast, both directions) or "published" (global NCC).

    displacement_weight: of the known displacement inside the liver (mm, Huber), 0 to learn from labels alone.
    breathing_mm, deformation_mm: largest of the random motion. unknown_liver: how often the CT's liver channel is
    empty. passes: how often the pipeline asks the network, each time about what the last answer left (once, where the
    loss or the network is the published one). See `networks.mscgunet.MSCGUNet` for `network`.
    """

    data: Data = field(default_factory=Data)
    optimisation: Optimisation = field(default_factory=Optimisation)
    computing: Computing = field(default_factory=Computing)
    reporting: Reporting = field(default_factory=Reporting)
    network: dict = field(
        default_factory=lambda: {
            "extra_channels": 4,
            "widths": [16, 32, 48, 64, 64],
            "latent_channels": 16,
            "hidden_channels": 32,
            "inputs_to_head": True,
        }
    )
    spacing_mm: float = 4.0
    shape: tuple[int, int, int] = (64, 64, 64)
    loss: str = "labels"
    label_weight: float = 0.3
    displacement_weight: float = 0.2
    smoothness_weight: float = 1.0
    inverse_weight: float = 0.1
    graph_weight: float = 0.01
    breathing_mm: float = 20.0
    deformation_mm: float = 6.0
    unknown_liver: float = 0.2
    passes: int = 2

    def __post_init__(self) -> None:
        at_least(self, label_weight=0, displacement_weight=0, smoothness_weight=0, inverse_weight=0, graph_weight=0,
                  breathing_mm=0, deformation_mm=0, unknown_liver=0, passes=1)  # fmt: skip
        positive(self, "spacing_mm")
        one_of(self, "loss", LOSSES)
        if min(self.shape) < 8:
            raise InputError(f"Configuration: shape is {list(self.shape)}; give at least 8 voxels a side.")
        if self.network.get("extra_channels", 0) not in (0, 1, 4):
            raise InputError("Configuration: network has extra_channels 0, 1 (the liver) or 4 (and a direction) only.")

    @property
    def passes_asked(self) -> int:
        return 1 if self.loss == "published" or self.network.get("published") else self.passes

    @property
    def architecture(self) -> str:
        return "mscgunet"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `networks.build`."""
        return dict(self.network)


def read_config(path: str | Path, kind: type[T]) -> T:
    """Read a JSON file that holds any part of a configuration. Raises InputError naming what does not fit."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Configuration: {path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise InputError(f"Configuration: {path} is not valid JSON ({error}); correct it.") from error
    return parse_config(content, kind, str(path))


def parse_config(content: object, kind: type[T], where: str = "configuration", default: T | None = None) -> T:
    """A dictionary as a configuration; what is left out keeps its default (that of `default`). Raises InputError."""
    if not isinstance(content, dict):
        raise InputError(f"Configuration: {where} has to be an object with named settings.")
    hints, values = get_type_hints(kind), {}
    known = {f.name for f in fields(kind)}
    for name, value in content.items():
        if name not in known:
            raise InputError(f'Configuration: {where} has no setting "{name}"; choose from {", ".join(sorted(known))}.')
        setting = next(f for f in fields(kind) if f.name == name)
        example = setting.default if setting.default is not MISSING else setting.default_factory()
        if is_dataclass(hints[name]):
            values[name] = parse_config(value, hints[name], f"{where}: {name}", example)
        else:
            values[name] = _checked(value, hints[name], example, f"{where}: {name}")
    return kind(**values) if default is None else replace(default, **values)


def _checked(value: object, hint: object, example: object, where: str) -> object:
    """The value, if it is of the setting's type; a whole number passes for a real one."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if isinstance(value, (list, tuple)) and len(value) == len(kinds):
            return tuple(_checked(v, k, e, where) for v, k, e in zip(value, kinds, example, strict=True))
    else:
        kinds = get_args(hint) or (hint,)  # of "int | None" both
        if float in kinds and type(value) is int:
            value = float(value)
        if type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value)):
            return value
    wanted = f"something like {example!r}" if example is not None else " or ".join(k.__name__ for k in kinds)
    raise InputError(f"Configuration: {where} is {value!r}; give {wanted}.")


def at_least(config: object, **lowest: float) -> None:
    for name, least in lowest.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise InputError(f"Configuration: {name} is {value}; give at least {least}.")


def positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise InputError(f"Configuration: {name} is {getattr(config, name)}; give a number above 0.")


def one_of(config: object, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise InputError(f'Configuration: {name} "{getattr(config, name)}" is not one of {", ".join(choices)}.')


def write_config(path: Path, config: object) -> None:
    write_text(path, json.dumps(asdict(config), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The whole file or none: a run may be killed at any moment."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
