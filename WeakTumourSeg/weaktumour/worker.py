"""The engine's door for other programs: one request in, JSON lines out.

`python -m weaktumour.worker REQUEST.json` carries out one operation and prints one ASCII JSON object a line:
progress, log, result or error. A result that a later stage will add to comes first with "complete": false; it stays
when that stage is stopped. Exit 0 done, 2 input error, 3 cancelled, 1 anything else.

Two processes share the work. The one that was started imports nothing heavy: it checks the request, watches the
cancel file, the parent and the signals, and passes the events on. The operation runs in a child, which can be ended
at any moment, also inside a long call of SimpleITK or torch, and whose partial folder is then removed. The child
dies with the first process. The command line supervises the same child and shows its events as a progress bar.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import Cancelled, InputError, WeakTumourError
from .progress import Event, Monitor
from .workspace import check_out, check_out_file, open_workspace, process_is_alive, remove_stale

if TYPE_CHECKING:
    from .cases import Case

SCHEMA = 1
EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_CANCELLED = 0, 1, 2, 3

CHILD_COMMAND = (sys.executable, "-m", "weaktumour.worker", "--child")
_POLL_S = 0.1

Listener = Callable[[Event], None]


# -- what can be asked for --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Option:
    """One argument of an operation; the command line and requests know it by the same name.

    type: str, int or bool. default: for help texts, None is "not given"; the engine's own default counts.
    """

    name: str
    type: type
    help: str
    required: bool = False
    default: object = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    is_path: bool = False
    positional: bool = False


@dataclass(frozen=True)
class Operation:
    """perform(arguments, out, monitor) does the work and returns the finished folder, or file with `writes_file`."""

    help: str
    options: tuple[Option, ...]
    perform: Callable[[dict[str, Any], Path, Monitor], Path]
    writes_file: bool = False


def _register(arguments: dict[str, Any], out: Path, monitor: Monitor) -> Path:
    from .pipeline import RegisterArguments, register_and_propagate

    return Path(register_and_propagate(RegisterArguments(out=str(out), **arguments), monitor))


def _simulate(arguments: dict[str, Any], out: Path, monitor: Monitor) -> Path:
    from .cases import write_case

    given = [name for name in ("from_ct", "label_map") if arguments.get(name)]
    if len(given) > 1:
        raise InputError("simulate: --from-ct and --label-map exclude each other; give one of them.")
    if bool(arguments.get("from_ct")) != bool(arguments.get("labels")):
        raise InputError("simulate: --from-ct and --labels belong together; give the CT and its label map (1 = liver).")
    if arguments.get("from_ct") and arguments.get("tumours_in_ct") not in (None, "invisible"):
        raise InputError("simulate: a real CT stays as it is; leave --tumours-in-ct out.")
    monitor.plan({"simulate": 10.0, "write": 3.0})
    with open_workspace(out, bool(arguments.get("overwrite"))) as folder:
        with monitor.stage("simulate"):
            case = _simulated(arguments, monitor)
        with monitor.stage("write"):
            write_case(folder, case)
    return out


def _simulated(arguments: dict[str, Any], monitor: Monitor) -> Case:
    from .simulation import simulate_from_ct, simulate_patient
    from .simulation.tissue_maps import read_label_map
    from .volumes import check_hounsfield, read_volume

    seed, look = arguments.get("seed", 0), arguments.get("tumours_in_ct")
    if arguments.get("from_ct"):
        ct = read_volume(arguments["from_ct"], "CT")
        check_hounsfield(ct)
        return simulate_from_ct(ct, read_volume(arguments["labels"], "CT labels"), seed, monitor=monitor)
    if arguments.get("label_map"):
        liver = read_label_map(Path(arguments["label_map"]))
        return simulate_patient(seed, label_map=liver, tumours_in_ct=look, monitor=monitor)
    return simulate_patient(seed, tumours_in_ct=look, monitor=monitor)


def _segment(arguments: dict[str, Any], out: Path, monitor: Monitor) -> Path:
    from .segmentation import SegmentArguments, segment_image

    return segment_image(SegmentArguments(out=str(out), **arguments), monitor)


_DEVICE = Option("device", str, "where to compute", default="auto", choices=("auto", "cpu", "cuda", "mps"))
_OVERWRITE = Option("overwrite", bool, "replace a former result in OUT; it stays until the new one is complete")
_SEED = Option("seed", int, "random seed; the same seed gives the same result", default=0, metavar="N")

OPERATIONS: dict[str, Operation] = {
    "register": Operation(
        "carry the labels of an MRI onto a CT",
        (
            Option("mr", str, "the MRI: NIfTI, NRRD, MHA or a DICOM folder", required=True, is_path=True),
            Option("ct", str, "the CT, in the same formats", required=True, is_path=True, metavar="CT"),
            _OVERWRITE,
            Option(
                "mr_labels",
                str,
                "label map on the MRI: 1 liver, 2 and above one tumour each",
                is_path=True,
                metavar="L",
            ),
            Option("mr_label_map", str, 'what other values mean, such as "5=liver,7=tumour"', metavar="MAP"),
            Option("ct_liver", str, "liver mask on the CT, where there is one", is_path=True, metavar="L"),
            Option(
                "initial_transform",
                str,
                "transform to start from: CT point -> MR point, LPS",
                is_path=True,
                metavar="T",
            ),
            Option("preset", str, "how long to refine", default="balanced", choices=("fast", "balanced", "thorough")),
            Option(
                "stages",
                str,
                "comma-separated stages to run",
                default="alignment,mscgunet,refinement",
                metavar="STAGES",
            ),
            Option(
                "uncertainty",
                str,
                "how far off each tumour can be, after the result is there (auto: not for fast)",
                default="auto",
                choices=("auto", "on", "off"),
            ),
            Option(
                "verdict_mm",
                str,
                "up to the first of these p95 a tumour is localised, up to the second approximately",
                default="5,10",
                metavar="MM,MM",
            ),
            Option("registration_model", str, "MSCGUNet to use, see models list", metavar="ID"),
            Option(
                "segmentation_model", str, "UNet that finds livers nobody drew, or none, see models list", metavar="ID"
            ),
            _DEVICE,
            _SEED,
        ),
        _register,
    ),
    "segment": Operation(
        "find liver and tumours in an MRI or a CT",
        (
            Option(
                "image",
                str,
                "the MRI or CT: NIfTI, NRRD, MHA or a DICOM folder",
                required=True,
                metavar="IMAGE",
                is_path=True,
                positional=True,
            ),
            Option("modality", str, "what the image is", default="auto", choices=("auto", "ct", "mr")),
            Option("segmentation_model", str, "UNet to use, see models list", metavar="ID"),
            Option("overwrite", bool, "replace OUT where it exists"),
            _DEVICE,
        ),
        _segment,
        writes_file=True,
    ),
    "simulate": Operation(
        "simulate a patient with known truth",
        (
            _OVERWRITE,
            _SEED,
            Option("from_ct", str, "simulate only the MRI, of the patient of this CT", is_path=True, metavar="CT"),
            Option("labels", str, "label map on that CT: 1 liver, 2 and above its tumours", is_path=True, metavar="L"),
            Option("label_map", str, "set the liver of this label map into the patient", is_path=True, metavar="L"),
            Option(
                "tumours_in_ct",
                str,
                "what the CT shows of the tumours (default: drawn for each)",
                choices=("invisible", "faint", "visible"),
            ),
        ),
        _simulate,
    ),
}


@dataclass(frozen=True)
class Request:
    """One checked request. cancel_file: its appearing ends the work; parent_pid: so does the end of that process."""

    operation: str
    arguments: dict[str, Any]
    out: str
    cancel_file: str | None = None
    parent_pid: int | None = None

    @staticmethod
    def read(path: str | Path) -> Request:
        """Raises InputError: not readable, not JSON, or not a request."""
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise InputError(f"request: {path} cannot be read ({reason}); check the path.") from error
        return Request.parse(text)

    @staticmethod
    def parse(text: str) -> Request:
        """Raises InputError: not JSON, another schema, unknown, missing or ill-typed keys."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"request: not valid JSON ({error}); write it with a JSON library.") from error
        if not isinstance(content, dict):
            raise InputError("request: must be a JSON object with schema, operation, arguments and out.")
        if content.get("schema") != SCHEMA or isinstance(content["schema"], bool):
            raise InputError(
                f"request: schema {content.get('schema')!r} is not known; version {__version__} reads schema {SCHEMA}."
            )
        known = ("schema", "operation", "arguments", "out", "cancel_file", "parent_pid")
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise InputError(f"request: unknown key {unknown[0]!r}; known are {', '.join(known)}.")
        operation, arguments = content.get("operation"), content.get("arguments", {})
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise InputError(f"request: operation {operation!r} is not known; use {' or '.join(OPERATIONS)}.")
        if not isinstance(arguments, dict):
            raise InputError("request: arguments must be a JSON object of the command line's long options.")
        _check_type("out", content.get("out"), str, required=True)
        _check_type("cancel_file", content.get("cancel_file"), str)
        _check_type("parent_pid", content.get("parent_pid"), int)
        return Request(
            operation,
            _checked_arguments(operation, arguments),
            content["out"],
            content.get("cancel_file"),
            content.get("parent_pid"),
        )

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)})

    def is_cancelled(self) -> bool:
        return self.cancel_file is not None and os.path.lexists(self.cancel_file)

    def check_folders(self) -> None:
        """Raise InputError where OUT cannot be written, or replacing it would delete an input. No input is read."""
        check = check_out_file if OPERATIONS[self.operation].writes_file else check_out
        out = check(self.out, bool(self.arguments.get("overwrite")))
        for option in OPERATIONS[self.operation].options:
            path = self.arguments.get(option.name) if option.is_path else None
            if path and out in (real := Path(os.path.realpath(path)), *real.parents):
                raise InputError(
                    f"--out: {out} holds the input {real.name}, which would be lost; choose another folder."
                )


def _check_type(name: str, value: object, wanted: type, required: bool = False) -> None:
    if value is None and not required:
        return
    words = {str: "a text", int: "a whole number, 0 or above", bool: "true or false"}
    right = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
    if not right or value == "" or (wanted is int and value < 0):
        raise InputError(f"request: {name} must be {words[wanted]}, not {value!r}.")


def _checked_arguments(operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those that are null. Raises InputError."""
    options = {option.name: option for option in OPERATIONS[operation].options}
    for name in arguments:
        if name not in options:
            raise InputError(f"request: {operation} has no argument {name!r}; known are {', '.join(options)}.")
    for name, option in options.items():
        value = arguments.get(name)
        if value is None and option.required:
            raise InputError(f"request: {operation} needs the argument {name!r} ({option.help}).")
        _check_type(name, value, option.type)
        if value is not None and option.choices and value not in option.choices:
            raise InputError(f"request: {name} must be one of {', '.join(option.choices)}, not {value!r}.")
    return {name: value for name, value in arguments.items() if value is not None}


# -- the work ---------------------------------------------------------------------------------------------------
def run_here(request: Request, listener: Listener) -> int:
    """Carry out a request in this process; what goes wrong becomes an error event. Returns the exit code."""
    try:
        request.check_folders()
        monitor = Monitor(listener, request.is_cancelled)
        folder = OPERATIONS[request.operation].perform(dict(request.arguments), Path(request.out), monitor)
    except (Cancelled, KeyboardInterrupt):
        return EXIT_CANCELLED
    except BaseException as error:
        code, event = _describe(error)
        if event["kind"] == "internal":
            for line in traceback.format_exc().splitlines():
                listener({"event": "log", "message": line})
        listener(event)
        return code
    listener({"event": "result", "folder": str(folder)})
    return EXIT_DONE


def _describe(error: BaseException) -> tuple[int, Event]:
    """Exit code and error event of an exception."""
    code, kind, message = EXIT_FAILED, "internal", f"{type(error).__name__}: {error}"
    if isinstance(error, WeakTumourError):
        code, kind, message = error.exit_code, error.kind, str(error)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, kind, message = (
            EXIT_INPUT,
            "input",
            "The disk is full; free space or choose another folder for the result.",
        )
    elif isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_out_of_memory(error)):
        kind = "device"
        message = (
            "The memory is not enough for these volumes; close other programs, crop the volumes, or use --device cpu."
        )
    elif isinstance(error, RuntimeError) and "CUDA error" in str(error):
        kind, message = "device", f"The GPU failed ({str(error).splitlines()[0]}); try again or use --device cpu."
    return code, {"event": "error", "kind": kind, "message": " ".join(message.split())}


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch (CUDA, MPS and CPU) and ITK each say it in their own words."""
    text = str(error).lower()
    words = ("out of memory", "bad_alloc", "bad allocation", "failed to allocate memory", "can't allocate memory")
    return type(error).__name__ == "OutOfMemoryError" or any(word in text for word in words)


# -- the supervising process ------------------------------------------------------------------------------------
def supervise(request: Request, listener: Listener, command: Sequence[str] = CHILD_COMMAND) -> int:
    """Carry out a request in a child process and pass its events on. Returns the exit code.

    Ends with 3 within a moment of the cancel file's appearing, the parent's end, Ctrl-C or a termination signal:
    the child is killed, wherever it is, and its partial folder removed. `listener` is called from another thread.
    """
    try:
        request.check_folders()
    except InputError as error:
        code, event = _describe(error)
        listener(event)
        return code
    outcome: list[str] = []  # the result or error events that passed
    parent = _Parent(request.parent_pid)
    with _stop_signals() as stopped:
        child = _start_child(replace(request, cancel_file=None, parent_pid=os.getpid()), command)
        events = threading.Thread(target=_pass_events, args=(child.stdout, listener, outcome, stopped), daemon=True)
        events.start()
        try:
            # The events may still be under way when the child is done, and their reader may be slow.
            while child.poll() is None or events.is_alive():
                if stopped or request.is_cancelled() or not parent.is_alive():
                    break
                events.join(_POLL_S)
            code = child.poll()
        finally:
            child.kill()
            child.wait()
            remove_stale(request.out, also_pid=child.pid)
        events.join(0.5)
    if outcome[-1:] == ["result"]:  # complete, also where it was to be stopped a moment later
        return EXIT_DONE
    if code is None or code == EXIT_CANCELLED:
        return EXIT_CANCELLED
    if outcome[-1:] == ["error"]:
        return EXIT_INPUT if code == EXIT_INPUT else EXIT_FAILED
    listener({"event": "error", **_unexpected_end(code)})
    return EXIT_FAILED


def _unexpected_end(code: int) -> Event:
    if code == -signal.SIGTERM or code == -getattr(signal, "SIGKILL", 9):
        message = (
            f"The system ended the work (signal {-code}), most likely because memory ran out; close other programs."
        )
        return {"kind": "device", "message": message}
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {
        "kind": "internal",
        "message": f"The working process ended unexpectedly ({how}); its last words are on stderr.",
    }


def _start_child(request: Request, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    # Threads that wait for each other spin by default, and stand still where another program wants the core.
    environment.setdefault("GOMP_SPINCOUNT", "2000")
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    environment["PYTHONSAFEPATH"] = "1"  # a torch.py in the folder where the user stands is not torch
    command, keywords = list(command), {}
    if sys.platform == "win32":
        # The python.exe of a virtual environment is a launcher with a process of its own: skip it, as the standard
        # library's multiprocessing does, so that the process killed is the one that works.
        if command[0] == sys.executable and sys.executable != sys._base_executable:
            command[0] = sys._base_executable
            environment["__PYVENV_LAUNCHER__"] = sys.executable
        keywords["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    with _blocked_interrupt():
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, **keywords)
    assert child.stdin is not None
    try:
        child.stdin.write(request.to_json().encode("ascii"))
        child.stdin.close()
    except OSError:  # it is gone already: its exit code tells
        pass
    return child


@contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """A child started here does not see Ctrl-C, which the terminal sends to every process: it is ours to answer."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop (Ctrl-C, termination, the terminal's closing)."""
    stopped: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            # What is ignored stays so (nohup).
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parent:
    """The process for which we work. Where none is named it lives for ever."""

    def __init__(self, pid: int | None) -> None:
        self._pid, self._started_by = pid, os.getppid()

    def is_alive(self) -> bool:
        # A launcher between us and the parent may be killed instead of the parent.
        return self._pid is None or (os.getppid() == self._started_by and process_is_alive(self._pid))


def _pass_events(stream: Any, listener: Listener, outcome: list[str], stopped: list[int]) -> None:
    for line in stream:
        event = _event_of(line)
        if event.get("event") in ("result", "error") and event.get("complete") is not False:
            outcome.append(str(event["event"]))
        try:
            listener(event)
        except OSError:  # nobody reads any more: the parent is gone
            stopped.append(0)
            return
        except BaseException:
            stopped.append(0)
            raise


def _event_of(line: bytes) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and "event" in event:
        return event
    return {"event": "log", "message": line.decode("utf-8", errors="replace").rstrip()}


# -- the working process ----------------------------------------------------------------------------------------
def _child() -> int:
    """Read a request from stdin, work, and write events to what was stdout; everything else printed goes to stderr."""
    request = Request.parse(sys.stdin.buffer.read().decode("utf-8"))
    _die_with(request.parent_pid)
    events = os.dup(1)
    os.dup2(2, 1)
    return run_here(request, lambda event: _print_event(event, events))


def _die_with(parent_pid: int | None) -> None:
    """End this process when the supervising one is gone: at once on Linux, within half a second elsewhere."""
    if parent_pid is None:
        return
    if sys.platform.startswith("linux"):
        import ctypes

        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGKILL))

    def watch() -> None:
        while process_is_alive(parent_pid):
            time.sleep(0.5)
        os._exit(EXIT_CANCELLED)

    threading.Thread(target=watch, daemon=True).start()


def _print_event(event: Event, file_descriptor: int = 1) -> None:
    """One line in one write, so that lines of several threads do not mix."""
    try:
        text = json.dumps(event, allow_nan=False, default=_plain)
    except ValueError:  # NaN and infinity are not JSON
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in event.items()
        }
        text = json.dumps(finite, default=_plain)
    data = text.encode("ascii") + b"\n"
    while data:
        data = data[os.write(file_descriptor, data) :]


def _plain(value: Any) -> Any:
    """numpy scalars as numbers, everything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


# -- the door ---------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None, command: Sequence[str] = CHILD_COMMAND) -> int:
    """`python -m weaktumour.worker REQUEST.json`. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--child"]:
        return _child()
    try:
        _print_event({"event": "log", "message": f"WeakTumourSeg {__version__}, worker {os.getpid()}"})
        try:
            if len(arguments) != 1:
                raise InputError("usage: python -m weaktumour.worker REQUEST.json")
            request = Request.read(arguments[0])
        except InputError as error:
            code, event = _describe(error)
            _print_event(event)
            return code
        return supervise(request, _print_event, command)
    except BrokenPipeError:  # nobody reads any more
        return EXIT_CANCELLED


if __name__ == "__main__":
    # Not sys.exit: it would wait for a thread that writes to a pipe nobody reads.
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)
