"""Results appear whole or not at all.

Work goes to `OUT.partial-PID` beside OUT and is renamed at the end. Whatever happens in between (an exception, a
cancel, a killed process, a power cut), OUT holds either what it held before or the whole new result; what a killed
process left behind is removed by the next start for the same OUT. PID is the process that owns the folder, so two
runs at once do not disturb each other.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

# A folder may be overwritten only where one of these shows that this program wrote it: --overwrite with a slip of
# the hand (--out ~) must never delete anything else.
_OWN_MARKS = ("result.json", "case.json")
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_DISK_FULL_BYTES = 1 << 20
_TEMPORARY_VARIABLES = ("TMPDIR", "TEMP", "TMP")

_open_here: set[Path] = set()  # partial folders of this process that are in use


@contextmanager
def open_workspace(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield the empty folder OUT.partial-PID; it becomes OUT when the block ends, and is deleted when it raises.

    Temporary files of libraries (TMPDIR) go into the same folder meanwhile and vanish with it.
    Raises InputError: OUT cannot be written, holds something already (also when another run finished first and
    `overwrite` is not set), or the disk is full.
    """
    target = check_out(out, overwrite)
    with _partial(target) as partial:
        with _temporary_files_in(partial / ".temporary"):
            yield partial
        _publish(partial, target, overwrite)


@contextmanager
def open_file(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """As `open_workspace` for a result that is one file: yields where to write it; it becomes OUT when the block ends.

    Raises InputError: OUT cannot be written, exists and `overwrite` is not set, or the disk is full.
    """
    target = check_out_file(out, overwrite)
    with _partial(target) as partial:
        with _temporary_files_in(partial / ".temporary"):
            yield partial / target.name
        check_out_file(target, overwrite)
        try:
            (partial / target.name).replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error


@contextmanager
def update_workspace(out: str | Path, last: str) -> Iterator[Path]:
    """Yield the empty folder OUT.partial-PID; the files in it then replace those of the finished OUT, one by one.

    last: the file that vouches for the others and is put in place after them. OUT is whole at any moment, and as it was
    where the block raises. Raises InputError: OUT is gone, or cannot be written.
    """
    target = Path(os.path.realpath(out))
    with _partial(target) as partial:
        with _temporary_files_in(partial / ".temporary"):
            yield partial
        try:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == last):
                path.replace(target / path.name)
        except OSError as error:
            raise _unwritable(target, error) from error


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """The folder OUT.partial-PID, made, and in the end removed with whatever is left in it. Raises InputError."""
    remove_stale(target)
    partial = _partial_folder(target, os.getpid())
    if partial in _open_here:
        raise InputError(f"--out: another run of this process is writing {target}; choose another name.")
    try:
        partial.mkdir()
    except OSError as error:
        raise _unwritable(target, error) from error
    _open_here.add(partial)
    try:
        yield partial
    except (OSError, RuntimeError) as error:
        # SimpleITK does not say why a file could not be written: look at the disk before the space is freed again.
        full = getattr(error, "errno", None) == errno.ENOSPC or _disk_is_full(target.parent)
        remove_tree(partial)
        if full:
            raise InputError(
                f"--out: the disk of {target.parent} is full; free space or choose another place."
            ) from error
        raise
    finally:
        remove_tree(partial)
        _open_here.discard(partial)


def check_out_file(out: str | Path, overwrite: bool = False) -> Path:
    """The real path of OUT, when an image file can be written there. Changes nothing. Raises InputError."""
    target = Path(os.path.realpath(out))
    if not str(out).strip() or not target.name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(f"--out: {out} does not end in one of {', '.join(IMAGE_SUFFIXES)}; name such a file.")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out: the folder {target.parent} does not exist or is not writable; choose another.")
    if target.is_dir():
        raise InputError(f"--out: {target} is a folder; name a file.")
    if target.exists() and not overwrite:
        raise InputError(f"--out: {target} exists; choose another name or add --overwrite.")
    return target


def check_out(out: str | Path, overwrite: bool = False) -> Path:
    """The real path of OUT, when a result can be put there. Changes nothing.

    Raises InputError: OUT is a file, its parent folder is missing or not writable, or it holds something and
    `overwrite` is not set or would delete more than a former result.
    """
    if not str(out).strip():
        raise InputError("--out: the name is empty; name a new folder.")
    # A link is followed, so that the folder it points to is replaced and not the link.
    target = Path(os.path.realpath(out))
    if not target.name or target == Path(os.path.realpath(os.curdir)):
        raise InputError(f"--out: {target} is the current or the top folder; name a new folder in it.")
    if not target.parent.is_dir():
        raise InputError(f"--out: the folder {target.parent} does not exist; create it first or choose another.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"--out: the folder {target.parent} is not writable; choose another.")
    try:  # one look: another run may move it aside at any moment
        names = os.listdir(target)
    except FileNotFoundError:
        return target
    except NotADirectoryError as error:
        raise InputError(f"--out: {target} is a file; name a new folder.") from error
    except OSError as error:
        raise _unwritable(target, error) from error
    if names and not overwrite:
        raise InputError(f"--out: {target} is not empty; choose another folder or add --overwrite.")
    if names and not any(mark in names for mark in _OWN_MARKS):
        raise InputError(
            f"--out: {target} holds something that is not a result of this program; "
            "--overwrite replaces former results only, choose another folder."
        )
    return target


def remove_stale(out: str | Path, also_pid: int | None = None) -> None:
    """Remove OUT.partial-PID of processes that are gone (and of `also_pid`), for this OUT only.

    A run that was killed while it exchanged an old result for a new one has the old one put back.
    """
    target = Path(os.path.realpath(out))
    pattern = re.compile(re.escape(target.name) + r"\.(partial|replaced)-(\d+)")
    try:
        names = os.listdir(target.parent)
    except OSError:
        return
    for name in names:
        match = pattern.fullmatch(name)
        if not match:
            continue
        folder, pid = target.parent / name, int(match[2])
        # Our own number on a folder that we did not open is that of a dead process that had the same number.
        if folder in _open_here or (pid not in (os.getpid(), also_pid) and process_is_alive(pid)):
            continue
        if match[1] == "replaced" and not os.path.lexists(target):
            try:
                folder.rename(target)
                continue
            except OSError:  # another start was faster
                if not os.path.lexists(target):
                    continue
        remove_tree(folder)


def remove_tree(path: Path) -> None:
    """Delete a folder or file; tries for a second where something (a virus scanner, a dying process) holds it."""
    for attempt in range(10):
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
        time.sleep(0.02 * (attempt + 1))


def process_is_alive(pid: int) -> bool:
    """True while the process runs; a zombie, which only waits for its parent to look, is dead."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _windows_process_is_alive(pid)
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:  # no /proc on this system
        return True
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _windows_process_is_alive(pid: int) -> bool:
    import ctypes  # os.kill(pid, 0) would send Ctrl-C there

    synchronize, access_denied, timed_out = 0x00100000, 5, 0x102
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = ctypes.c_void_p
    kernel.WaitForSingleObject.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    kernel.CloseHandle.argtypes = [ctypes.c_void_p]
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:
        return ctypes.get_last_error() == access_denied
    try:
        return kernel.WaitForSingleObject(handle, 0) == timed_out
    finally:
        kernel.CloseHandle(handle)


# -- the exchange -----------------------------------------------------------------------------------------------
def _partial_folder(target: Path, pid: int) -> Path:
    return target.with_name(f"{target.name}.partial-{pid}")


def _publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename the finished folder to OUT; with `overwrite`, what is there is moved aside first and deleted after."""
    replaced = target.with_name(f"{target.name}.replaced-{os.getpid()}")
    error: OSError | None = None
    for attempt in range(10):
        # Checked again, and more than once: other runs may finish at the same OUT meanwhile.
        check_out(target, overwrite)
        try:
            if target.is_dir() and os.listdir(target):
                remove_tree(replaced)
                target.rename(replaced)
            elif target.is_dir() and sys.platform == "win32":
                target.rmdir()  # POSIX renames over an empty folder, Windows does not
            partial.rename(target)
        except OSError as caught:
            error = caught
            if not os.path.lexists(target) and replaced.is_dir():
                replaced.rename(target)
            time.sleep(0.02 * attempt)
        else:
            remove_tree(replaced)
            return
    raise _unwritable(target, error or OSError("other runs keep writing it"))


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    folder.mkdir()
    before = {name: os.environ.get(name) for name in _TEMPORARY_VARIABLES}
    tempdir, tempfile.tempdir = tempfile.tempdir, str(folder)
    os.environ.update(dict.fromkeys(_TEMPORARY_VARIABLES, str(folder)))
    try:
        yield
    finally:
        tempfile.tempdir = tempdir
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        remove_tree(folder)


def _disk_is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _DISK_FULL_BYTES
    except OSError:
        return False


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(f"--out: {target} cannot be written ({error.strerror or error}); choose another folder.")
