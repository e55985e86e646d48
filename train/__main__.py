"""Pretrains a model.

    torchrun --nproc-per-node 2 -m headwater.train pretrain/tiny out=runs/tiny train.steps=20

Started again on the same run directory it goes on from the newest whole checkpoint, at any world size and layout.
"""

from __future__ import annotations

import sys

from headwater.configs import load_config
from headwater.train.ending import answered, report_ending
from headwater.train.lifetime import die_with_parent
from headwater.train.settings import PretrainSettings


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    die_with_parent()
    report_ending()
    return answered(lambda: load_config(PretrainSettings, arguments[0], arguments[1:]), pretrain)


def pretrain(settings: PretrainSettings) -> int:
    """Makes the run's corpus if it is not there, then trains to the end; returns the exit status."""
    from headwater.train.run import pretrain_run

    return pretrain_run(settings)


if __name__ == "__main__":
    sys.exit(main())
