"""Ctrl-C and SIGTERM, kept until a step is whole, so that a checkpoint can be written first."""

import signal
import threading
from types import FrameType


class Interrupts:
    """Remembers the first interrupt while entered; a second one acts at once.

    Signals reach the main thread only: elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._restore()

    def act(self) -> None:
        """Raise what the remembered interrupt means: KeyboardInterrupt, or the exit code of a terminated process."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
