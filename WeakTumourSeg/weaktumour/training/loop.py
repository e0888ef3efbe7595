"""One training loop for every network: any device and any number of processes, stopped and resumed at will.

Lightning Fabric sets up devices, precision and data-parallel training (also under torchrun). A sample, and what the
network draws while it learns from it, depend on the seed and the sample's number alone, so that a resumed run goes on
exactly where its checkpoint was, and two processes that share a batch compute what one would.
"""

from __future__ import annotations

import csv
import inspect
import math
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..devices import cpu_computes_in_bfloat16
from ..errors import InputError
from ..models import find_any, load
from .config import Computing, Optimisation, Reporting, read_config, write_config

_LOST_IN_A_ROW = 10
_NOISE_SEED = 1 << 40  # far from the seeds of samples

Losses = dict[str, torch.Tensor]


class Task(Protocol):
    """What is learnt. Samples are whatever `losses` understands; "loss" among the losses is minimised."""

    def network(self) -> nn.Module: ...
    def sample(self, number: int, device: torch.device) -> Any: ...
    def losses(self, network: nn.Module, sample: Any) -> Losses: ...
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]: ...
    def picture(self, network: nn.Module, device: torch.device, path: Path) -> None: ...


class Taught(Task, Protocol):
    """A task that learns from the averaged weights as well: they are its mean teacher (Tarvainen, Valpola 2017)."""

    def follow(self, average: dict[str, torch.Tensor]) -> None:
        """Take over the averaged weights, before the first step and after each."""


class Source(Protocol):
    """Where samples come from."""

    def learnt(self) -> dict[str, Any]: ...


class Config(Protocol):
    data: Source
    optimisation: Optimisation
    computing: Computing
    reporting: Reporting

    @property
    def architecture(self) -> str: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


def train(task: Task, config: Config, folder: str | Path, *, until: int | None = None) -> Path | None:
    """Train, or go on where the folder's checkpoint is; returns the file of the averaged weights (a state dict), None
    on all processes but the first.

    The folder gets config.json, checkpoint.pt, metrics.csv, tensorboard/ and pictures/. until: stop after this step
    although the schedule is longer. Raises InputError: see `prepare_folder`; there is no such device; the loss is no
    longer finite.
    """
    folder = Path(folder)
    prepare_folder(folder, config)
    if config.computing.threads:
        torch.set_num_threads(config.computing.threads)
    fabric = launched(config.computing)
    if fabric.is_global_zero:
        write_config(folder / "config.json", config)
        if (
            config.computing.precision == "bf16-mixed"
            and fabric.device.type == "cpu"
            and not cpu_computes_in_bfloat16()
        ):
            print(
                "This CPU does not compute in bfloat16 but imitates it, many times more slowly: stop, set the "
                "precision under computing to 32-true, and start again; what has been learnt is kept.",
                flush=True,
            )
    return _Run(fabric, task, config, folder).go(until)


def prepare_folder(folder: Path, config: Config) -> None:
    """Make the folder of a run. Raises InputError: it cannot be made, it holds a run with other settings, or the batch
    cannot be shared by the processes. Every process finds that out by itself, before it waits for others.
    """
    check_batch(config.optimisation, config.computing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made ({error.strerror}); choose another folder.") from error
    kept = folder / "config.json"
    if kept.exists() and _learnt(read_config(kept, type(config))) != _learnt(config):
        raise InputError(
            f"Training: {folder} holds a run with other settings (see its config.json); choose another --out folder."
        )


def check_batch(optimisation: Optimisation, computing: Computing, section: str = "optimisation") -> None:
    """Raise InputError where the processes cannot share a batch. section: of the configuration, where it stands."""
    devices, machines = _devices_and_machines(computing)
    batch, processes = optimisation.batch, devices * machines
    if batch % processes:
        raise InputError(
            f"Configuration: a batch of {batch} cannot be shared by {processes} processes; give a multiple, such as "
            f'{{"{section}": {{"batch": {processes}}}}}.'
        )


def _learnt(config: Config) -> dict[str, Any]:
    """What may not change between the sessions of a run; how and where it is computed, and where files lie, may."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("computing", "reporting")}
    return settings | {"data": config.data.learnt()}


def _devices_and_machines(computing: Computing) -> tuple[int, int]:
    """As configured, or as torchrun has started us."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return computing.devices, computing.nodes
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return devices, int(os.environ["WORLD_SIZE"]) // devices


def launched(computing: Computing) -> Any:
    """Lightning Fabric, all processes running."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    devices, machines = _devices_and_machines(computing)
    accelerator = computing.accelerator
    if accelerator == "auto":  # as `devices.choose_device`: Apple's GPUs only where they are asked for
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    strategy: Any = "auto"
    if devices * machines > 1:
        # Processes differ in how often they ask the network about a sample: none may wait for another's statistics in
        # between. The option's name depends on the version of torch.
        known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        strategy = DDPStrategy(**{sync: False})
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=machines,
            precision=computing.precision,
            strategy=strategy,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"Configuration: {devices} x {computing.accelerator} cannot be had here ({reason}); change computing."
        ) from error
    fabric.launch()
    return fabric


class _Run:
    def __init__(self, fabric: Any, task: Task, config: Config, folder: Path) -> None:
        self.fabric, self.task, self.config, self.folder = fabric, task, config, folder
        o = config.optimisation
        torch.manual_seed(o.seed)
        network = task.network()
        if o.start and not (folder / "checkpoint.pt").exists():
            begin_with(network, o.start, config.architecture, config.arguments)
        optimiser = torch.optim.AdamW(network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        self.network, self.optimiser = fabric.setup(network, optimiser)
        self.average = {name: value.detach().clone().float() for name, value in self._weights().items()}
        self.step, self.seconds = 0, 0.0
        self.gathered: dict[str, list[float]] = {}  # losses since the last row of the metrics
        self.lost = 0  # steps in a row whose gradient was not finite
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._resume()
        self._tell_average()
        self.rows = _Rows(folder, self.step) if fabric.is_global_zero else None

    def _weights(self) -> dict[str, torch.Tensor]:
        """The bare network's, whatever wraps it."""
        module = self.network.module
        return getattr(module, "module", module).state_dict()

    # -- one step -----------------------------------------------------------------------------------------------
    def go(self, until: int | None) -> Path | None:
        o, r = self.config.optimisation, self.config.reporting
        last = o.steps if until is None else min(o.steps, until)
        started = saved = time.monotonic()
        before, first = self.seconds, self.step
        self.network.train()
        while self.step < last:
            for name, value in self._train_step().items():
                self.gathered.setdefault(name, []).append(value)
            now = time.monotonic()
            self.seconds = before + now - started
            if self.step % r.rows_every == 0 or self.step == last:
                means = {name: sum(values) / len(values) for name, values in self.gathered.items()}
                self.gathered = {}
                if self.rows:
                    pace = (now - started) / (self.step - first)
                    self.rows.add("train", self.step, self.seconds, means)
                    _say(self.step, last, means, pace * (last - self.step))
            if self.step % r.validate_every == 0 or self.step == last:
                self._validate()
            if self.fabric.is_global_zero and (now - saved > r.checkpoint_s or self.step == last):
                self._save()
                saved = time.monotonic()
        self.fabric.barrier()
        if not self.fabric.is_global_zero:
            return None
        path = self.folder / "weights.pt"
        _write(path, self.average)
        return path

    def _train_step(self) -> dict[str, float]:
        o = self.config.optimisation
        world, rank = self.fabric.world_size, self.fabric.global_rank
        own = range(self.step * o.batch + rank, (self.step + 1) * o.batch, world)
        for group in self.optimiser.param_groups:
            group["lr"] = o.learning_rate * schedule(self.step, o.steps, o.warm_up)
        found: list[dict[str, torch.Tensor]] = []
        for number in own:
            sample = self.task.sample(number, self.fabric.device)
            more = number + world < (self.step + 1) * o.batch
            torch.manual_seed(_NOISE_SEED + o.seed * 1_000_003 + number)  # of what the network itself draws
            with self.fabric.no_backward_sync(self.network, enabled=more) if world > 1 else nullcontext():
                losses = self.task.losses(self.network, sample)
                self.fabric.backward(losses["loss"] / len(own))
            found.append({name: value.detach() for name, value in losses.items()})
        size = self.fabric.clip_gradients(
            self.network, self.optimiser, max_norm=o.gradient_clip, error_if_nonfinite=False
        )
        means = self._means([{name: float(value) for name, value in losses.items()} for losses in found])
        self.step += 1
        if not (math.isfinite(means["loss"]) and math.isfinite(float(size))):
            return self._lost_step()
        self.lost = 0
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        move_average(self.average, self._weights(), self.step, o.average)
        self._tell_average()
        return means

    def _tell_average(self) -> None:
        follow = getattr(self.task, "follow", None)  # see Taught
        if follow is not None:
            follow(self.average)

    def _lost_step(self) -> dict[str, float]:
        """Nothing is learnt from a sample whose gradient is not finite, as happens in low precision once in a while."""
        if self.config.computing.precision == "16-mixed":
            self.optimiser.step()  # its scaler leaves the weights alone and learns from it
        self.optimiser.zero_grad(set_to_none=True)
        self.lost += 1
        if self.lost > _LOST_IN_A_ROW:
            raise InputError(
                f"Training: the loss of step {self.step} and those before it are not finite numbers; what was learnt "
                "before the last checkpoint is kept, go on from it with precision 32-true, or anew with a lower "
                "learning_rate."
            )
        return {}

    def _means(self, own: list[dict[str, float]]) -> dict[str, float]:
        """Each loss over the samples of the batch that have it, of all processes."""
        everyone: list[Any] = [own]
        if self.fabric.world_size > 1:
            everyone = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(everyone, own)
        values: dict[str, list[float]] = {}
        for losses in (losses for part in everyone for losses in part):
            for name, value in losses.items():
                values.setdefault(name, []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}

    # -- looking and keeping ------------------------------------------------------------------------------------
    def _validate(self) -> None:
        """With the averaged weights, on the first process alone."""
        if self.fabric.is_global_zero:
            network = self.task.network().to(self.fabric.device)
            network.load_state_dict(self.average)
            network.eval()
            with torch.no_grad(), self.fabric.autocast():
                means = self.task.validate(network, self.fabric.device)
                pictures = self.folder / "pictures"
                pictures.mkdir(exist_ok=True)
                self.task.picture(network, self.fabric.device, pictures / f"{self.step:06d}.png")
            self.rows.add("validation", self.step, self.seconds, means)
            print("validation  " + "  ".join(f"{name} {value:.3f}" for name, value in means.items()), flush=True)
        self.fabric.barrier()

    def _save(self) -> None:
        _write(
            self.checkpoint,
            {
                "step": self.step,
                "seconds": self.seconds,
                "network": self._weights(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "gathered": self.gathered,
            },
        )

    def _resume(self) -> None:
        try:
            kept = torch.load(self.checkpoint, map_location=self.fabric.device, weights_only=True)
            module = self.network.module
            getattr(module, "module", module).load_state_dict(kept["network"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.step, self.seconds, self.average = kept["step"], kept["seconds"], kept["average"]
            self.gathered = kept.get("gathered", {})
            self.fabric.strategy.precision.load_state_dict(kept.get("precision", {}))
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"Training: {self.checkpoint} cannot be read or is of another network; choose another --out folder."
            ) from error
        if self.fabric.is_global_zero:
            print(f"resumed at step {self.step}", flush=True)


def move_average(average: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], step: int, decay: float) -> None:
    """One step of the exponential moving average, in place: average <- d average + (1 - d) weights.

    d is `decay`, and (1 + step) / (10 + step) while that is less: early weights are soon forgotten. What is no real
    number (a count of batches) is copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in weights.items():
        if value.is_floating_point():
            average[name].lerp_(value.detach().float(), 1 - decay)
        else:
            average[name].copy_(value)


def begin_with(network: nn.Module, model_id: str, architecture: str, arguments: dict[str, Any]) -> None:
    """An installed model's weights into a network. Raises InputError: it is another network; ModelError: unknown."""
    entry = find_any(model_id)
    if (entry.architecture, entry.arguments) != (architecture, arguments):
        raise InputError(
            f"Configuration: start names the model {model_id}, which is another network; give its architecture and "
            "the same network settings, or leave start out."
        )
    network.load_state_dict(load(entry).state_dict())


def read_checkpoint_state(folder: Path) -> dict[str, float]:
    """step and seconds of a run's checkpoint."""
    kept = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    return {"step": kept["step"], "seconds": kept["seconds"]}


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(done, 1.0)))))


class _Rows:
    """metrics.csv (step, seconds, part, name, value) and TensorBoard, where it is installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.csv"
        kept = [["step", "seconds", "part", "name", "value"]]
        if self.path.exists():
            # A killed run may have written rows beyond its last checkpoint, and the last one in part; they come again.
            with self.path.open(newline="", encoding="utf-8") as file:
                kept += [row for row in csv.reader(file) if len(row) == 5 and row[0].isdigit() and int(row[0]) <= step]
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(kept)
        partial.replace(self.path)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except ImportError:
            self.board = None

    def add(self, part: str, step: int, seconds: float, values: dict[str, float]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([step, f"{seconds:.0f}", part, name, f"{value:.6g}"])
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{part}/{name}", value, step)
            self.board.flush()


def read_rows(path: Path, part: str, name: str) -> Iterator[tuple[int, float]]:
    """(step, value) of one curve of metrics.csv."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["part"] == part and row["name"] == name:
                yield int(row["step"]), float(row["value"])


def _write(path: Path, content: object) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(content, partial)
    partial.replace(path)


def _say(step: int, last: int, means: dict[str, float], remaining_s: float) -> None:
    hours, minutes = divmod(round(remaining_s / 60), 60)
    values = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
    print(f"step {step}/{last}  {values}  {hours} h {minutes:02d} min left", flush=True)
