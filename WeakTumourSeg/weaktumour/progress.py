"""Progress, remaining time and cancelling, in one object that every long step is handed.

Events are the dictionaries that the worker prints: {"event": "progress", "stage", "fraction", "remaining_s"};
{"event": "log", "message"}; {"event": "result", "folder", "complete": False} where a result is there and a later stage
will add to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from .errors import Cancelled

Event = dict[str, object]


class Monitor:
    """Follows one run through its planned stages.

    listener: called with each event. cancelled: asked often; when it answers True, the next report raises Cancelled.
    """

    def __init__(
        self,
        listener: Callable[[Event], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._listener = listener or (lambda event: None)
        self._cancelled = cancelled
        self._plan: dict[str, float] = {}
        self._done = 0.0
        self._stage: str | None = None
        self._started = time.monotonic()
        self._last_report = 0.0
        self.seconds: dict[str, float] = {}

    def plan(self, expected_seconds: Mapping[str, float]) -> None:
        """Name the stages to come with their expected share of the time."""
        self._plan = dict(expected_seconds)
        self._started = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One planned stage; its seconds are kept in `seconds`."""
        self._stage, begun = name, time.monotonic()
        self.update(0.0, force=True)
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begun
        self._done += self._plan.get(name, 0.0)
        self._stage = None

    def update(self, fraction: float, *, force: bool = False) -> None:
        """Report how much of the running stage is done (0 to 1). Raises Cancelled."""
        self.check()
        now = time.monotonic()
        if not force and now - self._last_report < 0.2:
            return
        self._last_report = now
        total = sum(self._plan.values()) or 1.0
        overall = min(1.0, (self._done + self._plan.get(self._stage or "", 0.0) * fraction) / total)
        elapsed = now - self._started
        # Before a tenth is done the plan is the better guess; after it, this machine's own pace.
        remaining = elapsed * (1 - overall) / overall if overall > 0.1 else total * (1 - overall)
        self._listener(
            {
                "event": "progress",
                "stage": self._stage,
                "fraction": round(overall, 4),
                "remaining_s": round(remaining, 1),
            }
        )

    def check(self) -> None:
        """Raise Cancelled when the user asked to stop."""
        if self._cancelled():
            raise Cancelled("Cancelled.")

    def announce(self, folder: object) -> None:
        """The result folder is whole and may be used; what follows adds to it."""
        self._listener({"event": "result", "folder": str(folder), "complete": False})

    def log(self, message: str) -> None:
        self._listener({"event": "log", "message": message})
