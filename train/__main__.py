"""Pretrains a model.

    torchrun --nproc-per-node 2 -m headwater.train pretrain/tiny out=runs/tiny train.steps=20

Started again on the same run directory it goes on from the newest whole checkpoint, at any world size and layout.
"""

from __future__ import annotations

import os
import sys
import time

from headwater.configs import load_config
from headwater.configs.errors import UserError, refusals
from headwater.train.ending import REFUSED, note_ending, report_ending
from headwater.train.lifetime import die_with_parent
from headwater.train.settings import PretrainSettings

PEER_GONE, USER_ERROR = 1, 2

PEER_S = 2.0
"""How long a process waits for the one that knows the cause to end first: torchrun goes by that one's status."""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    die_with_parent()
    report_ending()
    try:
        with refusals():
            settings = load_config(PretrainSettings, arguments[0], arguments[1:])
    except UserError as error:
        # The processes of a machine read the same file.
        return failed(error, said=os.environ.get("LOCAL_RANK", "0") != "0")
    try:
        with refusals():
            return pretrain(settings)
    except UserError as error:
        return failed(error, said=getattr(error, "is_said", False))
    except RuntimeError as error:
        if not is_peer_gone(error):
            raise
        time.sleep(PEER_S)
        rank = os.environ.get("RANK")
        print(f"rank {rank}: ended, since another process has gone; it says why", file=sys.stderr, flush=True)
        return PEER_GONE


def is_peer_gone(error: RuntimeError) -> bool:
    """Whether what failed is the connection with a process that has ended: gloo's words, and NCCL's."""
    return any(text in str(error) for text in ("closed by peer", "reset by peer", "remote process exited"))


def failed(error: UserError, *, said: bool) -> int:
    """Says what is wrong, unless another process of the job does; returns the exit status."""
    note_ending(REFUSED)
    if not said:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return USER_ERROR


def pretrain(settings: PretrainSettings) -> int:
    """Makes the run's corpus if it is not there, then trains to the end; returns the exit status."""
    from headwater.train.run import pretrain_run

    return pretrain_run(settings)


if __name__ == "__main__":
    sys.exit(main())
