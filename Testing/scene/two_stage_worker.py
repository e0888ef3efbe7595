"""In the worker's place: brings a ready-made result in two steps.

    python two_stage_worker.py PREPARED REQUEST

PREPARED/result comes first; then it waits for a file PREPARED/go and does what that says: complete (PREPARED/assessed
comes in the place of the result, file by file), killed, error, silent. It ends with 3 when it is cancelled.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def say(**event):
    print(json.dumps(event), flush=True)


prepared, request = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
(prepared / "request.json").write_text(json.dumps(request))
out = Path(request["out"])
shutil.copytree(prepared / "result", out)
say(event="progress", stage="report", fraction=0.5, remaining_s=9)
say(event="result", folder=str(out), complete=False)
say(event="progress", stage="uncertainty", fraction=0.6, remaining_s=8)
go = prepared / "go"
while not go.exists():
    if Path(request["cancel_file"]).exists():
        sys.exit(3)
    time.sleep(0.02)
what = go.read_text()
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "error":
    say(event="error", kind="device", message="The GPU is gone; choose the CPU.")
    sys.exit(1)
elif what == "complete":
    for source in (prepared / "assessed").iterdir():
        shutil.copyfile(source, out / f"{source.name}.partial")
        os.replace(out / f"{source.name}.partial", out / source.name)
    say(event="result", folder=str(out), complete=True)
