"""One thread at a time: GPyTorch's settings, which evaluating a kernel turns, belong to the whole process."""

from __future__ import annotations

import os
import threading


class _Turn:
    """The lock of the process; a process that is forked while another thread has it starts with its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


_TURN = _Turn()


def turn() -> threading.RLock:
    """What a thread holds while it finds or uses a posterior, as a context; it may take it again."""
    return _TURN.lock
