"""Does choosing what a model is trained on by its gradients make it better at a task?

    headwater study selection                              # the preset study/selection, two CPU cores
    headwater study selection out=DIR shuffled=0           # without the documents whose words are shuffled

For each seed a model is trained on a whole corpus and its passages are scored for a task with `headwater select`. New
models are trained, as long and from the same weights, on the half that scored best, on the half that BM25 names for the
same questions, and on a random half; all are asked questions of documents that nobody chose with or was trained on.

    OUT/seed-0/documents.jsonl  choosing.jsonl  judging.jsonl
    OUT/seed-0/whole/           the whole corpus's model and its index
    OUT/seed-0/chosen/          what each way left out
    OUT/seed-0/headwater/ ...   the model of a half
    OUT/summary.json  OUT/table.md  OUT/report/index.html

Every part is an ordinary run directory; a study that was killed goes on with the parts that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater.launch.parts.pool import make_parts
from headwater.launch.parts.settings import keep_whole_study
from headwater.launch.studies.lds.outputs import CALLBACK
from headwater.launch.studies.selection.parts import SelectionPart
from headwater.launch.studies.selection.settings import (
    ARMS,
    WHOLE,
    SelectionSettings,
    drawn_from,
    excluded_file,
    seed_path,
    training_overrides,
)
from headwater.train.corpus.documents import read_documents


class Selection:
    """One study."""

    def __init__(self, settings: SelectionSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary.

        Raises:
            ConfigError, MissingError, MismatchError: nothing is run.
            UserError: a part failed; the others are finished.
        """
        from headwater.launch.studies.selection.page import write_report
        from headwater.launch.studies.selection.summary import summarise

        parts = self.parts()
        for source in drawn_from(self.settings):
            next(read_documents(source), None)
        keep_whole_study(self.settings)
        make_parts(parts, self.settings.parallel, self.say)
        summary = summarise(self.settings)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[SelectionPart]:
        """Of each seed in turn: the model of the whole corpus, then one of each half that was chosen with it."""
        found: list[SelectionPart] = []
        for number in self.settings.seeds:
            whole = self._part(number, WHOLE, [])
            found += [whole, *(self._half(number, arm, whole) for arm in ARMS)]
        return found

    def _half(self, number: int, arm: str, whole: SelectionPart) -> SelectionPart:
        excluded = excluded_file(seed_path(self.out, number), arm)
        return self._part(number, arm, [f"train.exclude={excluded}"], after=(whole.name,))

    def _part(self, number: int, arm: str, further: list[str], after: tuple[str, ...] = ()) -> SelectionPart:
        path = seed_path(self.out, number) / arm
        further = [f"callbacks.extra=[{CALLBACK}]", *further]
        overrides = training_overrides(self.settings, number, path, further)
        return SelectionPart.planned(path, {"arm": arm, "seed": number}, self.settings.preset, overrides, after)


def run_selection(settings: SelectionSettings) -> dict[str, Any]:
    """Runs the study and prints its table and claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show
    from headwater.launch.studies.selection.page import tables

    return run_and_show(lambda say: Selection(settings, say).run(), settings.out, tables)
