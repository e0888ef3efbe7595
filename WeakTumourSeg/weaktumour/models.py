"""Weights: which models there are, where they come from, and how they are read without trusting them.

Models stand in two folders of the same form: the shipped one, and the user's own for imported models
($WEAKTUMOUR_MODELS, otherwise a folder of the user's data). Each has a models.json:

    {"schema": 1,
     "defaults": {"registration": ID | null, "segmentation": ID | null},   the user's go before the shipped
     "models":   [{id, task, file, sha256, architecture, arguments, input, output, licence, training, figures,
                   description}, ...]}

A weights file is what torch.save makes of {"format": "weaktumour-1", "architecture", "arguments", "state_dict"} and
the entry's description (task, input, output, licence, training, figures, description), so that it can be imported
alone. It is read once, as bytes: their SHA-256 must be the manifest's, and they are unpickled with weights_only, which
runs no code. Whatever does not fit is refused with a `ModelError`.

This module is quick to import: torch and the networks come with the first function that needs them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import torch

SCHEMA = 1
FORMAT = "weaktumour-1"
TASKS = ("registration", "segmentation")
MANIFEST = "models.json"
USER_FOLDER_VARIABLE = "WEAKTUMOUR_MODELS"

# Lower case, since an id becomes a file name and some file systems do not tell cases apart.
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = ".partial-"

# What is known of a checkpoint in the published layout (S. Chatterjee et al., MICDIR, arXiv 2203.04317, and
# BudhaTronix/Weakly-Supervised-Tumour-Detection): it carries no description of its own.
_PUBLISHED = {
    "task": "registration",
    "input": {
        "spacing_mm": None,
        "normalisation": "as published: CT window level 50 width 350, min-max to [0,1]",
    },
    "output": {"displacement": "voxels of the input's grid, fixed -> moving"},
    "licence": "not stated by the file; ask its authors",
    "training": {"source": "imported from a checkpoint in the published 15-part layout"},
    "figures": {},
    "description": "MSCGUNet from a checkpoint in the published layout, with the published network's behaviour.",
}


@dataclass(frozen=True)
class ModelEntry:
    """One model of a manifest. `file` is a plain name in `folder`; `input` and `output` tell what the network takes
    (spacing_mm, normalisation, ...) and gives; `figures` are measured ones, `training` tells data, recipe and cost."""

    id: str
    task: str
    file: str
    sha256: str
    architecture: str
    arguments: dict[str, Any]
    input: dict[str, Any]
    output: dict[str, Any]
    licence: str
    training: dict[str, Any]
    figures: dict[str, Any]
    description: str
    folder: Path = field(default=Path(), repr=False)
    origin: str = "shipped"  # or "user"

    @property
    def path(self) -> Path:
        return self.folder / self.file

    def to_dict(self) -> dict[str, Any]:
        """The entry as it stands in models.json."""
        return {name: getattr(self, name) for name in _TYPES}


# The keys of an entry in their order. Those of _DESCRIPTION stand in the weights file as well.
_TYPES: dict[str, type] = {
    entry.name: dict if entry.type.startswith("dict") else str
    for entry in fields(ModelEntry)
    if entry.name not in ("folder", "origin")
}
_DESCRIPTION = ("task", "input", "output", "licence", "training", "figures", "description")


# -- the models there are ---------------------------------------------------------------------------------------------
def shipped_folder() -> Path:
    """The models that came with the engine: inside the package in a wheel, beside it in Slicer and in a checkout."""
    inside = Path(__file__).with_name("shipped_models")
    return inside if inside.is_dir() else Path(__file__).parents[1] / "Resources" / "Models"


def user_folder() -> Path:
    """The user's own models: $WEAKTUMOUR_MODELS, otherwise weaktumour/models in the platform's folder for data."""
    named = os.environ.get(USER_FOLDER_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise ModelError(
            f"There is no home folder to look for models in; set {USER_FOLDER_VARIABLE} to a folder."
        ) from error
    return Path(base) / "weaktumour" / "models"


def list_models(task: str | None = None) -> list[ModelEntry]:
    """Shipped models, then the user's, in the manifests' order; of one task or of both."""
    models = [*_shipped().models, *_users().models]
    return [entry for entry in models if task in (None, entry.task)]


def default_id(task: str) -> str | None:
    """The model used when none is named: the user's choice, else the shipped one; None where there is neither."""
    return _users().defaults[task] or _shipped().defaults[task]


def shipped_sha256(task: str) -> str | None:
    """Checksum of the shipped default's weights; None where there is none."""
    manifest = _shipped()
    return next((entry.sha256 for entry in manifest.models if entry.id == manifest.defaults[task]), None)


def find(model_id: str | None, task: str) -> ModelEntry:
    """The model of that id, or the default of the task. Raises ModelError: none such, or of another task."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    model_id = default_id(task) if model_id is None else model_id
    if model_id is None:
        raise ModelError(f"No {task} model is set as default; {_known(list_models(task), task)}.")
    entry = find_any(model_id, task)
    if entry.task != task:
        raise ModelError(f"Model {model_id!r} is for {entry.task}, not for {task}; {_known(list_models(task), task)}.")
    return entry


def find_any(model_id: str, task: str | None = None) -> ModelEntry:
    """The model of that id, whatever its task (`task` only chooses what the error lists). Raises ModelError."""
    models = list_models()
    found = [entry for entry in models if entry.id == model_id]
    if not found:
        known = [entry for entry in models if task in (None, entry.task)]
        raise ModelError(f"Model {model_id!r} is not known; {_known(known, task)}.")
    if len(found) > 1:  # a later version ships a model under an id that the user had taken
        raise ModelError(
            f"Model {model_id!r} is both shipped and imported by you; remove yours (weaktumour models remove "
            f"{model_id}) and import it again under another --id."
        )
    return found[0]


def _known(models: list[ModelEntry], task: str | None) -> str:
    kind = f"{task} models" if task else "models"
    if not models:
        return f"there are no {kind}, import one (weaktumour models import FILE)"
    return f"known {kind} are {', '.join(entry.id for entry in models)}"


# -- reading weights --------------------------------------------------------------------------------------------------
def load(entry: ModelEntry, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The network with its weights: float32, evaluation mode, no gradients, on `device`.

    Raises ModelError: the file is missing, damaged or holds code; its checksum or content is not the manifest's;
    its weights do not fit the architecture or are not finite.
    """
    source = _Source.of(entry)
    content = _read_bytes(entry.path, source)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise source.refused(f"the file {entry.file} is damaged or another one (its SHA-256 is not the manifest's)")
    checkpoint = _unpickled(content, source)
    own = _plain_json({name: checkpoint.get(name) for name in ("format", "architecture", "arguments")}, source)
    if own != {"format": FORMAT, "architecture": entry.architecture, "arguments": entry.arguments}:
        raise source.refused(f"the file {entry.file} describes another network than the manifest")
    return _network(entry.architecture, entry.arguments, checkpoint.get("state_dict"), source).to(device)


def entry_of(path: str | Path) -> ModelEntry:
    """A file of `save_weights` as a model that is in no list, called by the file's name. Raises ModelError."""
    path = Path(path)
    source = _Source(str(path), "use another file")
    content = _read_bytes(path, source)
    checkpoint = _unpickled(content, source)
    keys = ("architecture", "arguments", *_DESCRIPTION)
    if checkpoint.get("format") != FORMAT:
        raise source.refused("it is not a weights file of this program")
    described = _plain_json({name: checkpoint[name] for name in keys if name in checkpoint}, source)
    _check_types(described, keys, source)
    return ModelEntry(
        id=path.stem,
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        folder=path.parent,
        origin="user",
        **described,
    )


def verify(entry: ModelEntry) -> None:
    """Do everything that `load` does, for its refusals (ModelError)."""
    load(entry)


@dataclass(frozen=True)
class _Source:
    """What a refusal names, and the way out."""

    name: str
    remedy: str

    @staticmethod
    def of(entry: ModelEntry) -> _Source:
        again = "install WeakTumourSeg again"
        if entry.origin == "user":
            again = f"import it again (weaktumour models import FILE --id {entry.id} --overwrite)"
        return _Source(f"Model {entry.id!r}", again)

    def refused(self, reason: str) -> ModelError:
        return ModelError(f"{self.name}: {reason}; {self.remedy}.")


def _read_bytes(path: Path, source: _Source) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise source.refused(f"{path} cannot be read ({error.strerror or error})") from error


def _unpickled(content: bytes, source: _Source) -> dict[str, Any]:
    """The dictionary in a file that torch.save wrote, plain types and tensors only; no code in it is run."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; the refusal below says enough
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises is any of a dozen types
        # torch tells what it met in words only; an unknown operand is no pickle at all.
        words = re.search(r"unsupported (?!operand)|unrecognized", str(error), re.IGNORECASE)
        if isinstance(error, pickle.UnpicklingError) and words:
            raise source.refused("it holds code or objects besides weights, which are never run") from error
        raise source.refused("it is truncated, damaged or not a weights file") from error
    if not isinstance(checkpoint, dict):
        raise source.refused(f"it is not a weights file (it holds a {type(checkpoint).__name__})")
    return checkpoint


def _network(architecture: str, arguments: Mapping[str, Any], weights: object, source: _Source) -> torch.nn.Module:
    """The architecture with exactly these weights in it. Raises ModelError where they do not fit."""
    import torch

    from . import networks

    try:
        # The initial weights are thrown away: drawing them must not change what a seeded run draws next.
        with torch.random.fork_rng(devices=[]):
            network = networks.build(architecture, dict(arguments))
    except ModelError as error:
        raise ModelError(f"{source.name}: {str(error).removeprefix('Model: ')}") from error
    except Exception as error:
        raise source.refused(f"{architecture} cannot be built with its arguments ({_first_line(error)})") from error
    network.load_state_dict(_fitting(weights, network.state_dict(), architecture, source), strict=True)
    return network.eval().requires_grad_(False)


def _fitting(
    weights: object, expected: Mapping[str, torch.Tensor], architecture: str, source: _Source
) -> dict[str, torch.Tensor]:
    """The weights in the network's number types, stored half precision among them; all finite, names and shapes right.

    Raises ModelError.
    """
    import torch

    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        for name, tensor in weights.items()
    ):
        raise source.refused("its state_dict is not a dictionary of names and dense tensors")
    problems = [
        *(f"{name} is missing" for name in expected if name not in weights),
        *(f"{name} is not part of it" for name in weights if name not in expected),
        *(
            f"{name} is {_form(weights[name])}, not {_form(tensor)}"
            for name, tensor in expected.items()
            if name in weights and _form(weights[name]) != _form(tensor)
        ),
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise source.refused(f"its weights do not fit the architecture {architecture} ({problems[0]}{more})")
    fitting = {name: weights[name].detach().to(tensor.dtype) for name, tensor in expected.items()}
    for name, tensor in fitting.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise source.refused(f"its weights are not all finite numbers ({name})")
    return fitting


def _form(tensor: torch.Tensor) -> str:
    """Shape and kind of number, not its precision."""
    kind = "" if tensor.is_floating_point() else " complex" if tensor.is_complex() else " integer"
    return "x".join(map(str, tensor.shape)) + kind if tensor.ndim else f"a single{kind} number"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


# -- writing weights --------------------------------------------------------------------------------------------------
def save_weights(
    path: str | Path,
    network: torch.nn.Module,
    architecture: str,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, Any],
    half: bool = False,
) -> str:
    """Write a weights file, whole or not at all, and return its SHA-256; the same weights give the same file.

    metadata: task, input, output, licence, training, figures, description (see `ModelEntry`), in JSON's types.
    half: store floating-point numbers in half precision, at half the size; `load` makes them float32 again.
    Raises ModelError: metadata or arguments are not such, or a number is not finite (in half precision: above 65504).
    """
    content = _encoded(network.state_dict(), architecture, arguments, metadata, half, _Source(str(path), "mend it"))
    path = Path(path)
    try:
        _write_whole(path, content)
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror or error}); choose another folder.") from error
    return hashlib.sha256(content).hexdigest()


def _encoded(
    weights: Mapping[str, torch.Tensor],
    architecture: str,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, Any],
    half: bool,
    source: _Source,
) -> bytes:
    import torch

    described = _plain_json({"architecture": architecture, "arguments": dict(arguments), **metadata}, source)
    _check_types(described, ("architecture", "arguments", *_DESCRIPTION), source)
    stored = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if half else torch.float32)
            if not bool(torch.isfinite(tensor).all()):
                raise source.refused(f"its weights are not all finite numbers ({name})")
        # A view would take all of its storage into the file.
        stored[name] = tensor.clone(memory_format=torch.contiguous_format)
    stream = io.BytesIO()  # into a file, torch.save would write the file's name as well
    torch.save({"format": FORMAT, **described, "state_dict": stored}, stream)
    return stream.getvalue()


# -- the user's models ------------------------------------------------------------------------------------------------
def import_model(path: str | Path, model_id: str | None = None, overwrite: bool = False) -> ModelEntry:
    """Copy a weights file into the user's folder and list it there; returns its entry.

    path: a file of `save_weights`, or a checkpoint in the published 15-part layout, which is converted.
    model_id: default: the file's name. overwrite: replace an imported model of that id.
    A release does the same with $WEAKTUMOUR_MODELS naming the shipped folder.
    Raises ModelError: the file cannot be used (see `load`), or the id is taken or not a proper one. Then, as after an
    interruption at any point, the folder lists what it listed before.
    """
    path = Path(path)
    folder, origin = user_folder(), "shipped" if _user_folder_is_shipped() else "user"
    source = _Source(str(path), "use another file")
    content = _read_bytes(path, source)
    checkpoint = _unpickled(content, source)
    if checkpoint.get("format") != FORMAT:
        content = _converted(checkpoint, source)
        checkpoint = _unpickled(content, source)
    keys = ("architecture", "arguments", *_DESCRIPTION)
    unknown = sorted(map(str, set(checkpoint) - {"format", "state_dict", *keys}))
    if unknown:
        raise source.refused(f"it has an unknown key {unknown[0]!r}")
    described = _plain_json({name: checkpoint[name] for name in keys if name in checkpoint}, source)
    _check_types(described, keys, source)
    sha256 = hashlib.sha256(content).hexdigest()
    model_id = _checked_id(model_id, path)
    # Another content, another name: a replaced model and its manifest always belong together.
    file = f"{model_id}-{sha256[:8]}.pt"
    entry = ModelEntry(id=model_id, file=file, sha256=sha256, folder=folder, origin=origin, **described)
    _network(entry.architecture, entry.arguments, checkpoint.get("state_dict"), source)

    if origin == "user" and any(other.id == model_id for other in _shipped().models):
        raise ModelError(f"Model id {model_id!r} is that of a shipped model; choose another with --id.")
    with _locked(folder):
        manifest = _read_manifest(folder, origin)
        former = [other for other in manifest.models if other.id == model_id]
        if former and not overwrite:
            raise ModelError(f"Model {model_id!r} is there already; choose another --id or add --overwrite.")
        _write_whole(entry.path, content)
        others = [other for other in manifest.models if other.id != model_id]
        defaults = {
            task: None if default == model_id and task != entry.task else default
            for task, default in manifest.defaults.items()
        }
        _write_manifest(folder, _Manifest(defaults, [*others, entry]))
        _delete_files({other.path for other in former} - {other.path for other in (*others, entry)})
    return entry


def remove(model_id: str) -> ModelEntry:
    """Take a model of the user's out of the list and delete its file. Raises ModelError: shipped, or not known."""
    folder = user_folder()
    if all(entry.id != model_id for entry in _users().models):
        find_any(model_id)
        raise ModelError(f"Model {model_id!r} came with WeakTumourSeg and stays; only imported models can be removed.")
    with _locked(folder):
        manifest = _read_manifest(folder, "user")
        removed = [entry for entry in manifest.models if entry.id == model_id]
        if not removed:
            raise ModelError(f"Model {model_id!r} was removed by another process meanwhile; nothing is left to do.")
        others = [entry for entry in manifest.models if entry.id != model_id]
        defaults = {task: None if default == model_id else default for task, default in manifest.defaults.items()}
        _write_manifest(folder, _Manifest(defaults, others))
        _delete_files({entry.path for entry in removed} - {entry.path for entry in others})
    return removed[0]


def _converted(checkpoint: dict[str, Any], source: _Source) -> bytes:
    """A foreign checkpoint as a weights file of our own."""
    from .networks import mscgunet

    if not mscgunet.is_published_layout(checkpoint):
        raise source.refused("it is neither a weights file of this program nor a published MSCGUNet checkpoint")
    try:
        network = mscgunet.load_published(checkpoint)
    except Exception as error:
        raise source.refused(f"the published MSCGUNet does not take its weights ({_first_line(error)})") from error
    return _encoded(network.state_dict(), "mscgunet", {"published": True}, _PUBLISHED, False, source)


def _checked_id(model_id: str | None, path: Path) -> str:
    if model_id is None:
        model_id = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")
    if not _ID.fullmatch(model_id):
        raise ModelError(
            f"Model id {model_id!r} is not a proper one; choose up to 64 of a-z, 0-9, '.', '_' and '-' with --id."
        )
    return model_id


def _user_folder_is_shipped() -> bool:
    return os.path.realpath(user_folder()) == os.path.realpath(shipped_folder())


# -- manifests --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Manifest:
    defaults: dict[str, str | None]
    models: list[ModelEntry]


def _shipped() -> _Manifest:
    return _read_manifest(shipped_folder(), "shipped")


def _users() -> _Manifest:
    if _user_folder_is_shipped():
        return _Manifest(dict.fromkeys(TASKS), [])
    return _read_manifest(user_folder(), "user")


def _read_manifest(folder: Path, origin: str) -> _Manifest:
    """Raises ModelError where models.json is not exactly what this version writes. The user's may be missing."""
    path = folder / MANIFEST
    remedy = "correct it, or move the file away" if origin == "user" else "install WeakTumourSeg again"
    source = _Source(str(path), remedy)
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        if origin == "user":
            return _Manifest(dict.fromkeys(TASKS), [])
        raise source.refused("the list of shipped models is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise source.refused(f"the list of models cannot be read ({reason})") from error
    if not isinstance(content, dict):
        raise source.refused("the list of models is not a JSON object")
    if content.get("schema") != SCHEMA or isinstance(content["schema"], bool):
        raise ModelError(
            f"{path}: schema {content.get('schema')!r} is not known, this version reads schema {SCHEMA}; "
            "install the version that wrote it, or move the file away."
        )
    if set(content) != {"schema", "defaults", "models"} or not isinstance(content["models"], list):
        raise source.refused("it must have schema, defaults and a list of models, and nothing else")
    defaults = content["defaults"]
    if (
        not isinstance(defaults, dict)
        or set(defaults) != set(TASKS)
        or not all(value is None or isinstance(value, str) for value in defaults.values())
    ):
        raise source.refused(f"defaults must name a model or null for {' and '.join(TASKS)}")
    models = [_read_entry(item, folder, origin, source) for item in content["models"]]
    ids = [entry.id for entry in models]
    twice = sorted({model_id for model_id in ids if ids.count(model_id) > 1})
    if twice:
        raise source.refused(f"model {twice[0]!r} is listed twice")
    return _Manifest(defaults, models)


def _read_entry(item: object, folder: Path, origin: str, source: _Source) -> ModelEntry:
    if not isinstance(item, dict):
        raise source.refused("an entry of models is not a JSON object")
    source = _Source(f"{source.name}, model {item.get('id')!r}", source.remedy)
    unknown = sorted(set(item) - set(_TYPES))
    if unknown:
        raise source.refused(f"unknown key {unknown[0]!r}")
    _check_types(item, tuple(_TYPES), source)
    for name, pattern in (("id", _ID), ("file", _FILE), ("sha256", _SHA256)):
        if not pattern.fullmatch(item[name]):
            raise source.refused(f"{name} {item[name]!r} is not a proper one")
    return ModelEntry(**item, folder=folder, origin=origin)


def _check_types(content: Mapping[str, Any], keys: tuple[str, ...], source: _Source) -> None:
    """Raise ModelError where a key of an entry is missing or of another type."""
    for name in keys:
        wanted = _TYPES[name]
        if not isinstance(content.get(name), wanted):
            words = {dict: "an object", str: "a text"}
            raise source.refused(f"{name} must be {words[wanted]}, not {content.get(name)!r}")
        if wanted is str and name != "description" and not content[name].isprintable():
            raise source.refused(f"{name} must be one line of printable text")
    if "task" in keys and content["task"] not in TASKS:
        raise source.refused(f"task must be one of {', '.join(TASKS)}, not {content['task']!r}")


def _plain_json(content: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """The same in JSON's own types (tuples as lists), as it will be read again. Raises ModelError."""
    try:
        return json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise source.refused(f"its description cannot be written as JSON ({_first_line(error)})") from error


def _write_manifest(folder: Path, manifest: _Manifest) -> None:
    models = [entry.to_dict() for entry in manifest.models]
    content = {"schema": SCHEMA, "defaults": manifest.defaults, "models": models}
    _write_whole(folder / MANIFEST, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("ascii"))


# -- files ------------------------------------------------------------------------------------------------------------
def _write_whole(path: Path, content: bytes) -> None:
    """Write a file such that it holds, whatever happens, its former content or all of the new one. Raises OSError."""
    partial = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _delete_files(paths: set[Path]) -> None:
    """Files that no manifest names any more; one that is just being read (Windows) stays and does no harm."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone: its manifest is read, changed and written as one step.

    Raises ModelError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "ab") as stream:
            _wait_for_lock(stream)
            for left in folder.glob(f".*{_TEMPORARY}*"):  # of a process that was killed: nobody else is writing now
                left.unlink(missing_ok=True)
            yield
    except OSError as error:
        raise ModelError(
            f"The folder of models {folder} cannot be written ({error.strerror or error}); free space, give yourself "
            f"the right to write there, or set {USER_FOLDER_VARIABLE} to another folder."
        ) from error


def _wait_for_lock(stream: IO[bytes]) -> None:
    """Wait for the file's lock. The system releases it when the file is closed, also by the process's end."""
    if sys.platform == "win32":
        import msvcrt

        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX)
