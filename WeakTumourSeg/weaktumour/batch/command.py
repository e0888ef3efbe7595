"""`weaktumour batch`: the options, and how many workers by default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..worker import OPERATIONS
from .table import PATHS

EXIT_DONE, EXIT_FAILED = 0, 1
_CORES_A_WORKER = 4  # a run gains little from more
# What `register` takes of each case is in the table, the rest holds for all.
_OF_A_CASE = (*PATHS, "mr_label_map", "overwrite")


def add_batch_parser(commands: argparse._SubParsersAction) -> None:
    text = "register many cases, on this machine or on a Dask cluster"
    parser = commands.add_parser("batch", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("cases", metavar="CASES", help="CSV table with the columns id, mr, ct and where there are such "
                        "mr_labels, ct_liver, initial_transform, mr_label_map; or a cohort")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for results and summary; the same command "
                        "goes on with it")  # fmt: skip
    parser.add_argument("--splits", metavar="FILE", help="take only the cases that its folds test")
    parser.add_argument("--fold", type=int, metavar="K", help="only those that fold K of --splits tests, from 0")
    parser.add_argument("--scheduler", default="local", metavar="ADDRESS", help="a Dask scheduler such as "
                        "tcp://host:8786; local: workers on this machine; none: one case after the other, without Dask "
                        "(default: local)")  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N", help="local workers (default: one for each GPU, or for "
                        "each 4 cores)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="of each run (default: this machine's cores, shared "
                        "out)")  # fmt: skip
    for option in _settings():
        flag = "--" + option.name.replace("_", "-")
        if option.type is bool:
            parser.add_argument(flag, action="store_true", default=None, help=option.help)
            continue
        parser.add_argument(
            flag,
            type=option.type,
            choices=option.choices or None,
            metavar=option.metavar if not option.choices else None,
            help=option.help + ("" if option.default is None else f" (default: {option.default})"),
        )


def run_batch_command(options: Mapping[str, object]) -> int:
    """Exit code: 1 where a case failed. Raises InputError."""
    from .running import Batch, run_batch
    from .table import read_cases, tested_cases

    settings = {option.name: options.get(option.name) for option in _settings()}
    if isinstance(settings.get("seed"), int) and settings["seed"] < 0:
        raise InputError(f"--seed: {settings['seed']}; give 0 or more.")
    for name in ("processes", "threads"):
        if options.get(name) is not None and int(str(options[name])) < 1:
            raise InputError(f"--{name}: {options[name]}; give 1 or more.")
    cases = read_cases(str(options["cases"]))
    fold = None if options.get("fold") is None else int(str(options["fold"]))
    if options.get("splits"):
        cases = tested_cases(cases, str(options["cases"]), str(options["splits"]), fold)
    elif fold is not None:
        raise InputError("--fold: it counts the folds of --splits; give both or neither.")
    scheduler = str(options["scheduler"])
    gpus = cuda_devices() if scheduler == "local" and settings.get("device") in (None, "auto", "cuda") else ()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(str(options["processes"] or (len(gpus) or max(1, cores // _CORES_A_WORKER))))
    threads = int(str(options["threads"] or max(1, cores // (processes if scheduler == "local" else 1))))
    out = Path(str(options["out"])).resolve()
    batch = Batch(tuple(cases), out, settings, scheduler, processes, threads, gpus)
    rows = run_batch(batch, lambda text: print(text, flush=True))
    failed = [row for row in rows if row["error"]]
    print(f"Summary: {out / 'summary.md'}")
    if failed:
        print(f"{len(failed)} of {len(rows)} cases failed; the same command tries them again.")
    print("Research use only; not a medical device.")
    return EXIT_FAILED if failed else EXIT_DONE


def cuda_devices() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() and name.strip() != "-1")
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def _settings():
    return [option for option in OPERATIONS["register"].options if option.name not in _OF_A_CASE]
