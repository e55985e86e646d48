"""Makes an index under torchrun.

torchrun --nproc-per-node 2 -m headwater.attribution.index index/run model.run=runs/demo
"""

from __future__ import annotations

import sys

from headwater.attribution.settings import IndexSettings
from headwater.configs import load_config
from headwater.train.ending import FINISHED, answered, note_ending, report_ending
from headwater.train.lifetime import die_with_parent


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    die_with_parent()
    report_ending()

    def index(settings: IndexSettings) -> None:
        from headwater.attribution.index.build import build_index

        print(build_index(settings), flush=True)

    status = answered(lambda: load_config(IndexSettings, arguments[0], arguments[1:]), index)
    if not status:
        note_ending(FINISHED)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
