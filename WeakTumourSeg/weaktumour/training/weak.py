"""The weak-supervision loop: labels on MRIs teach a UNet to see the liver, and where it can the tumours, on CTs.

    pretrain     a  UNet from the MRIs' labels
    sequential   [a]  then in each round:  pairs  ->  b  MSCGUNet adapts  ->  c  pseudo-labels  ->  d  UNet on the CTs
    unified      [a]  pairs  ->  c  pseudo-labels, for their confidence  ->  both networks in one training
    published    the published recipe, for comparison: `published`

Each round's registration is guided by the newest UNet's liver on the CT. A run is a folder:

    config.json cohort.json      start/ the models it began with      cases/ the cases on working grids
    round-N/   pairs/ registration/ pseudo_labels/ segmentation/ (or unified/)  metrics.csv  *.pt
    segmentation.pt registration.pt      the newest models, for `weaktumour models import`

Whatever is there is not made again: killed at any moment, a run goes on as if nothing had been.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from .. import __version__, models, pipeline
from ..cases import Case
from ..deformation import Affine
from ..errors import InputError, ModelError
from ..models import ModelEntry, save_weights
from ..networks import build
from ..progress import Monitor
from ..registration.preparation import DISTANCE_LIMIT_MM, signed_distance
from ..volumes import Grid, Volume, write_volume
from . import loop, published
from .cohort import Member, case_paths, labels_of, single_images
from .config import Optimisation, RegistrationConfig, SegmentationConfig, read_config, write_config, write_text
from .prepared import (
    Pair,
    Prepared,
    not_shown,
    prepare_member,
    read_arrays,
    read_pair,
    read_prepared,
    write_arrays,
    write_pair,
)
from .pseudo_labels import make_pseudo_labels
from .weak_config import MODES, Stage, WeakConfig
from .weak_tasks import (
    Both,
    CaseData,
    Cases,
    CasesOnDisk,
    CTSegmentation,
    MRSegmentation,
    PairMaker,
    PairRegistration,
    Unified,
    dice,
    segmented,
)

_OWN_DATA = "not stated: trained on a cohort of your own, which decides"
# A liver keeps its volume, whatever the breath. Registration holds it against a small misfit; one that is farther off,
# up to what cannot be the same liver, it would follow.
_MISFIT, _OTHER = 1.15, 2.0
_CUT = 0.01  # share of a liver's voxels on the image's outermost ones, up to which next to nothing of it is missing
_KEPT_IN_MEMORY, _HELD_OUT_IN_MEMORY = 64, 8  # cases; 10 MB each at 5 mm, 20 to 30 MB at 3 mm
_LEAST = 1e-6  # probability; of 0 and 1 no odds can be told


def run_weak(mode: str, config: WeakConfig, out: Path, members: Sequence[Member]) -> list[Path]:
    """Run, or go on with, a weak run; returns its model files, none on all processes but the first.

    Raises InputError: the folder holds another run, a case or a model cannot be used, or see `loop.train`.
    """
    if mode not in MODES:
        raise InputError(f'--mode: "{mode}" is not known; choose one of {", ".join(MODES)}.')
    _check_settings(mode, config, out)
    _check_members(mode, members)
    cohort = _check_folder(mode, config, out, members)
    processes = _Processes(config)
    if processes.first:
        _tell_left_out(config, members)
    processes.once(lambda: _note(config, cohort, out))
    run = _Run(mode, config, out, members, processes)
    steps = {"pretrain": run.pretrain, "sequential": run.sequential, "unified": run.unified, "published": run.published}
    return steps[mode]()


def _check_settings(mode: str, config: WeakConfig, out: Path) -> None:
    """The registration's settings, as `weaktumour register` would say it; the models; batches.

    Before anything is written: a folder whose run never began would refuse the corrected command.
    """
    arguments = pipeline.RegisterArguments("", "", "", preset=config.labelling.preset, stages=config.labelling.stages)
    pipeline._check_settings(arguments)
    stages = {
        "pretrain": ("pretrain",),
        "sequential": ("adapt", "learn"),
        "unified": ("unified",),
        "published": ("published_unet", "published_joint"),
    }[mode]
    if mode != "published" and config.start_segmentation is None:
        stages = ("pretrain", *stages)
    for stage in stages:
        loop.check_batch(getattr(config, stage), config.computing, stage)
    if mode == "published":
        _built("unet", _published_arguments(config), config.published_unet.seed)
        return
    first_unet(config, _start_of(out, "segmentation", config.start_segmentation))
    if mode != "pretrain":
        first_mscgunet(config, _start_of(out, "registration", config.start_registration))


def _start_of(out: Path, task: str, name: str | None) -> ModelEntry | None:
    """The run's own copy where there is one, or the model that it would copy. Raises ModelError."""
    copy = out / "start" / f"{task}.pt"
    if name is None or not copy.exists():
        return None if name is None else starting_entry(name, task)
    return models.entry_of(copy)


def _check_members(mode: str, members: Sequence[Member]) -> None:
    mixed = [member.name for member in members if member.mixed]
    if mixed and mode in ("sequential", "unified"):
        raise InputError(
            f"Cohort: case {mixed[0]}: its MRI and CT are of different people, so that labels carried over mean "
            f"nothing; take it out, or use a --mode other than {mode}."
        )


def _tell_left_out(config: WeakConfig, members: Sequence[Member]) -> None:
    if config.cohort.folder is None:
        return
    singles = single_images(config.cohort.folder)
    if singles:
        print(f"Left out, since only pairs of MRI and CT are learnt from: {', '.join(singles)}.", flush=True)
    if config.cohort.splits is not None:
        others = len(case_paths(config.cohort.folder)) - len(singles) - len(members)
        if others:
            print(f"{others} cases of the cohort are in no part of fold {config.cohort.fold}: not used.", flush=True)


def _check_folder(mode: str, config: WeakConfig, out: Path, members: Sequence[Member]) -> dict[str, Any]:
    """What the run is, for cohort.json, where the folder is new or holds the same run.

    Every process finds out by itself, before it waits for others.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be made ({error.strerror}); choose another folder.") from error
    cohort = {
        "mode": mode,
        "cases": {m.name: "held out" if m.held_out else "corrected" if m.corrected else "learnt" for m in members},
    }
    files = {member.name: _content_of(member) for member in members}
    if (out / "cohort.json").exists():  # written last
        former = json.loads((out / "cohort.json").read_text(encoding="utf-8"))
        known = former.pop("files", {})
        # A case that cannot be read is to be taken out, and then the same command goes on.
        for name in set(former["cases"]) - set(cohort["cases"]):
            if not any(path.exists() for path in _read_paths(out, name)):
                del former["cases"][name]
        if former != cohort or _what_matters(read_config(out / "config.json", WeakConfig)) != _what_matters(config):
            raise InputError(
                f"Training: {out} holds a run with other settings or another cohort (see its config.json and "
                "cohort.json); choose another --out folder."
            )
        for name, content in files.items():
            # What no one has read yet may still be mended.
            read = any(path.exists() for path in _read_paths(out, name))
            if read and known.get(name, content) != content:
                raise InputError(
                    f"Cohort: case {name}: its files have changed since {out} was begun; put the former ones back, or "
                    "choose another --out folder."
                )
    return {**cohort, "files": files}


def _content_of(member: Member) -> str:
    """Checksum of the images and labels of a case."""
    digest = hashlib.sha256()
    for name in ("mr", "ct", "mr_labels", "ct_labels"):
        path = member.folder / f"{name}.nii.gz"
        digest.update(f"{name} {path.is_file()} ".encode())
        if path.is_file():
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()


def _read_paths(out: Path, name: str) -> tuple[Path, Path]:
    """The case as the run keeps it, for networks on working grids and for the published ones."""
    return out / "cases" / f"{name}.npz", out / "cases" / f"{name}_stretched.npz"


def _note(config: WeakConfig, cohort: dict[str, Any], out: Path) -> None:
    write_config(out / "config.json", config)
    write_text(out / "cohort.json", json.dumps(cohort, indent=2) + "\n")


def _what_matters(config: WeakConfig) -> dict[str, Any]:
    settings = asdict(config)
    return {name: value for name, value in settings.items() if name not in ("computing", "reporting", "cohort")}


# -- processes ------------------------------------------------------------------------------------------------------
class _Processes:
    """Those that share a run; each makes its part of the cases, and a mistake of one stops all."""

    def __init__(self, config: WeakConfig) -> None:
        if config.computing.threads:
            torch.set_num_threads(config.computing.threads)
        fabric = loop.launched(config.computing)
        self.rank, self.count, self.device = fabric.global_rank, fabric.world_size, fabric.device
        self.wait: Callable[[], None] = fabric.barrier

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, what: str, items: Sequence[Member], do: Callable[[Member], bool]) -> None:
        """do(item) for every item, once over all processes; True where there was something to do."""
        told = None
        try:
            for number, item in enumerate(items):
                if number % self.count == self.rank and do(item):
                    print(f"{what}: {item.name} ({number + 1} of {len(items)})", flush=True)
        except InputError as error:
            told = str(error)
        everyone: list[str | None] = [told]
        if self.count > 1:
            everyone = [None] * self.count
            torch.distributed.all_gather_object(everyone, told)
        for message in everyone:
            if message:
                raise InputError(message)

    def once(self, do: Callable[[], None]) -> None:
        """do() on the first process, while the others wait."""
        if self.first:
            do()
        self.wait()


# -- networks -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """A network with what a model file says of it. input: see `models.ModelEntry`."""

    task: str
    architecture: str
    arguments: dict[str, Any]
    input: dict[str, Any]
    network: nn.Module
    start: dict[str, Any] | None  # what it began with, to be named in its file

    @property
    def spacing_mm(self) -> float:
        return float(self.input["spacing_mm"])


def starting_entry(name: str, task: str) -> ModelEntry:
    """An installed model, or a weights file of `train`. Raises ModelError."""
    entry = models.entry_of(name) if name.endswith(".pt") else models.find(name, task)
    if entry.task != task or not entry.input.get("spacing_mm"):
        raise ModelError(f"Model {name}: it is no {task} model that training can start from; choose another.")
    return entry


def first_unet(config: WeakConfig, entry: ModelEntry | None) -> Model:
    """entry: where it starts, None for random weights. Raises InputError where the settings ask for another network.

    A network that has all of the start's weights and more (attention gates, further heads) takes them over.
    """
    known = (
        {} if entry is None else {k: v for k, v in entry.arguments.items() if k not in ("in_channels", "out_channels")}
    )
    architecture = config.architecture or ("unet" if entry is None else entry.architecture)
    network = config.network or known or SegmentationConfig().network
    if architecture == "attention_unet":
        network = {k: v for k, v in network.items() if k not in ("attention", "deep_supervision")}
    if {"in_channels", "out_channels"} & set(network):
        raise InputError("Configuration: network has a fixed number of channels in and out; leave them away.")
    arguments = {"in_channels": 1, "out_channels": 3, **network}
    spacing = config.spacing_mm or (SegmentationConfig().spacing_mm if entry is None else entry.input["spacing_mm"])
    made = _built(architecture, arguments, config.pretrain.seed)
    _take_over(made, entry)
    return Model(
        "segmentation", architecture, arguments, {"spacing_mm": spacing, "normalisation": "weaktumour-1"}, made,
        _named(entry),
    )  # fmt: skip


def first_mscgunet(config: WeakConfig, entry: ModelEntry | None) -> Model:
    """As `first_unet`."""
    if entry is None:
        arguments = config.registration_network or RegistrationConfig().network
        about = {
            "spacing_mm": config.registration_spacing_mm,
            "normalisation": "weaktumour-1",
            "shape": list(config.registration_shape),
            "passes": RegistrationConfig().passes,
        }
    else:
        if entry.arguments.get("published"):
            raise InputError(f"Configuration: {entry.id} is a published network; choose another start_registration.")
        arguments, about = config.registration_network or entry.arguments, entry.input
    network = _built("mscgunet", arguments, config.adapt.seed)
    _take_over(network, entry)
    return Model("registration", "mscgunet", arguments, about, network, _named(entry))


def _published_arguments(config: WeakConfig) -> dict[str, Any]:
    """Of the published recipe's UNet."""
    return {"in_channels": 1, "out_channels": len(published.STRUCTURES), **config.published.network}


def _output(model: Model, mode: str) -> dict[str, Any]:
    """What the network gives, for the weights' metadata."""
    if model.task == "registration":
        return {"field": "velocity"}
    return (
        {"structures": published.STRUCTURES} if mode == "published" else {"classes": ["background", "liver", "tumour"]}
    )


def _built(architecture: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    try:
        return build(architecture, arguments)
    except ModelError as error:
        reason = (str(error.__cause__) or type(error.__cause__).__name__).splitlines()[0]
        raise InputError(
            f"Configuration: network {arguments} does not fit {architecture} ({reason}); correct it."
        ) from error


def _take_over(network: nn.Module, entry: ModelEntry | None) -> None:
    if entry is None:
        return
    own, given = network.state_dict(), models.load(entry).state_dict()
    if any(name not in own or own[name].shape != value.shape for name, value in given.items()):
        raise InputError(
            f"Configuration: the model {entry.id} is another network than the settings ask for; leave architecture and "
            "network out, or start from null."
        )
    network.load_state_dict({**own, **given})


def _named(entry: ModelEntry | None) -> dict[str, Any] | None:
    return None if entry is None else {"id": entry.id, "licence": entry.licence, **entry.training}


# -- a run ----------------------------------------------------------------------------------------------------------
class _Run:
    def __init__(
        self, mode: str, config: WeakConfig, out: Path, members: Sequence[Member], processes: _Processes
    ) -> None:
        self.mode, self.config, self.out, self.processes = mode, config, out, processes
        self.members = list(members)
        self.learnt = [member for member in members if not member.held_out]

    # -- the modes ----------------------------------------------------------------------------------------------
    def pretrain(self) -> list[Path]:
        unet = self._first_unet()
        self._prepare(unet.spacing_mm, self.config.registration_spacing_mm)
        self._pretrained(unet)
        return self._final({"segmentation": self.out / "round-0" / "segmentation.pt"})

    def sequential(self) -> list[Path]:
        unet, mscgunet = self._beginning()
        for number in range(1, self.config.rounds + 1):
            folder = self.out / f"round-{number}"
            self._find_pairs(folder, self.out / f"round-{number - 1}" / "segmentation.pt")
            mscgunet = self._adapted(folder, number, mscgunet)
            self._label(folder, folder / "registration.pt")
            unet = self._learnt_on_ct(folder, number, unet)
            self.processes.once(lambda folder=folder, unet=unet: self._measure(folder, unet))
        return self._final({name: folder / f"{name}.pt" for name in ("segmentation", "registration")})

    def unified(self) -> list[Path]:
        unet, mscgunet = self._beginning()
        folder = self.out / "round-1"
        self._find_pairs(folder, self.out / "round-0" / "segmentation.pt")
        self._label(folder, self.out / "round-0" / "registration.pt")
        c = self.config
        stage = self._stage("unified", c.unified, 1, {"unet": unet.arguments, "mscgunet": mscgunet.arguments},
                            segmenting=c.segmenting, registering=c.registering, labelling=c.labelling)  # fmt: skip
        task = Unified(stage, c.segmenting, self._maker(mscgunet), self._cases(folder, labels=True),
                       Both(unet.network, mscgunet.network), unet.spacing_mm, _passes(mscgunet))  # fmt: skip
        both = self._train(task, stage, folder / "unified")
        unet, mscgunet = replace(unet, network=both.segmentation), replace(mscgunet, network=both.registration)
        self._write_model(folder / "segmentation.pt", unet, 1, c.unified.steps)
        self._write_model(folder / "registration.pt", mscgunet, 1, c.unified.steps)
        self.processes.once(lambda: self._measure(folder, unet))
        return self._final({name: folder / f"{name}.pt" for name in ("segmentation", "registration")})

    def published(self) -> list[Path]:
        c, folder = self.config, self.out / "round-1"
        shape = tuple(c.published.shape)

        def stretched(member: Member) -> bool:
            path = self._stretched_path(member)
            if path.exists():
                return False
            case = published.stretched_case(member.name, member.read(), shape)
            write_arrays(path, {k: v for k, v in vars(case).items() if k != "name"})
            return True

        self.processes.share("read", self.members, stretched)
        cases = {
            member.name: published.Stretched(member.name, **read_arrays(self._stretched_path(member)))
            for member in self.members
        }
        learning = [cases[member.name] for member in self.learnt]
        held_out = [cases[member.name] for member in self.members if member.held_out]
        arguments = _published_arguments(c)
        unet = _built("unet", arguments, c.published_unet.seed)
        stage = self._stage("published_unet", c.published_unet, 1, arguments, published=c.published)
        task = published.PublishedUNet(stage, c.published.loss, learning, held_out, unet)
        unet = self._train(task, stage, folder / "unet")
        mscgunet = _built("mscgunet", published.REGISTRATION_ARGUMENTS, c.published_joint.seed)
        stage = self._stage("published_joint", c.published_joint, 1, arguments, published=c.published)
        joint = published.Joint(unet, mscgunet)
        task = published.PublishedJoint(stage, c.published.loss, learning, held_out, joint)
        joint = self._train(task, stage, folder / "joint")
        about = {"spacing_mm": None, "shape": list(shape), "normalisation": published.NORMALISATION}
        for name, made in (("segmentation", joint.segmentation), ("registration", joint.registration)):
            known = arguments if name == "segmentation" else published.REGISTRATION_ARGUMENTS
            model = Model(name, "unet" if name == "segmentation" else "mscgunet", known, about, made, None)
            self._write_model(folder / f"{name}.pt", model, 1, c.published_joint.steps)
        return self._final({name: folder / f"{name}.pt" for name in ("segmentation", "registration")})

    def _beginning(self) -> tuple[Model, Model]:
        """round-0: both networks as they start; a UNet without a start learns from the MRIs' labels first."""
        unet, mscgunet = self._first_unet(), self._first_mscgunet()
        self._prepare(unet.spacing_mm, mscgunet.spacing_mm)
        folder = self.out / "round-0"
        if self.config.start_segmentation is None:
            unet = self._pretrained(unet)
        else:
            self._write_model(folder / "segmentation.pt", unet, 0, 0)
        self._write_model(folder / "registration.pt", mscgunet, 0, 0)
        return unet, mscgunet

    # -- what the modes are made of -----------------------------------------------------------------------------
    def _first_unet(self) -> Model:
        return first_unet(self.config, self._start("segmentation", self.config.start_segmentation))

    def _first_mscgunet(self) -> Model:
        return first_mscgunet(self.config, self._start("registration", self.config.start_registration))

    def _start(self, task: str, name: str | None) -> ModelEntry | None:
        """A start model, from the copy that the run keeps: the original may be removed or replaced meanwhile."""
        if name is None:
            return None
        copy = self.out / "start" / f"{task}.pt"
        entry = None if copy.exists() else starting_entry(name, task)
        if entry is not None and self.processes.first:
            copy.parent.mkdir(exist_ok=True)
            partial = copy.with_name(copy.name + ".partial")
            partial.write_bytes(entry.path.read_bytes())
            write_text(copy.with_suffix(".json"), json.dumps({"id": entry.id}) + "\n")
            partial.replace(copy)
        self.processes.wait()
        known = json.loads(copy.with_suffix(".json").read_text(encoding="utf-8"))
        return replace(models.entry_of(copy), id=known["id"])

    def _prepare(self, spacing_mm: float, registration_mm: float) -> None:
        def prepare(member: Member) -> bool:
            path = self._case_path(member)
            if path.exists():
                return False
            prepare_member(member, path, spacing_mm, registration_mm)
            return True

        self.processes.share("read", self.members, prepare)

    def _pretrained(self, unet: Model) -> Model:
        c, folder = self.config, self.out / "round-0"
        stage = self._stage("pretrain", c.pretrain, 0, unet.arguments, segmenting=c.segmenting, start=unet.start)
        task = MRSegmentation(stage, c.segmenting, self._cases(None), unet.network, unet.spacing_mm)
        unet = replace(unet, network=self._train(task, stage, folder / "pretrain"))
        self._write_model(folder / "segmentation.pt", unet, 0, c.pretrain.steps)
        return unet

    def _find_pairs(self, folder: Path, unet: Path) -> None:
        """The newest UNet's liver on each CT, and the alignment that it leads to."""
        entry = models.entry_of(unet)
        only = tuple(stage for stage in _stages_of(self.config.labelling.stages) if stage == "alignment")

        def pair(member: Member) -> bool:
            path = folder / "pairs" / f"{member.name}.npz"
            if path.exists():
                return False
            case, prepared = member.read(), self._prepared(member)
            try:
                write_pair(path, find_pair(case, prepared, entry, only, self.processes.device))
            except InputError as error:
                raise InputError(f"Cohort: case {member.name}: {error}") from error
            return True

        self.processes.share("pair", self.members, pair)

    def _adapted(self, folder: Path, number: int, mscgunet: Model) -> Model:
        c = self.config
        stage = self._stage("adapt", c.adapt, number, mscgunet.arguments, registering=c.registering,
                            stages=c.labelling.stages)  # fmt: skip
        task = PairRegistration(stage, self._maker(mscgunet), self._cases(folder), mscgunet.network,
                                _passes(mscgunet))  # fmt: skip
        mscgunet = replace(mscgunet, network=self._train(task, stage, folder / "registration"))
        self._write_model(folder / "registration.pt", mscgunet, number, c.adapt.steps)
        return mscgunet

    def _label(self, folder: Path, mscgunet: Path) -> None:
        """Pseudo-labels for the cases that are learnt from; a corrected case has its own."""
        networks = pipeline.Networks(models.entry_of(mscgunet), None)

        def label(member: Member) -> bool:
            if (folder / "pseudo_labels" / f"{member.name}.json").exists():
                return False
            prepared, pair = self._prepared(member), read_pair(folder / "pairs" / f"{member.name}.npz")
            try:
                self._label_case(folder / "pseudo_labels", member, prepared, pair, networks)
            except InputError as error:
                raise InputError(f"Cohort: case {member.name}: {error}") from error
            return True

        self.processes.share("pseudo-labels", self.learnt, label)

    def _label_case(
        self, folder: Path, member: Member, prepared: Prepared, pair: Pair, networks: pipeline.Networks
    ) -> None:
        grid = prepared.world_grid
        if member.corrected:
            # A tumour that the image does not show is neither to be learnt nor to be called healthy liver.
            confidence = (~not_shown(member.read(), grid)).astype(np.float32)
            write_labels(folder, member.name, prepared.truth, (2,), confidence, grid, "corrected")
            return
        frame, settings = prepared.frame, self.config.labelling
        # The alignment is known.
        stages = [stage for stage in _stages_of(settings.stages) if stage != "alignment"]
        made = make_pseudo_labels(
            member.read(),
            networks,
            replace(settings, stages=",".join(stages)),
            grid=grid,
            initial=Affine(frame @ pair.alignment @ np.linalg.inv(frame)),
            ct_liver=None if pair.ct_liver is None else Volume(pair.ct_liver, grid),
            seed=zlib.crc32(member.name.encode()),
            device=self.processes.device,
        )
        write_labels(folder, member.name, made.labels.volume.array, made.shown, made.confidence, grid, "registration")

    def _learnt_on_ct(self, folder: Path, number: int, unet: Model) -> Model:
        c = self.config
        stage = self._stage("learn", c.learn, number, unet.arguments, segmenting=c.segmenting, labelling=c.labelling)
        cases = self._cases(folder, labels=True)
        task = CTSegmentation(stage, c.segmenting, cases, unet.network, unet.spacing_mm)
        unet = replace(unet, network=self._train(task, stage, folder / "segmentation"))
        self._write_model(folder / "segmentation.pt", unet, number, c.learn.steps)
        return unet

    def _measure(self, folder: Path, unet: Model) -> None:
        """metrics.csv of a round: each case's pseudo-labels and the UNet's answer, against the truth where it is known.

        Measured only; nothing is chosen by it.
        """
        network, rows = unet.network.to("cpu").eval(), []
        for case in chain(self._cases(folder, labels=True).learning, self._cases(folder).held_out):
            part = "held out" if case.classes is None else "corrected" if case.corrected else "learnt"
            found = segmented(network, case.prepared.ct, torch.device("cpu"))
            figures = {"UNet liver voxels": int((found > 0).sum()), "UNet tumour voxels": int((found == 2).sum())}
            truth = case.prepared.truth
            if truth is not None:
                figures["UNet liver Dice"] = dice(found > 0, truth > 0)
            if case.classes is not None:
                figures["mean confidence in the liver"] = float(case.confidence[case.classes > 0].mean())
                if truth is not None:
                    figures["pseudo-label liver Dice"] = dice(case.classes > 0, truth > 0)
            rows += [[case.name, part, name, f"{value:.6g}"] for name, value in figures.items()]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["case", "part", "name", "value"], *rows])
        write_text(folder / "metrics.csv", text.getvalue())

    # -- small things -------------------------------------------------------------------------------------------
    def _case_path(self, member: Member) -> Path:
        return _read_paths(self.out, member.name)[0]

    def _stretched_path(self, member: Member) -> Path:
        return _read_paths(self.out, member.name)[1]

    def _prepared(self, member: Member) -> Prepared:
        return read_prepared(self._case_path(member))

    def _cases(self, folder: Path | None, *, labels: bool = False) -> Cases:
        """folder: of the round, whose pairs (and pseudo-labels) belong to them."""

        def weight(member: Member) -> float:
            return self.config.segmenting.corrected_weight if labels and member.corrected else 1.0

        def data(member: Member) -> CaseData:
            pair = classes = confidence = None
            if folder is not None:
                pair = read_pair(folder / "pairs" / f"{member.name}.npz")
            if labels and not member.held_out:
                classes, confidence = read_labels_of(folder / "pseudo_labels", member.name)
            corrected = labels and member.corrected
            return CaseData(member.name, self._prepared(member), pair, classes, confidence, corrected, weight(member))

        held_out = [member for member in self.members if member.held_out]
        for member in self.members:  # a file that cannot be read: every process finds that out before it waits
            data(member)
        return Cases(
            CasesOnDisk(self.learnt, data, _KEPT_IN_MEMORY),
            CasesOnDisk(held_out, data, _HELD_OUT_IN_MEMORY),
            [weight(member) for member in self.learnt],
        )

    def _maker(self, mscgunet: Model) -> PairMaker:
        shape = mscgunet.input.get("shape") or self.config.registration_shape
        return PairMaker(self.config.registering, mscgunet.spacing_mm, shape)

    def _stage(
        self, name: str, optimisation: Optimisation, number: int, network: dict[str, Any], **settings: object
    ) -> Stage:
        """Each round draws other samples."""
        optimisation = replace(optimisation, seed=optimisation.seed + 1000 * number)
        cases = {m.name: m.corrected for m in self.learnt}
        return Stage.of(name, self.config, optimisation, network, **settings, cases=cases, round=number)

    def _train(self, task: loop.Task, stage: Stage, folder: Path) -> nn.Module:
        """The network with the averaged weights."""
        loop.train(task, stage, folder)
        self.processes.wait()  # for the first process, which writes them
        network = task.network()
        network.load_state_dict(torch.load(folder / "weights.pt", map_location="cpu", weights_only=True))
        return network.to("cpu").eval().requires_grad_(False)

    def _write_model(self, path: Path, model: Model, number: int, steps: int) -> None:
        """In the form that `weaktumour models import` takes; the same weights give the same file."""
        licence = _OWN_DATA if model.start is None else model.start["licence"]
        metadata = {
            "task": model.task,
            "input": model.input,
            "output": _output(model, self.mode),
            "licence": licence,
            "training": {
                "software_version": __version__,
                "mode": self.mode,
                "round": number,
                "steps": steps,
                "cases": len(self.learnt),
                "corrected": sum(member.corrected for member in self.learnt),
                "start": model.start,
            },
            "figures": {},
            "description": "",
        }

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            save_weights(path, model.network, model.architecture, model.arguments, metadata)

        self.processes.once(write)

    def _final(self, made: dict[str, Path]) -> list[Path]:
        """Copies of the newest models at the top of the folder."""

        def copy() -> None:
            for name, path in made.items():
                target = self.out / f"{name}.pt"
                partial = target.with_name(target.name + ".partial")
                partial.write_bytes(path.read_bytes())
                partial.replace(target)

        self.processes.once(copy)
        return [self.out / f"{name}.pt" for name in made] if self.processes.first else []


def _passes(mscgunet: Model) -> int:
    return int(mscgunet.input.get("passes", 1))


def _stages_of(text: str) -> list[str]:
    return [stage.strip() for stage in text.split(",") if stage.strip()]


def find_pair(case: Case, prepared: Prepared, unet: ModelEntry, stages: tuple[str, ...], device: torch.device) -> Pair:
    """The CT's liver by a UNet, and the alignment. Raises InputError.

    A UNet that has not yet learnt what a CT looks like can take anything for the liver: one with which nothing can be
    aligned is left out.
    """
    monitor = Monitor()
    nothing, preset = pipeline.Networks(None, None), pipeline.PRESETS["fast"]
    inputs = pipeline.Inputs(case.mr, case.ct, labels_of(case), None, Affine.identity())
    inputs = pipeline.find_livers(inputs, unet, device, monitor)
    if inputs.ct_liver is not None and _both_seen_whole(prepared, inputs.in_ct_frame().ct_liver):
        inputs = replace(inputs, ct_liver=with_volume_of(inputs.ct_liver, inputs.labels.whole_liver()))
    try:
        found = pipeline.register(inputs, nothing, stages, preset, device=device, monitor=monitor)
    except InputError:
        if inputs.ct_liver is None:
            raise
        inputs = replace(inputs, ct_liver=None)
        found = pipeline.register(inputs, nothing, stages, preset, device=device, monitor=monitor)
    liver = distance = None
    straight = inputs.in_ct_frame()
    if straight.ct_liver is not None:
        liver = straight.ct_liver.resample_to(prepared.ct_grid).array
        measured = prepared.fixed[1]
        distance = signed_distance(straight.ct_liver, prepared.fixed_grid, measured)
        if distance is not None:
            distance = np.where(measured > 0.5, distance, DISTANCE_LIMIT_MM).astype(np.float32)
    return Pair(found.alignment.transform.matrix, liver, distance)


def _both_seen_whole(prepared: Prepared, ct_liver: Volume) -> bool:
    """Whether each image has (nearly) all of the liver. ct_liver: in the CT's frame."""
    found = ct_liver.resample_to(prepared.ct_grid).array > 0.5
    for liver, measured in ((prepared.mr_target > 0, prepared.mr_measured), (found, prepared.ct_measured)):
        image = sitk.GetImageFromArray(measured.astype(np.uint8))
        inner = sitk.BinaryErode(image, [1] * 3, sitk.sitkBall, 0.0, 1.0, False)  # beyond the grid nothing is measured
        if (liver & (sitk.GetArrayFromImage(inner) == 0)).sum() > _CUT * liver.sum():
            return False
    return True


def with_volume_of(found: Volume, known: Volume) -> Volume:
    """A liver's probability whose surface, at 0.5, encloses the known liver's volume: its odds, times one factor.

    A UNet that has learnt from other images may draw a liver that is far too large or too small, and registration would
    stretch the labels to it. found: probability, float32; known: mask. Where the volumes differ little, or too much to
    be of one liver, found comes back as it is.
    """
    wanted = (known.array > 0.5).sum() * known.grid.voxel_volume_mm3 / found.grid.voxel_volume_mm3
    ratio = (found.array > 0.5).sum() / max(wanted, 1.0)
    if not _MISFIT < max(ratio, 1 / max(ratio, _LEAST)) < _OTHER:
        return found
    likely = found.array.clip(_LEAST, 1 - _LEAST).astype(np.float64)
    odds = likely / (1 - likely)
    number = min(round(wanted), odds.size)
    last = np.partition(odds.ravel(), -number)[-number]  # that still belongs to it
    first = odds[odds < last].max(initial=odds.min())
    odds /= np.sqrt(last * first)
    return Volume(np.where(found.array > 0, odds / (1 + odds), 0.0).astype(np.float32), found.grid)


# -- pseudo-labels as files -----------------------------------------------------------------------------------------
def write_labels(
    folder: Path, name: str, labels: np.ndarray, shown: tuple[int, ...], confidence: np.ndarray, grid: Grid, source: str
) -> None:
    """NAME.nii.gz, NAME_confidence.nii.gz (per cent) and, last, NAME.json; each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    percent = np.round(100 * confidence).astype(np.uint8)
    for part, array in (("", labels.astype(np.uint8)), ("_confidence", percent)):
        partial = folder / f"{name}{part}.partial.nii.gz"
        write_volume(Volume(array, grid), partial)
        partial.replace(folder / f"{name}{part}.nii.gz")
    content = {"source": source, "tumours_shown_by_the_ct": [int(value) for value in shown]}
    write_text(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")


def read_labels_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(z, y, x) classes uint8 and confidence float32 in [0, 1]. Raises InputError."""
    try:
        shown = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["tumours_shown_by_the_ct"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Training: {folder / name}.json cannot be read; delete it and start again.") from error
    labels, percent = (_array(folder / f"{name}{part}.nii.gz") for part in ("", "_confidence"))
    classes = (labels > 0).astype(np.uint8)
    classes[np.isin(labels, shown)] = 2
    return classes, percent.astype(np.float32) / 100


def _array(path: Path) -> np.ndarray:
    """As it was written: a confidence of 100 everywhere is no empty volume."""
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(f"Training: {path} cannot be read; delete {path.parent} and start again.") from error
