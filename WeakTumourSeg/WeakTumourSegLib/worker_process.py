"""The engine's worker as a child process that never holds up the application.

Why not slicer.util.launchConsoleProcess(blocking=False): it gives no process group to kill (on Linux and macOS the
launcher dies and the worker goes on), decodes by the locale and needs Qt. This uses the same pieces (PythonSlicer, the
start-up environment, a reading thread, a timer on the main thread) and closes these gaps.

A thread reads the child's lines into a queue; `poll`, called by a timer on the main thread, hands them on as events and
notices the end. Cancelling asks first (the cancel file) and kills the whole process tree when the grace is over. The
child watches this process and ends by itself when it is gone.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from weaktumour.workspace import process_is_alive, remove_tree

# Calls a function every so many milliseconds on the main thread until the returned function is called.
Ticker = Callable[[int, Callable[[], None]], Callable[[], None]]
Event = dict[str, Any]

DONE, CANCELLED, FAILED = "done", "cancelled", "failed"
PYTHON_VARIABLE = "WEAKTUMOUR_PYTHON"
POLL_MS = 50
MODULE_FOLDER = Path(__file__).resolve().parents[1]

_GRACE_S = 1.2
_LAST_WORDS_S = 1.0
_LINE_BYTES = 1 << 16
_LINES_A_POLL = 500
_FOLDER_PREFIX = "WeakTumourSeg-"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. state: done, cancelled or failed; message: a sentence where it failed; folder: the result.

    complete: not where the worker was stopped, or failed, in a stage that adds to a result that it had announced; the
    message says which.
    """

    state: str
    message: str = ""
    folder: Path | None = None
    complete: bool = True


# -- the temporary folder -------------------------------------------------------------------------------------------
def makeTemporaryFolder(parent: Path) -> Path:
    """A new private folder; those that a Slicer left behind which no longer runs are removed first. Raises OSError.

    Only this computer's: on a shared disk, whether the process of another one runs cannot be told from here.
    """
    prefix = f"{_FOLDER_PREFIX}{re.sub('[^A-Za-z0-9.]', '_', platform.node())}-"
    for left in parent.glob(f"{prefix}*"):
        match = re.fullmatch(re.escape(prefix) + r"(\d+)-\w+", left.name)
        if match and not process_is_alive(int(match[1])):
            remove_tree(left)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


# -- starting -------------------------------------------------------------------------------------------------------
def pythonExecutable() -> str:
    """Slicer's Python for child processes; $WEAKTUMOUR_PYTHON names another one. Outside Slicer: this Python."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    beside = Path(sys.executable).with_name("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    return shutil.which("PythonSlicer") or (str(beside) if beside.is_file() else sys.executable)


def childEnvironment() -> dict[str, str]:
    """The environment from before Slicer's start, in which PythonSlicer sets up its own; with the engine's folder."""
    import slicer

    environment = dict(os.environ)
    if hasattr(slicer, "app") and hasattr(slicer.app, "startupEnvironment"):
        environment = dict(slicer.util.startupEnvironment())
        # Set inside Slicer: the worker must look for models where the panel does.
        environment.update({name: value for name, value in os.environ.items() if name.startswith("WEAKTUMOUR_")})
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(MODULE_FOLDER), environment.get("PYTHONPATH"))))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


class LineProcess:
    """A child in a process group of its own whose output is read line by line without waiting."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> None:
        """Raises OSError where the program cannot be started."""
        keywords: dict[str, Any] = {}
        if os.name == "nt":
            keywords["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        else:
            keywords["start_new_session"] = True
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            **keywords,
        )
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=20000)  # a child that talks faster than we listen waits
        self._endedAt: float | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> list[str]:
        """What was said since the last call, at most a few hundred lines at a time."""
        said = []
        while len(said) < _LINES_A_POLL:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                break
            said.append(line.decode("utf-8", errors="replace").rstrip("\r\n"))
        return said

    def exitCode(self) -> int | None:
        """None while it runs or has something left to say; negative: ended by that signal."""
        code = self._process.poll()
        if code is None:
            return None
        if self._endedAt is None:
            self._endedAt = time.monotonic()
        if self._reader.is_alive():
            # A grandchild may hold the pipe open: it is of no use without its parent.
            if time.monotonic() - self._endedAt > _LAST_WORDS_S:
                self._killGroup()
            return None
        return code if self._lines.empty() else None

    def kill(self) -> None:
        """End the whole process tree at once."""
        if self._process.poll() is None:
            self._killGroup()

    def end(self) -> None:
        """Kill the process tree and wait until it is gone."""
        self.kill()
        self._process.wait()
        self._reader.join(_LAST_WORDS_S)

    def _killGroup(self) -> None:
        if os.name == "nt":
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(self.pid)],
                capture_output=True,
                creationflags=subprocess.CREATE_NO_WINDOW,
                check=False,
            )
            return
        with suppress(ProcessLookupError, PermissionError):  # gone meanwhile
            os.killpg(self.pid, signal.SIGKILL)

    def _read(self) -> None:
        stream = self._process.stdout
        with stream:
            while line := stream.readline(_LINE_BYTES):
                self._lines.put(line)


# -- the worker -----------------------------------------------------------------------------------------------------
class WorkerRun:
    """One request carried out by the worker.

    The run owns `folder` and removes it in every ending, after `finish(outcome)`, which is called exactly once and
    takes out of it what is to be kept. Nothing is called after that.

    A result event with "complete": false announces a folder that is whole; the worker goes on adding to it. From when
    `onEvent` has heard of it, the run ends as done, whatever becomes of the worker.
    """

    def __init__(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        folder: Path,
        onFinished: Callable[[Outcome], None],
        onEvent: Callable[[Event], None] = lambda event: None,
        command: Sequence[str] | None = None,
    ) -> None:
        """command: the program in place of the worker, to which the request's path is added. Starts at once."""
        self._folder, self._onFinished, self._onEvent = folder, onFinished, onEvent
        self._cancelFile, self._cancelledAt = folder / "cancel", None
        self._stopTicker: Callable[[], None] = lambda: None
        self._outcome: Outcome | None = None
        self._said: Outcome | None = None  # by the worker's own result or error
        self._announced: Path | None = None  # a result that the worker goes on adding to
        self._heard: deque[str] = deque()  # lines to be handled
        self._lastLines: list[str] = []
        self._process: LineProcess | None = None
        request = {
            "schema": 1,
            "operation": operation,
            "arguments": {name: value for name, value in arguments.items() if value is not None},
            "out": str(folder / "result"),
            "cancel_file": str(self._cancelFile),
            "parent_pid": os.getpid(),
        }
        command = command or [pythonExecutable(), "-m", "weaktumour.worker"]
        try:
            path = folder / "request.json"
            path.write_text(json.dumps(request), encoding="ascii")
            self._process = LineProcess([*command, str(path)], childEnvironment(), cwd=folder)
        except OSError as error:
            self._said = Outcome(FAILED, startFailure(error, command[0]))

    @property
    def outcome(self) -> Outcome | None:
        """None while it runs."""
        return self._outcome

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, ticker: Ticker) -> None:
        """Let a timer do the polling."""
        self._stopTicker = ticker(POLL_MS, self.poll)

    def wait(self, processEvents: Callable[[], None] = lambda: None) -> Outcome:
        """Poll until the end, giving the application its turn in between."""
        while self._outcome is None:
            self.poll()
            processEvents()
            if self._outcome is None:
                time.sleep(POLL_MS / 1000)
        return self._outcome

    def cancel(self) -> None:
        """Ask the worker to stop; the outcome comes with a later poll."""
        if self._outcome is not None or self._cancelledAt is not None:
            return
        self._cancelledAt = time.monotonic()
        try:
            self._cancelFile.touch()
        except OSError:  # a full disk: no grace
            self._cancelledAt -= _GRACE_S

    def abort(self) -> None:
        """End now, for the application's end or the scene's closing: kill, wait, clean up."""
        if self._outcome is None:
            self.cancel()
            if self._process is not None:
                self._process.kill()
            self.wait()

    def poll(self) -> None:
        """Hand on what the worker said; notice its end. Called on the main thread."""
        if self._outcome is not None:
            return
        code = self._process.exitCode() if self._process else -1
        self._heard.extend(self._process.lines() if self._process else ())
        # Who is told of a line may give the application its turn, and so come here again, or end the run.
        while self._heard:
            self._handle(self._heard.popleft())
        if self._outcome is not None:
            return
        if code is None:
            if self._cancelledAt is not None and time.monotonic() - self._cancelledAt > _GRACE_S:
                self._process.kill()
            return
        self._finish(self._ending(code))

    def _handle(self, line: str) -> None:
        event = parseEvent(line)
        if event["event"] == "result" and event.get("complete") is False:
            if self._cancelledAt is None:
                self._announced = Path(str(event.get("folder")))
        elif event["event"] == "result":
            self._said = Outcome(DONE, folder=Path(str(event.get("folder"))))
        elif event["event"] == "error":
            self._said = Outcome(FAILED, _errorSentence(str(event.get("message") or _("The worker failed."))))
        elif event["event"] == "log":
            self._lastLines = [*self._lastLines, str(event.get("message", ""))][-20:]
        if self._cancelledAt is None:
            self._onEvent(event)

    def _ending(self, code: int) -> Outcome:
        if self._announced is not None:
            return self._endingOfAnnounced(code)
        if self._cancelledAt is not None:
            return Outcome(CANCELLED)
        if self._said is not None and self._said.state == FAILED:
            return self._said
        if self._said is not None:
            if code == 0 and self._said.folder.is_dir():
                return self._said
            return Outcome(FAILED, _("The worker's result is missing; run again."))
        return Outcome(FAILED, _exitSentence(code, "\n".join(self._lastLines)))

    def _endingOfAnnounced(self, code: int) -> Outcome:
        """Of a run whose result is there and in use: done."""
        if self._said is not None and self._said.state == DONE and code == 0:
            return self._said
        if self._cancelledAt is not None:
            sentence = _("The assessment was stopped: how far the tumours can be trusted is not known.")
        else:
            failed = self._said is not None and self._said.state == FAILED
            reason = self._said.message if failed else _exitSentence(code, "\n".join(self._lastLines))
            sentence = unassessed(reason)
        return Outcome(DONE, sentence, self._announced, complete=False)

    def _finish(self, outcome: Outcome) -> None:
        self._stopTicker()
        self._outcome = outcome
        try:
            self._onFinished(outcome)
        finally:
            remove_tree(self._folder)


def unassessed(reason: str) -> str:
    """reason: a sentence."""
    return _("The result can be used, but how far its tumours can be trusted could not be assessed. {reason}").format(
        reason=reason
    )


def parseEvent(line: str) -> Event:
    """A line of the worker; whatever is not a JSON object with a text as `event` is log text."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return {"event": "log", "message": line}


def startFailure(error: OSError, program: str) -> str:
    """Why nothing could be started."""
    if isinstance(error, FileNotFoundError) and not shutil.which(program):
        return _("The Python program {program} was not found; install Slicer again, or set {variable}.").format(
            program=program, variable=PYTHON_VARIABLE
        )
    return _("The worker could not be started ({reason}); free space on the disk and try again.").format(
        reason=error.strerror or error
    )


def _errorSentence(message: str) -> str:
    """The worker's own sentence, but for what it cannot know."""
    if re.search(r"No module named '?torch\b", message):
        return noTorchSentence()
    return message


def noTorchSentence() -> str:
    return _("PyTorch is not installed; install it with the PyTorch extension (see First use), then run again.")


def _exitSentence(code: int, lastLines: str) -> str:
    """A worker that ended without a word of its own."""
    if re.search(r"No module named '?torch\b", lastLines):
        return noTorchSentence()
    if "MemoryError" in lastLines or "bad_alloc" in lastLines:
        return _("The memory was not enough; close other programs or crop the volumes, then run again.")
    if "No space left on device" in lastLines:
        return _("The disk is full; free space or choose another working folder, then run again.")
    if code in (-9, -15, 137, 143):
        return _(
            "The worker was ended from outside (signal {signal}), most likely because memory ran out; "
            "close other programs or crop the volumes, then run again."
        ).format(signal=-code if code < 0 else code - 128)
    return _("The worker ended unexpectedly (exit code {code}); see the log for its last words.").format(code=code)
