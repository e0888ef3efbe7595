"""The few errors that leave the engine.

Each message is one plain sentence: what is wrong, with which input, what to do.
"""


class WeakTumourError(Exception):
    """Base class; `kind` is the word the worker reports, `exit_code` what the process returns."""

    kind = "internal"
    exit_code = 1


class InputError(WeakTumourError, ValueError):
    """Something the user gave cannot be used."""

    kind = "input"
    exit_code = 2


class ModelError(InputError):
    """A network or its weights cannot be used: an unknown id, a damaged or foreign file, weights that do not fit."""

    kind = "model"


class DeviceError(WeakTumourError, RuntimeError):
    """The computing device is missing or cannot hold the work."""

    kind = "device"


class Cancelled(WeakTumourError):
    """The user asked to stop. Not a failure: nothing is left behind."""

    kind = "cancelled"
    exit_code = 3
