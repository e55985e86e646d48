"""Makes the index of what a run has captured so far.

python -m headwater.attribution.capture RUN [STEP]     # RUN/index/captured, from the sums that a checkpoint holds
"""

from __future__ import annotations

import sys

from headwater.attribution.capture.build import build_captured
from headwater.train.artifacts import RunDir
from headwater.train.ending import answered


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2) or not all(step.isdecimal() for step in arguments[1:]):
        print(__doc__)
        return 2
    step = int(arguments[1]) if len(arguments) == 2 else None
    return answered(lambda: RunDir.at(arguments[0]), lambda run: print(build_captured(run, step)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
