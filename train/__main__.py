"""Pretrains a model.

    torchrun --nproc-per-node 2 -m headwater.train configs/pretrain/tiny.yaml out=runs/tiny train.steps=20

Started again on the same run directory it goes on from the newest whole checkpoint, at any world size and layout.
"""

from __future__ import annotations

import sys

from headwater.configs import load_config
from headwater.configs.errors import UserError
from headwater.train.settings import PretrainSettings


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        settings = load_config(PretrainSettings, arguments[0], arguments[1:])
        return pretrain(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def pretrain(settings: PretrainSettings) -> int:
    """Makes the run's corpus if it is not there, then trains to the end; returns the exit status."""
    from headwater.train.run import pretrain_run

    return pretrain_run(settings)


if __name__ == "__main__":
    sys.exit(main())
