"""The passages of documents that no run has: cut with the model's own tokenizer and kept beside the index."""

from __future__ import annotations

from pathlib import Path

from headwater.attribution.index.writer import require_index_directory
from headwater.attribution.models.base import TracedModel
from headwater.attribution.settings import IndexSettings
from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.settings import CorpusSettings, TokenizerSettings
from headwater.train.facts.settings import FactsSettings
from headwater.train.parallel import World, on_main
from headwater.train.settings import PretrainSettings
from headwater.train.stream.corpus import PassageSet, open_passages

_SEQUENCE_TOKENS = 2048
"""Passages are stored in sequences of at least this length; the index does not depend on it."""


def passages_of_documents(settings: IndexSettings, model: TracedModel, out: Path, world: World) -> PassageSet:
    """Builds OUT/corpus and OUT/tokenizer.json, or takes up what is there; one rank builds, the others wait.

    Raises:
        MissingError: the model has no tokenizer.json.
        UserError: the documents cannot be read, or passages would be longer than the model's context.
    """
    corpus = settings.corpus
    if model.context is not None and corpus.max_tokens > model.context:
        raise UserError(
            "corpus.max_tokens is longer than the model's context",
            got=corpus.max_tokens,
            expected=f"at most {model.context}",
            fix=f"set corpus.max_tokens={model.context}",
        )
    tokenizer = Path(settings.model.path or settings.model.run) / "tokenizer.json"
    if not tokenizer.exists():
        raise MissingError(f"{tokenizer} is missing", fix="save the model's fast tokenizer beside it")
    wanted = PretrainSettings(
        out=str(out),
        corpus=CorpusSettings(
            sources=[corpus.source()],
            tokenizer=TokenizerSettings(path=str(tokenizer), bos=corpus.bos),
            max_tokens=corpus.max_tokens,
            min_tokens=min(12, corpus.max_tokens // 2),
            seq_len=max(corpus.max_tokens, _SEQUENCE_TOKENS),
        ),
        facts=FactsSettings(people=0, distractors=0),
    )

    def build() -> None:
        require_index_directory(out)
        build_corpus(wanted)

    on_main(world, build)
    return open_passages(RunDir.at(out))
