"""Building what a run trains on: `build_corpus(cfg)` makes the tokenizer, the base corpus, the facts, the injected
corpus and the schedule.

    headwater corpus pretrain/tiny out=runs/tiny

Each artifact is made once, appears whole or not at all, and carries the fingerprint of what it was made from: a build
that was killed goes on where it was, one that is complete is left alone, and one made from another configuration is
refused. The result does not depend on `corpus.workers`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from headwater.configs.errors import CorruptError, UserError
from headwater.train.artifacts import (
    RunDir,
    fingerprint,
    read_json,
    remove,
    remove_parts,
    require_directory,
    require_match,
    require_own,
    undone_on_error,
    write_bytes,
    write_json,
)
from headwater.train.corpus.encoding import end_of
from headwater.train.corpus.injected import check_lengths, ensure_facts
from headwater.train.corpus.origin import ORIGIN, check_origin, describe_corpus, found_again, note_made, note_start
from headwater.train.corpus.parts import Gathered, gathered
from headwater.train.corpus.pools import run_jobs
from headwater.train.corpus.prebuilt import adopt_tables, keep_here, kept_here, placed
from headwater.train.corpus.sample import tokenizer_texts
from headwater.train.corpus.settings import BuildSettings, CorpusSettings
from headwater.train.corpus.tokenising import write_parts
from headwater.train.corpus.writing import (
    Progress,
    ShardPlan,
    build_shard,
    join_corpus,
    manifest_head,
    plan_shards,
    publish_corpus,
    table_path,
)
from headwater.train.facts.draws import generator
from headwater.train.facts.families import planted_facts
from headwater.train.facts.types import FactSet
from headwater.train.locks import file_lock
from headwater.train.stream.corpus import open_corpus
from headwater.train.tokenizer import TextTokenizer, train_tokenizer


def build_corpus(cfg: BuildSettings, progress: Progress = lambda line: None) -> None:
    """Makes everything of the stream that a run needs and does not have yet.

    Args:
        cfg: the run's settings; `out`, `seed`, `corpus`, `facts` and `train.steps` matter here.
        progress: told in one line what is being done.

    Raises:
        MismatchError: the run holds a corpus made from another configuration.
        UserError: a source cannot be read; what an earlier build has finished stays, this one leaves nothing.
    """
    run = RunDir.at(cfg.out)
    require_directory(run.path)
    shards = [f"{name}.shards" for name in ("base", run.held_out.name, "injected")]
    made = ("base", "base.parts", run.held_out.name, "injected", *shards, "origin.json", "made.json")
    with (
        file_lock(run.corpus / "build", say=progress),
        undone_on_error(*(run.corpus / name for name in made), run.tokenizer, run.facts) as undo,
    ):
        require_own(run.path, names_at_stake(run), ORIGIN)
        facts = planted_facts(cfg.facts, cfg.facts.seed_in(cfg.seed))
        require_whole(run.corpus / "base")
        corpus = found_again(cfg.corpus, run)
        origin = check_origin(run, describe_corpus(corpus, facts) | note_start(corpus, run))
        remove_parts(run.corpus, "tokenizer.*")
        remove_parts(run.facts)
        tokenizer = ensure_tokenizer(run, corpus, facts, progress)
        check_lengths(facts.passages, tokenizer, corpus.max_tokens, end_of(tokenizer, corpus))
        ensure_base(run, corpus, tokenizer, origin["base"], progress, undo)
        ensure_facts(run, cfg, facts, tokenizer, progress)


def require_whole(base: Path) -> None:
    """Refuses a base corpus without its manifest: it came into its place whole, and has lost it since."""
    if base.exists() and not (base / "manifest.json").is_file():
        raise CorruptError(
            f"{base} has lost its manifest.json", fix=f"restore the file, or remove {base} to build it again"
        )


def names_at_stake(run: RunDir) -> list[str]:
    """What a build may write or take away in a run directory, and whatever else stands beside it in corpus/."""
    there = [each.name for each in run.corpus.iterdir() if not each.name.startswith("build.")]
    return [run.tokenizer.name, run.facts.name, *(f"{run.corpus.name}/{name}" for name in sorted(there))]


def ensure_tokenizer(run: RunDir, corpus: CorpusSettings, facts: FactSet, progress: Progress) -> TextTokenizer:
    """The run's tokenizer.json: the configured file's, or trained on the documents and the invented passages."""
    settings = corpus.tokenizer
    if not run.tokenizer.exists():
        if corpus.prebuilt:
            adopt_tables(corpus, run.corpus / "base.shards")
            tokenizer = TextTokenizer.from_file(run.corpus / "base.shards" / "tokenizer.json", settings.bos)
        elif settings.path:
            tokenizer = TextTokenizer.from_file(settings.path, settings.bos)
        else:
            progress(f"training a tokenizer of {settings.vocab_size} tokens")
            invented = (passage.text for passage in facts.passages)
            tokenizer = train_tokenizer(itertools.chain(tokenizer_texts(corpus), invented), settings.vocab_size)
        work = run.corpus / f"tokenizer.{os.getpid()}.part"
        tokenizer.save(work)
        note_made(run, work)
        os.replace(work, run.tokenizer)
    return TextTokenizer.from_file(run.tokenizer)


def ensure_base(
    run: RunDir, corpus: CorpusSettings, tokenizer: TextTokenizer, origin: str, progress: Progress, undo: list[Path]
) -> None:
    """The base corpus, in three steps that each keep what they have finished: parts, shards, the joined directory."""
    out = run.corpus / "base"
    parts_directory, work = run.corpus / "base.parts", run.corpus / "base.shards"
    if (out / "manifest.json").exists():
        remove(parts_directory)  # left by a build killed at its very end
        found = open_corpus(out)
        if not corpus.prebuilt:
            require_match(
                f"{out} is not the corpus that this run was built with",
                str(found.manifest.get("origin")),
                origin,
                f"restore it, or remove {run.corpus} and build it again",
            )
        require_tokenizer(out, tokenizer)
        found.check_sizes()
        if found.shards.is_remote:
            keep_here(out, corpus)
        return
    if corpus.prebuilt:
        progress(f"adopting the corpus at {corpus.prebuilt}")
        adopt_tables(corpus, work)
        require_tokenizer(work, tokenizer)
        work.rename(out)
        return
    require_same_work(parts_directory, work, fingerprint([origin, tokenizer.fingerprint]))
    sources = write_parts(parts_directory, corpus, run.tokenizer, progress)
    paths = tuple(path for source in sources for path in source)
    gathered.cache_clear()  # another corpus may have been built at the same paths
    passages = gathered(paths)
    check_documents(passages)
    if not len(passages):
        raise UserError(
            "the corpus has no text",
            got=f"{passages.documents} documents with no passages",
            expected="at least one passage",
            fix="check path, kind and text_field of each source",
        )
    held = passages.drawn(corpus.held_out, corpus.seed)
    if corpus.held_out and (held.all() or not held.any()):
        raise UserError(
            "corpus.held_out leaves nothing to train on" if held.all() else "corpus.held_out draws no document",
            got=f"a share of {corpus.held_out} of {passages.documents} documents",
            fix="change the share, or give more documents",
        )
    undo.clear()  # the documents are as they should be: an upload that fails, say, does not cost the work so far
    counts = [len(source) for source in sources]
    build = Packing(corpus, tokenizer, run.tokenizer, passages, paths, counts, progress)
    unmarked = {"origin": origin, **kept_here(corpus), "window": corpus.window}
    if corpus.held_out and not (run.held_out / "manifest.json").exists():
        build.corpus_of(held, run.held_out, run.held_out.with_suffix(".shards"), "", {"origin": origin})
    build.corpus_of(~held, out, work, corpus.remote, unmarked | placed(corpus.remote, work))
    gathered.cache_clear()
    remove(parts_directory)


@dataclass(frozen=True, slots=True)
class Packing:
    """The second half of a build: passages that are chosen become a corpus directory."""

    corpus: CorpusSettings
    tokenizer: TextTokenizer
    tokenizer_file: Path
    passages: Gathered
    paths: tuple[Path, ...]
    parts_of_source: list[int]
    progress: Progress

    def corpus_of(self, chosen: np.ndarray, out: Path, work: Path, remote: str, unmarked: dict[str, Any]) -> None:
        """Packs the passages with a True in `chosen`, bool [passages], into shards in `work` and publishes them."""
        corpus, passages, tokenizer = self.corpus, self.passages, self.tokenizer
        orders = shuffled_orders(passages, self.parts_of_source, corpus, chosen)
        plans, counts = plan_shards(passages.lengths, orders, corpus.shard_tokens)
        work.mkdir(parents=True, exist_ok=True)
        packed = sum(len(plan.order) for plan in plans)
        self.progress(f"packing {packed:,} passages of {len(self.paths)} parts into {len(plans)} shards")
        waiting = [plan for plan in plans if not table_path(work / plan.name).exists()]
        every = corpus.begin_token == "every"
        jobs = ((work, plan, self.paths, tokenizer.bos_id, corpus.seq_len, every) for plan in waiting)
        run_jobs(shard_job, jobs, corpus.workers, corpus.engine)
        numbers = np.concatenate([plan.order for plan in plans])
        tokens = int(passages.lengths[numbers].sum())
        tokens += len(numbers) if every else int(passages.first[numbers].sum())
        describe = {**manifest_head(corpus, tokenizer), "documents": passages.documents, "tokens": tokens}
        describe["passages"] = len(numbers)
        names = [
            (f"{source.kind}:{source.path}" if source.path else source.kind, source.weight) for source in corpus.sources
        ]
        write_bytes(work / "tokenizer.json", self.tokenizer_file.read_bytes())
        join_corpus(work, plans, counts, describe, names, **unmarked)
        publish_corpus(work, out, plans, remote)


def require_tokenizer(directory: Path, tokenizer: TextTokenizer) -> None:
    """Refuses a corpus that was made with another tokenizer than the run's."""
    require_match(
        f"{directory} was made with another tokenizer than the run's tokenizer.json",
        read_json(directory / "manifest.json").get("tokenizer"),
        tokenizer.fingerprint,
        "restore tokenizer.json, or choose another `out`",
    )


def require_same_work(parts: Path, work: Path, origin: str) -> None:
    """Keeps the unfinished work of a killed build if it is of this configuration, else starts afresh."""
    marker = parts / "origin.json"
    if not marker.exists() or read_json(marker) != origin:
        remove(parts)
        remove(work)
        write_json(marker, origin)
    work.mkdir(parents=True, exist_ok=True)


def shard_job(work: Path, plan: ShardPlan, paths: tuple[Path, ...], bos_id: int, seq_len: int, every: bool) -> None:
    build_shard(work / plan.name, plan, gathered(paths), bos_id=bos_id, seq_len=seq_len, apart=False, begin_every=every)


def check_documents(passages: Gathered) -> None:
    """Refuses two documents of one id: their passages could not be told apart."""
    # Hashes, since the ids of a large corpus do not fit into memory; two that share a hash are compared.
    hashes = [np.array(part.id_hashes) for part in passages.opened()]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    seen: set[str] = set()
    for part in passages.opened():
        for document in map(part.document, range(part.documents)):
            if document in seen:
                fix = "make ids unique, or set the source's id_field to a field that is"
                raise UserError(f"two documents have the id {document!r}", expected="an id for each", fix=fix)
            if xxhash.xxh3_64_intdigest(document) in suspects:
                seen.add(document)


def shuffled_orders(
    passages: Gathered, parts_of_source: list[int], corpus: CorpusSettings, chosen: np.ndarray
) -> list[np.ndarray]:
    """The chosen passages of each source in shuffled order, after the choice of `corpus.passages` of all."""
    order = generator(corpus.seed, 3).permutation(len(passages))
    order = order[chosen[order]]
    if corpus.passages:
        order = order[: corpus.passages]
    bounds = passages.starts[np.concatenate([[0], np.cumsum(parts_of_source)])]
    return [order[(order >= low) & (order < high)] for low, high in itertools.pairwise(bounds.tolist())]
