"""A program in the worker's place: reads the request and misbehaves as its first argument says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def say(**event):
    print(json.dumps(event), flush=True)


mode, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
out = Path(request["out"])
say(event="log", message=f"started {os.getpid()}")
if mode == "done":
    say(event="progress", stage="refinement", fraction=0.5, remaining_s=1.0)
    out.mkdir()
    say(event="result", folder=str(out))
elif mode == "deaf":  # neither the cancel file nor a friendly signal ends it, nor does its child's death
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say(event="log", message=f"child {child.pid}")
    time.sleep(60)
elif mode == "garbage":
    os.write(1, b'\xff\xfe\x00 not text \n[1, 2]\n{"event": 5}\n{"event": "progress"}\n' + b"x" * 300000 + b"\n")
    out.mkdir()
    say(event="result", folder=str(out))
elif mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif mode == "memory":
    raise MemoryError
elif mode == "no torch":
    raise ModuleNotFoundError("No module named 'torch'")
elif mode == "disk":
    raise OSError(28, "No space left on device")
elif mode == "error":
    say(event="error", kind="input", message="MRI: it is upside down; turn it.")
    sys.exit(2)
elif mode == "no result":
    say(event="result", folder=str(out))
elif mode == "silent":
    sys.exit(0)
elif mode == "orphan":  # ends, but what it started keeps the pipe open
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sys.exit(1)
elif mode == "chatty":
    for number in range(30000):
        say(event="log", message=str(number))
    out.mkdir()
    say(event="result", folder=str(out))
