"""Settings of weak supervision: what each stage learns, from which cases, by which losses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InputError
from .config import Computing, Optimisation, Reporting, at_least, one_of, positive

MODES = ("pretrain", "sequential", "unified", "published")
OVERLAP_LOSSES = ("dice", "dice_ce", "focal_tversky")
UNETS = ("unet", "attention_unet")


@dataclass(frozen=True)
class CohortData:
    """folder: of case folders. splits, fold: which of them are held out, see `cohort.read_cohort`."""

    folder: str | None = None
    splits: str | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        at_least(self, fold=0)

    def learnt(self) -> dict[str, Any]:
        """Nothing of it: which cases there are, and what each is used for, stands in `Stage.settings`."""
        return {}


@dataclass(frozen=True)
class Segmenting:
    """How a UNet learns.

    loss: dice, dice_ce (with cross-entropy) or focal_tversky (Abraham and Khan, ISBI 2019; alpha weighs what is missed,
    beta what is claimed). tumour_weight: of the tumour class in the cross-entropy. voxels: of a patch, about.
    consistency: weight of the mean teacher's opinion (Tarvainen and Valpola, NeurIPS 2017), 0 for no teacher; it rises
    over the first ramp_up of the steps. corrected_weight: how often a corrected case is drawn, against 1.
    """

    loss: str = "dice_ce"
    alpha: float = 0.7
    beta: float = 0.3
    gamma: float = 4 / 3
    tumour_weight: float = 2.0
    voxels: int = 512_000
    consistency: float = 5.0
    ramp_up: float = 0.3
    corrected_weight: float = 4.0

    def __post_init__(self) -> None:
        one_of(self, "loss", OVERLAP_LOSSES)
        at_least(self, alpha=0, beta=0, tumour_weight=0, voxels=512, consistency=0, ramp_up=0)
        positive(self, "gamma", "corrected_weight")


@dataclass(frozen=True)
class Registering:
    """How MSCGUNet adapts to pairs without labels on the CT.

    similarity: weight of the squared difference of MIND-SSC, outside lesions. guide: of 1 - Dice between the MRI's
    liver, moved, and the liver that the newest UNet finds in the CT. smoothness, inverse, graph: see
    `RegistrationConfig`; inverse holds for `sequential` alone, since in `unified` each step asks both networks once.
    jitter_mm: the alignment is put off by up to so much for each sample. unknown_liver: how often the network is not
    shown the CT's liver.
    """

    similarity: float = 5.0
    guide: float = 0.3
    smoothness: float = 1.0
    inverse: float = 0.1
    graph: float = 0.01
    jitter_mm: float = 4.0
    unknown_liver: float = 0.2

    def __post_init__(self) -> None:
        at_least(self, similarity=0, guide=0, smoothness=0, inverse=0, graph=0, jitter_mm=0, unknown_liver=0)


@dataclass(frozen=True)
class Labelling:
    """How pseudo-labels are made: see `pseudo_labels.make_pseudo_labels`.

    preset, stages: of the registration, as `weaktumour register` has them. members: of `uncertainty.ensemble`, whose
    agreement is the confidence; at most all of them.
    """

    preset: str = "fast"
    stages: str = "alignment,mscgunet,refinement"
    members: int = 6

    def __post_init__(self) -> None:
        at_least(self, members=1)
        from ..uncertainty.ensemble import VARIANTS  # here: it brings torch, which `weaktumour --help` does without

        if self.members > len(VARIANTS):
            raise InputError(f"Configuration: members is {self.members}; give at most {len(VARIANTS)}.")


@dataclass(frozen=True)
class Published:
    """The published recipe: every volume stretched to `shape` (z, y, x) whatever its spacing."""

    shape: tuple[int, int, int] = (32, 128, 128)
    network: dict = field(default_factory=lambda: {"widths": [32, 64, 128, 256, 512], "norm": "batch"})
    loss: str = "dice"

    def __post_init__(self) -> None:
        one_of(self, "loss", OVERLAP_LOSSES)
        if min(self.shape) < 16:
            raise InputError(f"Configuration: shape is {list(self.shape)}; give at least 16 voxels a side.")


@dataclass(frozen=True)
class WeakConfig:
    """One run of `weaktumour train weak`.

    start_segmentation, start_registration: an installed model, or a weights file that `train` wrote; null for random
    weights, and then the UNet learns from the MRIs' labels first. architecture, network, spacing_mm: of the UNet that
    is to be; where it starts from a model, null takes over the model's. rounds: of `sequential`.
    pretrain, adapt, learn, unified: the optimisation of each stage (their own `start` stays empty);
    published_unet, published_joint: of the two stages of the published recipe.
    """

    cohort: CohortData = field(default_factory=CohortData)
    computing: Computing = field(default_factory=Computing)
    reporting: Reporting = field(default_factory=Reporting)
    start_segmentation: str | None = "unet"
    start_registration: str | None = "mscgunet"
    architecture: str | None = None
    network: dict | None = None
    spacing_mm: float | None = None
    registration_network: dict | None = None
    registration_spacing_mm: float = 4.0
    registration_shape: tuple[int, int, int] = (64, 64, 64)
    rounds: int = 2
    pretrain: Optimisation = field(default_factory=lambda: Optimisation(steps=1000, average=0.995))
    adapt: Optimisation = field(
        default_factory=lambda: Optimisation(steps=200, learning_rate=1e-4, warm_up=20, average=0.98)
    )
    learn: Optimisation = field(
        default_factory=lambda: Optimisation(steps=600, learning_rate=3e-4, warm_up=50, average=0.99)
    )
    unified: Optimisation = field(
        default_factory=lambda: Optimisation(steps=600, learning_rate=2e-4, warm_up=50, average=0.99)
    )
    published_unet: Optimisation = field(
        default_factory=lambda: Optimisation(steps=1000, learning_rate=1e-3, warm_up=0, average=0.99)
    )
    published_joint: Optimisation = field(
        default_factory=lambda: Optimisation(steps=1000, learning_rate=1e-4, warm_up=0, average=0.99)
    )
    segmenting: Segmenting = field(default_factory=Segmenting)
    registering: Registering = field(default_factory=Registering)
    labelling: Labelling = field(default_factory=Labelling)
    published: Published = field(default_factory=Published)

    def __post_init__(self) -> None:
        at_least(self, rounds=1)
        positive(self, "registration_spacing_mm")
        if self.spacing_mm is not None:
            positive(self, "spacing_mm")
        if self.architecture is not None:
            one_of(self, "architecture", UNETS)
        if min(self.registration_shape) < 8:
            raise InputError(
                f"Configuration: registration_shape is {list(self.registration_shape)}; give at least 8 voxels a side."
            )
        for name in ("pretrain", "adapt", "learn", "unified", "published_unet", "published_joint"):
            if getattr(self, name).start is not None:
                raise InputError(
                    f"Configuration: {name} has a start of its own; name the models under start_segmentation and "
                    "start_registration."
                )


@dataclass(frozen=True)
class Stage:
    """What `loop.train` is given for one stage of a run. settings: all that decides what this stage learns."""

    name: str = ""
    data: CohortData = field(default_factory=CohortData)
    optimisation: Optimisation = field(default_factory=Optimisation)
    computing: Computing = field(default_factory=Computing)
    reporting: Reporting = field(default_factory=Reporting)
    network: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    @staticmethod
    def of(
        name: str, config: WeakConfig, optimisation: Optimisation, network: dict[str, Any], **settings: object
    ) -> Stage:
        """settings: in JSON's types, or dataclasses of such."""
        plain = json.loads(json.dumps({key: _plain(value) for key, value in settings.items()}))
        network = json.loads(json.dumps(network))
        return Stage(name, config.cohort, optimisation, config.computing, config.reporting, network, plain)

    @property
    def architecture(self) -> str:
        return self.name

    @property
    def arguments(self) -> dict[str, Any]:
        return self.network


def _plain(value: object) -> object:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
