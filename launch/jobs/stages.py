"""The stages that can be launched: their settings, where they write, what they need, and the command that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headwater.configs import load_config
from headwater.configs.errors import MissingError, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        schema: `module:class` of its settings.
        module: what torchrun runs in many processes; None: the stage is one process of the `headwater` command.
        preset: the configuration where none is given.
        place: of its settings: the directory for the script and the logs; None where the settings name none.
        needs: of its settings: what must be there, and what makes it.
        position: shell text that prints how far the work is, for a chain; None: the stage notes it itself.
        goes_on: started again, it goes on where it was told to stop.
    """

    schema: str
    module: str | None = None
    preset: str | None = None
    place: Callable[[Any], str | None]
    needs: Callable[[Any], Iterator[tuple[str, str]]] = lambda settings: iter(())
    position: Callable[[str], str] | None = None
    goes_on: bool = False

    def load(self, config: str | None, overrides: list[str]) -> Any:
        """Its settings, checked."""
        module, name = self.schema.split(":")
        return load_config(getattr(import_module(module), name), config or self.preset, overrides)


def work_place(name: str, stage: Stage, settings: Any) -> Path:
    """Where the script and the logs go.

    Raises:
        UserError: the settings say nowhere to write, so that the results would be lost.
    """
    place = stage.place(settings)
    if not place:
        raise UserError(f"{name} on a cluster writes what it finds to a file", expected="out=", fix="set out=PATH")
    return Path(place)


def require_inputs(stage: Stage, settings: Any) -> None:
    """Refuses what cannot be done for want of files, before anything is queued.

    Raises:
        MissingError: naming the first that is not there.
    """
    for path, fix in stage.needs(settings):
        if "://" not in path and not Path(path).exists():
            raise MissingError(f"{path} is missing", fix=fix)


def _corpus_needs(settings: Any) -> Iterator[tuple[str, str]]:
    from headwater.train.corpus.files import source_files

    corpus, restore = settings.corpus, "correct the path, or restore what was there"
    made = Path(settings.out) / "corpus" / "base" / "manifest.json"
    if not made.exists():
        if corpus.prebuilt:
            yield corpus.prebuilt, "correct corpus.prebuilt, or build the corpus first"
        else:
            for source in corpus.sources:
                if source.kind != "factbook":
                    source_files(source)  # has errors of its own
        if corpus.tokenizer.path:
            yield corpus.tokenizer.path, restore


def _pretrain_needs(settings: Any) -> Iterator[tuple[str, str]]:
    yield from _corpus_needs(settings)
    begun = any((Path(settings.out) / "checkpoints").glob("step-*"))
    if settings.model.init_from and not begun:
        yield settings.model.init_from, "correct model.init_from, or pretrain it first"
    if settings.train.exclude:
        yield settings.train.exclude, "correct train.exclude"


def _index_needs(settings: Any) -> Iterator[tuple[str, str]]:
    if settings.model.path:
        yield settings.model.path, "correct model.path, or `headwater import` the model"
    else:
        yield f"{settings.model.run}/checkpoints", "pretrain it first, or correct model.run"
    if settings.corpus.path:
        yield settings.corpus.path, "correct corpus.path"


def _query_needs(settings: Any) -> Iterator[tuple[str, str]]:
    yield f"{settings.index}/index.json", "run `headwater index` first, or correct index"
    for key in ("queries", "rows"):
        if getattr(settings, key, ""):
            yield getattr(settings, key), f"correct {key}"


def _evaluate_needs(settings: Any) -> Iterator[tuple[str, str]]:
    if settings.index:
        yield from _query_needs(settings)
    else:
        yield settings.run, "correct run"


def _out(settings: Any) -> str:
    return str(settings.out)


def _index_out(settings: Any) -> str:
    return settings.out or f"{settings.model.run}/index/{settings.name}"


def _above(settings: Any) -> str | None:
    return str(Path(settings.out).parent) if settings.out else None


def _evaluation(settings: Any) -> str:
    return settings.run if not settings.index else settings.out or f"{settings.index.rstrip('/')}-evaluation"


def _index_position(place: str) -> str:
    """A shard has a record when it is whole; of the others a file notes which windows are written, a line each."""
    windows = f"cat {place}/rows-*.windows 2>/dev/null | grep -cE '^ +[0-9]+,?$'"
    return f"echo $(find {place} -name 'rows-*.json' | wc -l) shards and $({windows}) windows"


_TRAINING, _TRACING = "headwater.train.settings", "headwater.attribution.settings"
_STUDIES = ("acquisition", "storage", "overlearnt", "lds", "selection")

STAGES = {
    "corpus": Stage(schema=f"{_TRAINING}:PretrainSettings", place=_out, needs=_corpus_needs, goes_on=True),
    "pretrain": Stage(
        schema=f"{_TRAINING}:PretrainSettings",
        module="headwater.train",
        place=_out,
        needs=_pretrain_needs,
        goes_on=True,
    ),
    "index": Stage(
        schema=f"{_TRACING}:IndexSettings",
        module="headwater.attribution.index",
        place=_index_out,
        needs=_index_needs,
        position=_index_position,
        goes_on=True,
    ),
    "queries": Stage(
        schema=f"{_TRACING}:QueriesSettings",
        module="headwater.attribution.tracing.asking",
        place=_above,
        needs=_query_needs,
    ),
    "trace": Stage(schema=f"{_TRACING}:TraceSettings", place=_above, needs=_query_needs),
    "select": Stage(schema="headwater.attribution.selection.settings:SelectSettings", place=_above, needs=_query_needs),
    "evaluate": Stage(schema=f"{_TRACING}:EvaluateSettings", place=_evaluation, needs=_evaluate_needs),
    "report": Stage(
        schema="headwater.attribution.report.settings:ReportSettings",
        place=lambda settings: settings.run,
        needs=lambda settings: iter([(settings.run, "correct run")]),
    ),
    "demo": Stage(schema="headwater.launch.demo:DemoSettings", preset="demo", place=_out, goes_on=True),
    "ablate": Stage(schema="headwater.launch.ablate.settings:AblateSettings", place=_out, goes_on=True),
    **{
        f"study {name}": Stage(
            schema=f"headwater.launch.studies.{name}.settings:{name.capitalize()}Settings",
            preset=f"study/{name}",
            place=_out,
            goes_on=True,
        )
        for name in _STUDIES
    },
}
"""Every stage that can be launched, as the `headwater` command names it."""


def split_stage(words: list[str]) -> tuple[str, list[str]]:
    """The stage that the first words name (a pretraining if they name none), and the words after it."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in STAGES:
            return name, words[length:]
    return "pretrain", words
