"""Ctrl-C and SIGTERM: the first finishes the step and saves, the second leaves at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ECHO = 3.0  # seconds within which a second signal is the first one, passed on


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal and saved; running the same command again goes on."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(f"stopped at step {step}; saved in {folder}")
        self.folder, self.step = folder, step


class StopNow(BaseException):
    """Raised inside `interruptible` by the first signal: the work there can be done again later."""


class Signals:
    """Whether somebody asked the run to stop. Only the main thread can listen; elsewhere nothing is ever asked.

    With `several` processes a launcher passes on what the terminal has already sent to each: then one signal may come
    twice, and it takes a second one after a while to leave at once.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.asked = False
        self._patience = ECHO if several else 0.0
        self._when = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first signal break off the block with `StopNow`."""
        if self.asked:
            raise StopNow
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._when < self._patience:
                return
            raise KeyboardInterrupt
        self.asked, self._when = True, time.monotonic()
        # Not print(): the signal may have come in the middle of one.
        os.write(2, b"\ndeepnarrow: finishing this step, then saving; once more to leave at once\n")
        if self._breakable:
            raise StopNow
