"""Pretrains a model.

    torchrun --nproc-per-node 2 -m headwater.train pretrain/tiny out=runs/tiny train.steps=20

Started again on the same run directory it goes on from the newest whole checkpoint, at any world size and layout.
"""

from __future__ import annotations

import os
import sys

from headwater.configs import load_config
from headwater.configs.errors import UserError, refusals
from headwater.train.settings import PretrainSettings

USER_ERROR = 2
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    die_with_parent()
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


def failed(error: UserError, *, said: bool) -> int:
    """Says what is wrong, unless another process of the job does; returns the exit status."""
    if not said:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return USER_ERROR


def die_with_parent() -> None:
    """Under torchrun: asks the kernel to kill this process when torchrun dies.

    torchrun puts its workers into sessions of their own, so a kill -9 of torchrun, or of its process group, would leave
    them training; the job that is started in its place would then write into the same run beside them.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died just before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def pretrain(settings: PretrainSettings) -> int:
    """Makes the run's corpus if it is not there, then trains to the end; returns the exit status."""
    from headwater.train.run import pretrain_run

    return pretrain_run(settings)


if __name__ == "__main__":
    sys.exit(main())
