"""The questions of the study, of three kinds.

`facts`: what was planted, in wordings that training never shows; few passages decide. `cloze`: values that the corpus's
own passages state, asked with the words that stand before them. `held_out`: passages of the same documents that no
model is trained on, whole but for their first word; influence is spread thin, and matching words helps least.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from headwater.launch.studies.lds.settings import QuerySettings
from headwater.train.artifacts import RunDir
from headwater.train.corpus.parts import chosen_documents
from headwater.train.corpus.passages import PassageCutter
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import PassageSet, open_passages
from headwater.train.tokenizer import encode_query

FACTS, CLOZE, HELD_OUT = KINDS = ("facts", "cloze", "held_out")
VALUE = re.compile(r": ([^:;()]{3,40}?)[.;](?: |$)")
"""A value as the Factbook gives it: `Field: value.` or `part: value;`."""
WORDS_BEFORE = 10
LEAST_WORDS_BEFORE = 4
LEAST_WORDS = 16
"""Of a held-out passage."""


def make_queries(
    run: RunDir, pretraining: PretrainSettings, settings: QuerySettings, seed: int
) -> list[dict[str, Any]]:
    """The queries of a run whose corpus has been built, as records of queries.jsonl, which name their `kind`."""
    from headwater.attribution.tracing.queries import read_queries

    passages = open_passages(run)
    records = [{**query.record, "kind": FACTS} for query in read_queries(run.facts / "probes.jsonl")]
    records += drawn(list(cloze_queries(passages)), settings.cloze, seed, 1)
    records += drawn(list(held_out_queries(passages, pretraining)), settings.held_out, seed, 2)
    return records


def drawn(records: list[dict[str, Any]], count: int, seed: int, stream: int) -> list[dict[str, Any]]:
    """`count` of the records, or all where there are fewer, in their order."""
    chosen = np.random.default_rng([seed, 0x9E5, stream]).permutation(len(records))[:count]
    return [records[place] for place in sorted(chosen.tolist())]


def cloze_queries(passages: PassageSet) -> Iterator[dict[str, Any]]:
    """One query of each passage of the base corpus that states a value: the last one with words before it."""
    base = passages.corpora[0]
    for number in range(base.passages):
        text = passages.text(number)
        found = [match for match in VALUE.finditer(text) if len(text[: match.start(1)].split()) >= LEAST_WORDS_BEFORE]
        if found:
            before = text[: found[-1].start(1)].split()[-WORDS_BEFORE:]
            name = passages.id_of(number)
            yield {
                "example_id": f"cloze:{name}",
                "kind": CLOZE,
                "prompt": " ".join(before),
                "target": found[-1].group(1),
                "gold": [name],
            }


def held_out_queries(passages: PassageSet, pretraining: PretrainSettings) -> Iterator[dict[str, Any]]:
    """Every passage of the documents that was not taken into the corpus."""
    tokenizer, corpus = passages.tokenizer, pretraining.corpus
    cutter = PassageCutter(tokenizer, corpus.max_tokens, corpus.min_tokens)
    taken = set(passages.ids(0, len(passages)))
    for source in corpus.sources:
        for document in chosen_documents(source, corpus.seed):
            tokens = tokenizer.encode(document.text)
            cuts = cutter.cuts(tokens).tolist()
            for k in range(len(cuts) - 1):
                name = f"{document.id}#{k}"
                words = tokenizer.decode(tokens[cuts[k] : cuts[k + 1]]).split()
                if name in taken or len(words) < LEAST_WORDS:
                    continue
                # Words that now begin the text may take more tokens than they did within the document.
                if len(encode_query(tokenizer, words[0], " ".join(words[1:]))[0]) <= corpus.max_tokens:
                    yield {
                        "example_id": f"held_out:{name}",
                        "kind": HELD_OUT,
                        "prompt": words[0],
                        "target": " ".join(words[1:]),
                        "gold": [],
                    }
