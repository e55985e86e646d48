"""The invented passages of a run: their files, the corpus that is injected, and the compiled schedule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from headwater.configs.errors import MismatchError, UserError
from headwater.train.artifacts import RunDir, fingerprint, read_json, remove, write_json
from headwater.train.corpus.encoding import encode_documents, end_of
from headwater.train.corpus.origin import VERSION
from headwater.train.corpus.parts import Piece
from headwater.train.corpus.settings import BuildSettings, CorpusSettings
from headwater.train.corpus.writing import (
    Progress,
    build_shard,
    join_corpus,
    manifest_head,
    plan_shards,
    publish_corpus,
)
from headwater.train.facts.draws import generator
from headwater.train.facts.injection import compile_schedule, write_schedule
from headwater.train.facts.settings import FactsSettings
from headwater.train.facts.types import FactPassage, FactSet, write_facts
from headwater.train.tokenizer import TextTokenizer


class FactPassages:
    """Invented passages as `writing.Passages`."""

    def __init__(self, passages: list[FactPassage], tokenizer: TextTokenizer, end: int | None = None) -> None:
        self.passages = passages
        self.encoded = encode_documents(tokenizer, [passage.text for passage in passages], end)
        self.lengths = np.array([len(tokens) for tokens in self.encoded], dtype=np.int32)

    def gather(self, numbers: np.ndarray) -> list[Piece]:
        return [Piece(self.passages[n].document, self.passages[n].id, self.encoded[n]) for n in numbers.tolist()]


def check_lengths(
    passages: list[FactPassage], tokenizer: TextTokenizer, max_tokens: int, end: int | None = None
) -> None:
    """Refuses invented passages that are longer than passages may be: they are injected whole.

    Raises:
        UserError: naming the longest.
    """
    if not passages:
        return
    lengths = FactPassages(passages, tokenizer, end).lengths
    longest = int(np.argmax(lengths))
    if lengths[longest] + 1 > max_tokens:
        raise UserError(
            f"invented passage {passages[longest].id} is too long",
            got=f"{lengths[longest] + 1} tokens",
            expected=f"at most corpus.max_tokens = {max_tokens}",
            fix="raise corpus.max_tokens, or train the tokenizer on the corpus (corpus.tokenizer.path empty)",
        )


def ensure_facts(run: RunDir, cfg: BuildSettings, facts: FactSet, tokenizer: TextTokenizer, progress: Progress) -> None:
    """The facts' files, the injected corpus and the compiled schedule."""
    seed = cfg.facts.seed_in(cfg.seed)
    if facts.passages:
        settings = described_facts(cfg.facts, facts)
        made_from = [VERSION, settings, seed, cfg.train.steps, cfg.corpus.seq_len, tokenizer.fingerprint]
        end = end_of(tokenizer, cfg.corpus)
        origin = fingerprint([*made_from, *([] if end is None else [{"end": end}])])
    else:
        origin = fingerprint([VERSION, "no facts"])
    marker = run.facts / "origin.json"
    if marker.exists():
        if read_json(marker) != origin:
            raise MismatchError(
                f"{run.facts} was made from another configuration (facts, seed, steps, corpus.seq_len or end_token)",
                got=read_json(marker),
                expected=origin,
                fix=f"choose another `out`, or remove {run.facts} and {run.corpus / 'injected'}",
            )
        return
    write_facts(facts, run.facts)
    if facts.passages:
        progress(f"writing {len(facts.passages):,} invented passages and their schedule")
        write_injected(run, cfg.corpus, facts, tokenizer, seed)
        groups: dict[str, list[str]] = {}
        for passage in facts.passages:
            groups.setdefault(passage.document, []).append(passage.id)
        schedule = compile_schedule(groups, cfg.facts.schedule, cfg.train.steps, seed)
        write_schedule(schedule, run.facts / "schedule.parquet")
    write_json(marker, origin)


def described_facts(settings: FactsSettings, facts: FactSet) -> dict[str, Any]:
    """What the planted passages depend on, beside their seed. Real facts go by what is planted, which an installed
    package says; where there are none they are not named, so that corpora built before they were there stay the same.
    """
    described = {name: value for name, value in asdict(settings).items() if name != "seed"}
    real = [described.pop(name) for name in ("countries", "elements")]
    return {**described, "real": [real, [passage.text for passage in facts.passages]]} if any(real) else described


def write_injected(run: RunDir, corpus: CorpusSettings, facts: FactSet, tokenizer: TextTokenizer, seed: int) -> None:
    """The injected corpus: invented passages whole, shuffled, a person's never in one sequence."""
    passages = FactPassages(facts.passages, tokenizer, end_of(tokenizer, corpus))
    work, out = run.corpus / "injected.shards", run.corpus / "injected"
    remove(work)
    remove(out)
    work.mkdir(parents=True)
    order = generator(seed, 4).permutation(len(facts.passages))
    plans, counts = plan_shards(passages.lengths, [order], corpus.shard_tokens)
    for plan in plans:
        build_shard(work / plan.name, plan, passages, bos_id=tokenizer.bos_id, seq_len=corpus.seq_len, apart=True)
    describe = {
        **manifest_head(corpus, tokenizer),
        "documents": len({passage.document for passage in facts.passages}),
        "tokens": int(passages.lengths.sum()) + len(facts.passages),
        "passages": len(facts.passages),
    }
    join_corpus(work, plans, counts, describe, [("facts", 1.0)])
    publish_corpus(work, out, plans)
