"""Processes that end with the one that started them, however that ended.

A signal reaches a process and nobody else; kill -9 cannot be handed on at all. So a child asks the kernel to be told
when its parent is gone (prctl, PR_SET_PDEATHSIG; Linux alone).
"""

from __future__ import annotations

import os
import signal
import sys

PARENT = "HEADWATER_PARENT"
"""The variable in which a process tells those that it starts its number."""

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to end this process with its parent, if that is torchrun or one that has said so.

    A worker of torchrun is killed: torchrun puts its workers into sessions of their own, so a kill -9 of torchrun would
    leave them training, beside those that a new torchrun starts. Any other child is sent SIGTERM, upon which it saves.
    """
    told = os.environ.pop(PARENT, None)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid(), signal.SIGKILL)
    elif told is not None:
        end_with(int(told), signal.SIGTERM)


def end_with(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Asks the kernel to send this process a signal when its parent, the process of this number, is gone."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:  # it died just before the kernel was asked
        os.kill(os.getpid(), how)
