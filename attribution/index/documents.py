"""The passages of documents that no run has: cut with the model's own tokenizer and kept beside the index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headwater.attribution.index.writer import require_index_directory
from headwater.attribution.models.base import TracedModel
from headwater.attribution.settings import IndexSettings
from headwater.configs.errors import ConfigError, MismatchError, MissingError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.settings import CorpusSettings, TokenizerSettings
from headwater.train.facts.settings import FactsSettings
from headwater.train.parallel import World, on_main
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import PassageSet, open_passages
from headwater.train.tokenizer import TextTokenizer

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
    with own_keys():
        require_known_tokens(TextTokenizer.from_file(tokenizer, corpus.bos), tokenizer, model)
    wanted = PretrainSettings(
        out=str(out),
        corpus=CorpusSettings(
            sources=[corpus.source()],
            tokenizer=TokenizerSettings(path=str(tokenizer), bos=corpus.bos),
            max_tokens=corpus.max_tokens,
            min_tokens=min(12, corpus.max_tokens // 2),
            end_token=False,  # what the model was taught of documents' ends is not known
            seq_len=max(corpus.max_tokens, _SEQUENCE_TOKENS),
        ),
        facts=FactsSettings(people=0, distractors=0),
    )

    def build() -> None:
        require_index_directory(out)
        build_corpus(wanted)

    with own_keys():
        on_main(world, build)
    return open_passages(RunDir.at(out))


def require_known_tokens(tokenizer: TextTokenizer, path: Path, model: TracedModel) -> None:
    """Refuses a tokenizer that makes tokens for which the model has no embedding. Added tokens do not count: many a
    model has one for padding that it was never given a row for, and no text becomes it."""
    highest = max([tokenizer.bos_id, *tokenizer.tokenizer.get_vocab(with_added_tokens=False).values()])
    if model.vocabulary is not None and highest >= model.vocabulary:
        raise MismatchError(
            f"{path} makes tokens that the model does not know",
            got=f"tokens up to {highest}",
            expected=f"0 to {model.vocabulary - 1}, the rows of its embedding",
            fix="restore the tokenizer that was saved with this model",
        )


_KEYS = (
    (r"\bcorpus\.tokenizer\.bos\b", "corpus.bos"),
    (r"(?<![\w.])(messages_field|spans_field|chat_template)\b", r"corpus.\1"),
    (r"check path, kind and text_field of each source", "check corpus.path, corpus.kind and corpus.text_field"),
    (r"(?<![\w.])(text_field|id_field)\b(?! of)", r"corpus.\1"),
    (r"the source's (path|corpus)", r"\1"),
    (r"the source's columns", "corpus.columns"),
    (r"\bpath \(or its kind\)", "corpus.path (or corpus.kind)"),
)
"""How a pretraining's hints name what these settings call otherwise."""


@contextmanager
def own_keys() -> Iterator[None]:
    """Raises the errors of a corpus build with the keys that the settings of an index have."""
    try:
        yield
    except ConfigError:
        raise
    except UserError as error:
        told = {}
        for part in ("what", "got", "expected", "fix"):
            value = getattr(error, part)
            for pattern, key in _KEYS if isinstance(value, str) else ():
                value = re.sub(pattern, key, value)
            told[part] = value
        renamed = type(error)(told.pop("what"), **told)
        renamed.__dict__.update({key: value for key, value in error.__dict__.items() if key not in renamed.__dict__})
        raise renamed from None
