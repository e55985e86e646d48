"""Traces under torchrun: with models that are too large for one process, or over several that share the index out.

torchrun --nproc-per-node 8 -m headwater.attribution.tracing trace/default index=DIR queries=FILE parallel.tensor=8
"""

from __future__ import annotations

import sys

from headwater.attribution.settings import TraceSettings
from headwater.configs import load_config
from headwater.train.ending import answered


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2

    def trace(settings: TraceSettings) -> None:
        from headwater.attribution.tracing.run import run_trace

        run_trace(settings)

    return answered(lambda: load_config(TraceSettings, arguments[0], arguments[1:]), trace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
