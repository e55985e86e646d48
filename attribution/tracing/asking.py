"""`headwater queries`: the rows of a file of queries, made once and saved.

headwater queries queries/default index=runs/demo/index/headwater queries=q.jsonl out=q.safetensors
headwater trace trace/default index=runs/demo/index/headwater rows=q.safetensors out=t.jsonl
torchrun --nproc-per-node 8 -m headwater.attribution.tracing.asking queries/default index=D queries=Q out=q.safetensors

The processes share the queries out, or the model (`parallel.tensor=8`), or both.
"""

from __future__ import annotations

import sys

from headwater.attribution.settings import QueriesSettings
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import read_queries
from headwater.attribution.tracing.saved_rows import QueryRows, save_rows
from headwater.configs import load_config
from headwater.train.artifacts import require_place_for_file
from headwater.train.ending import answered
from headwater.train.parallel import on_main


def run_queries(settings: QueriesSettings) -> QueryRows:
    """Makes the rows of the queries, for each index, and writes them.

    Raises:
        MissingError, MismatchError: queries, an index or its model is not there, or another one now.
    """
    queries = read_queries(settings.queries)
    require_place_for_file(settings.out, "out")
    with Attributor.open(
        settings.index, also=settings.also, model=settings.model, layout=settings.parallel
    ) as attributor:
        asked = attributor.asked(queries)
        indexes = [each.index for each in attributor.opened]
        on_main(attributor.world, lambda: save_rows(settings.out, asked, indexes))
    return asked


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2

    def make(settings: QueriesSettings) -> None:
        run_queries(settings)

    return answered(lambda: load_config(QueriesSettings, arguments[0], arguments[1:]), make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
