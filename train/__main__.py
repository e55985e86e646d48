"""Pretrains a model.

    torchrun --nproc-per-node 2 -m headwater.train configs/pretrain/tiny.yaml out=runs/tiny train.steps=20

Started again on the same run directory it goes on from the newest whole checkpoint, at any world size and layout.
"""

from __future__ import annotations

import os
import sys

from headwater.configs import load_config
from headwater.configs.errors import UserError, refusals
from headwater.train.ending import REFUSED, note_ending
from headwater.train.lifetime import die_with_parent
from headwater.train.settings import PretrainSettings

USER_ERROR = 2


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
