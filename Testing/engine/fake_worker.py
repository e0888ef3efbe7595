"""The worker with one more operation, "fake", whose `mode` makes it behave badly. Run by test_worker.py as a program.

The worker's own supervising and child code runs unchanged; only what the child is asked to do is ours.
"""

import os
import re
import signal
import sys
import tempfile
import time

from weaktumour import worker
from weaktumour.errors import DeviceError, InputError
from weaktumour.workspace import open_workspace, update_workspace


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def misbehave(mode, folder, monitor):
    if mode == "slow":
        for step in range(600):
            (folder / f"file{step}").write_text("x" * 1000)
            tempfile.mkstemp()
            monitor.update(step / 600)
            time.sleep(0.05)
    elif mode == "python":  # holds the GIL: no other thread of the process runs meanwhile
        re.match(r"(a+)+$", "a" * 60 + "b")
    elif mode == "simpleitk":
        import SimpleITK as sitk

        sitk.Median(sitk.GaussianSource(sitk.sitkFloat32, [200] * 3), [9] * 3)
    elif mode == "ignores signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    elif mode == "stray":
        print("a library talks ", end="")
        os.write(1, b"without end of line")
        monitor.log("Grüße\nzweite Zeile")
        monitor._listener({"event": "progress", "stage": "x", "fraction": float("nan"), "remaining_s": None})
    elif mode == "chatty":
        for number in range(200000):
            monitor.log(f"{number} " + "x" * 200)
    elif mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mode == "crash":
        import faulthandler

        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "exits":
        os._exit(0)
    else:
        errors = {
            "internal": KeyError("liver"),
            "input": InputError("MRI: x.nii does not exist; check the path."),
            "device": DeviceError("No GPU."),
            "memory": MemoryError(),
            "cuda memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "itk memory": RuntimeError("Exception thrown in SimpleITK: Failed to allocate memory for image."),
            "disk": OSError(28, "No space left on device"),
        }
        raise errors[mode]


def assess(mode, out, monitor):
    """A second stage that adds to a finished result; `mode` tells how it ends."""
    monitor.announce(out)
    with update_workspace(out, last="result.json") as folder, monitor.stage("more"):
        (folder / "result.json").write_text('{"more": true}')
        (folder / "more.txt").write_text("more")
        if mode != "done":
            misbehave(mode, folder, monitor)


def perform(arguments, out, monitor):
    monitor.plan({"fake": 30.0})
    if arguments["mode"].startswith("then "):
        with open_workspace(out, arguments.get("overwrite", False)) as folder:
            (folder / "result.json").write_text("{}")
        assess(arguments["mode"].removeprefix("then "), out, monitor)
        return out
    with open_workspace(out, arguments.get("overwrite", False)) as folder:
        (folder / "result.json").write_text("{}")
        with monitor.stage("fake"):
            if arguments["mode"] != "done":
                misbehave(arguments["mode"], folder, monitor)
    return out


worker.OPERATIONS["fake"] = worker.Operation(
    "misbehaves",
    (worker.Option("mode", str, "how", required=True), worker.Option("overwrite", bool, "replace")),
    perform,
)

if __name__ == "__main__":
    exit_code = worker.main(command=[sys.executable, __file__, "--child"])
    sys.stderr.flush()
    os._exit(exit_code)
