"""What the study of storage trains on: people, a tokenizer, and a corpus for each way of writing their biographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from headwater.train.artifacts import read_json, remove, write_bytes
from headwater.train.corpus.encoding import end_of
from headwater.train.corpus.injected import FactPassages
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.corpus.writing import build_shard, join_corpus, manifest_head, plan_shards, publish_corpus
from headwater.train.facts.biographies import (
    Biography,
    Individual,
    QuestionAnswer,
    Variant,
    biographies,
    make_population,
    questions,
    split_people,
)
from headwater.train.facts.draws import generator
from headwater.train.facts.settings import PopulationSettings
from headwater.train.facts.types import FactPassage
from headwater.train.tokenizer import TextTokenizer, train_tokenizer

CELEBRITY = "celebrity"
"""Rich biographies of the people whose questions are trained on, and poor ones of those who are asked."""
MAIN, PLAIN = "multi5+permute", "single"
"""The variants of the main comparison."""
ONCE = "single+permute1"
"""That of those who are no celebrities."""
REWRITTEN = "rewritten-"
"""Before a percentage: the share of the people whose biographies are rich; those of the others are `PLAIN`."""


def rewritten_name(share: float) -> str:
    """The variant in which the biographies of a share of the people are rewritten."""
    return f"{REWRITTEN}{100 * share:g}"


@dataclass(frozen=True)
class Population:
    """The people of one seed, in the two halves of the study.

    Attributes:
        taught: numbers of those whose questions are trained on.
        asked: numbers of those who are only asked.
    """

    settings: PopulationSettings
    seed: int

    @cached_property
    def people(self) -> list[Individual]:
        return make_population(self.settings, self.seed)

    @cached_property
    def taught(self) -> list[int]:
        return split_people(self.settings.people, self.seed)[0]

    @cached_property
    def asked(self) -> list[int]:
        return split_people(self.settings.people, self.seed)[1]

    def biographies(self, variant: str, people: Sequence[int] | None = None) -> list[list[Biography]]:
        """The passages of each person (all, or those of the numbers)."""
        chosen = range(len(self.people)) if people is None else people
        names, favoured = (variant, variant), set(self.taught)
        if variant == CELEBRITY:
            names = (MAIN, ONCE)
        elif variant.startswith(REWRITTEN):
            names, favoured = (MAIN, PLAIN), self.rewritten(float(variant.removeprefix(REWRITTEN)) / 100)
        rich, poor = map(Variant.parse, names)
        return [
            list(biographies(self.people[n], rich if n in favoured else poor, self.settings.wordings, self.seed))
            for n in chosen
        ]

    def rewritten(self, share: float) -> set[int]:
        """Numbers of the people whose biographies are rewritten, the share of either half; a smaller share's are among
        a larger one's."""
        halves = [generator(self.seed, 27, k).permutation(half) for k, half in enumerate((self.taught, self.asked))]
        return {int(n) for half in halves for n in half[: round(share * len(half))]}

    def questions(self, people: Sequence[int]) -> list[QuestionAnswer]:
        return [each for number in people for each in questions(self.people[number])]

    def shuffled_questions(self) -> list[QuestionAnswer]:
        """The questions about the asked people, each with the answer that is right of another asked person, the same
        one for all of a person's: whoever answers these answers from what is common."""
        order = generator(self.seed, 28).permutation(self.asked)
        other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
        return [
            replace(each, target=self.people[other[each.person]].values[each.attribute])
            for each in self.questions(self.asked)
        ]


def ensure_tokenizer(path: Path, population: Population, vocab_size: int) -> TextTokenizer:
    """One tokenizer for all runs of a seed, trained on the richest biographies and on all questions."""
    if not path.exists():
        texts = [each.text for passages in population.biographies(MAIN) for each in passages]
        texts += [each.text for each in population.questions(range(len(population.people)))]
        train_tokenizer(texts, vocab_size).save(path)
    return TextTokenizer.from_file(path)


def ensure_corpus(
    out: Path, corpus: CorpusSettings, population: Population, tokenizer_path: Path, variant: str | None, share: float
) -> None:
    """Makes a corpus directory, whole or not at all: biographies of a variant, questions of the taught half, or both.

    Passages of one person never share a sequence.

    Args:
        variant: of the biographies; None leaves them out.
        share: of the training's rows that hold questions; 0 leaves them out.
    """
    if (out / "manifest.json").exists():
        return
    tokenizer = TextTokenizer.from_file(tokenizer_path)
    sources: list[tuple[str, list[FactPassage]]] = []
    if variant is not None:
        told = [each for passages in population.biographies(variant) for each in passages]
        sources.append(("biographies", [FactPassage(each.id, each.text, [], "gold") for each in told]))
    if share > 0:
        asked = population.questions(population.taught)
        sources.append(("questions", [FactPassage(each.id, each.text, [], "question") for each in asked]))
    write_corpus(out, corpus, tokenizer, tokenizer_path, sources, share, population.seed)


def write_corpus(
    out: Path,
    corpus: CorpusSettings,
    tokenizer: TextTokenizer,
    tokenizer_path: Path,
    sources: list[tuple[str, list[FactPassage]]],
    share: float,
    seed: int,
) -> None:
    passages = FactPassages([each for _, members in sources for each in members], tokenizer, end_of(tokenizer, corpus))
    work = out.with_name(f"{out.name}.shards")
    remove(work)
    work.mkdir(parents=True)
    bounds = np.cumsum([0, *(len(members) for _, members in sources)])
    orders = [
        low + generator(seed, 25, place).permutation(high - low)
        for place, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    ]
    plans, counts = plan_shards(passages.lengths, orders, corpus.shard_tokens)
    for plan in plans:
        build_shard(work / plan.name, plan, passages, bos_id=tokenizer.bos_id, seq_len=corpus.seq_len, apart=True)
    describe = {
        **manifest_head(corpus, tokenizer),
        "documents": len({each.document for each in passages.passages}),
        "tokens": int(passages.lengths.sum()) + len(passages.passages),
        "passages": len(passages.passages),
    }
    write_bytes(work / "tokenizer.json", tokenizer_path.read_bytes())
    names = [(name, 1.0) for name, _ in sources]
    join_corpus(work, plans, counts, describe, names)
    if len(sources) > 1:
        # The weight that gives the questions their share of the rows depends on how many sequences there are of each.
        told, asked = (span["sequences"] for span in read_json(work / "manifest.json")["sources"])
        join_corpus(work, plans, counts, describe, [names[0], (names[1][0], share / (1 - share) * told / asked)])
    publish_corpus(work, out, plans)
