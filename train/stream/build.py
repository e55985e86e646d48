"""Building what a run trains on: `build_corpus(cfg)` makes the tokenizer, the base corpus, the facts, the injected
corpus and the schedule.

    headwater corpus configs/pretrain/tiny.yaml out=runs/tiny

Each artifact is made once, appears whole or not at all, and carries the fingerprint of what it was made from: a build
that was killed goes on where it was, one that is complete is left alone, and one made from another configuration is
refused. The result does not depend on `corpus.workers`.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater.configs.errors import MismatchError, UserError
from headwater.train.artifacts import RunDir, fingerprint, fingerprint_file, read_json, remove, write_bytes, write_json
from headwater.train.facts.people import FactPassage, FactSet, generator, make_facts, write_facts
from headwater.train.facts.schedule import compile_schedule, write_schedule
from headwater.train.stream.documents import describe_source
from headwater.train.stream.parts import Gathered, batches, chosen_documents, write_part
from headwater.train.stream.passages import PassageCutter
from headwater.train.stream.settings import CorpusSettings
from headwater.train.stream.shards import file_lock
from headwater.train.stream.tokenizer import TextTokenizer, train_tokenizer
from headwater.train.stream.writing import (
    Progress,
    ShardPlan,
    build_shard,
    join_corpus,
    plan_shards,
    publish_corpus,
    table_path,
)

if TYPE_CHECKING:
    from headwater.train.settings import PretrainSettings

VERSION = 1
"""Raised when the same configuration would give other bytes."""


def build_corpus(cfg: PretrainSettings, progress: Progress = lambda line: None) -> None:
    """Makes everything of the stream that a run needs and does not have yet.

    Args:
        cfg: the run's settings; `out`, `seed`, `corpus`, `facts` and `train.steps` matter here.
        progress: told in one line what is being done.

    Raises:
        MismatchError: the run holds a corpus made from another configuration.
        UserError: a source cannot be read.
    """
    run = RunDir.at(cfg.out)
    with file_lock(run.corpus / "build"):
        facts = make_facts(cfg.facts, cfg.seed)
        origin = describe_corpus(cfg.corpus, facts)
        check_origin(run.corpus / "origin.json", origin)
        tokenizer = ensure_tokenizer(run, cfg.corpus, facts, progress)
        ensure_base(run, cfg.corpus, tokenizer, origin["base"], progress)
        ensure_facts(run, cfg, facts, tokenizer, progress)


def describe_corpus(corpus: CorpusSettings, facts: FactSet) -> dict[str, Any]:
    """What the tokenizer and the base corpus are made from, each as a fingerprint, and the settings in clear."""
    settings = asdict(corpus)
    for unrelated in ("workers", "remote", "cache"):
        settings.pop(unrelated)
    sources = [describe_source(source) for source in corpus.sources]
    if corpus.tokenizer.path:
        learnt_from = fingerprint_file(corpus.tokenizer.path) if Path(corpus.tokenizer.path).is_file() else None
    else:
        learnt_from = fingerprint([sources, settings["seed"], [passage.text for passage in facts.passages]])
    tokenizer = fingerprint([VERSION, settings["tokenizer"], learnt_from])
    base = fingerprint([VERSION, settings, sources, tokenizer])
    return {"tokenizer": tokenizer, "base": base, "settings": settings, "sources": sources}


def check_origin(path: Path, origin: dict[str, Any]) -> None:
    """Records what a run's corpus is made from, or compares with what was recorded.

    Raises:
        MismatchError: naming what differs.
    """
    if not path.exists():
        write_json(path, origin)
        return
    recorded = read_json(path)
    if recorded == origin:
        return
    differing = differences(
        {**recorded.get("settings", {}), "sources": recorded.get("sources")},
        {**origin["settings"], "sources": origin["sources"]},
    )
    if not differing:
        differing = [("facts (the tokenizer is trained on them)", recorded.get("tokenizer"), origin["tokenizer"])]
    names, found, wanted = zip(*differing, strict=True)
    raise MismatchError(
        f"{path.parent} was made from another configuration ({', '.join(names)})",
        got=found if len(found) > 1 else found[0],
        expected=wanted if len(wanted) > 1 else wanted[0],
        fix=f"choose another `out`, or remove {path.parent.parent}",
    )


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = sorted({*recorded, *wanted})
    return [(key, recorded.get(key), wanted.get(key)) for key in keys if recorded.get(key) != wanted.get(key)]


def ensure_tokenizer(run: RunDir, corpus: CorpusSettings, facts: FactSet, progress: Progress) -> TextTokenizer:
    """The run's tokenizer.json: the configured file's, or trained on the documents and the invented passages."""
    settings = corpus.tokenizer
    if not run.tokenizer.exists():
        if settings.path:
            tokenizer = TextTokenizer.from_file(settings.path, settings.bos)
        else:
            progress(f"training a tokenizer of {settings.vocab_size} tokens")
            tokenizer = train_tokenizer(tokenizer_texts(corpus, facts), settings.vocab_size)
        write_bytes(run.tokenizer, tokenizer.tokenizer.to_str(pretty=True).encode())
    return TextTokenizer.from_file(run.tokenizer, settings.bos)


def tokenizer_texts(corpus: CorpusSettings, facts: FactSet) -> Iterator[str]:
    for source in corpus.sources:
        limit = corpus.tokenizer.sample
        limit = min(limit, source.documents) if limit and source.documents else limit or source.documents
        for document in chosen_documents(source, corpus.seed, limit):
            yield document.text
    for passage in facts.passages:
        yield passage.text


def ensure_base(run: RunDir, corpus: CorpusSettings, tokenizer: TextTokenizer, origin: str, progress: Progress) -> None:
    """The base corpus, in three steps that each keep what they have finished: parts, shards, the joined directory."""
    out = run.corpus / "base"
    parts_directory, work = run.corpus / "base.parts", run.corpus / "base.shards"
    if (out / "manifest.json").exists():
        remove(parts_directory)  # left by a build killed at its very end
        found = read_json(out / "manifest.json")
        if found.get("tokenizer") != tokenizer.fingerprint:
            raise MismatchError(
                f"{out} was made with another tokenizer than {run.tokenizer}",
                got=found.get("tokenizer"),
                expected=tokenizer.fingerprint,
                fix=f"restore {run.tokenizer}, or remove {run.path} and build again",
            )
        return
    require_same_work(parts_directory, work, fingerprint([origin, tokenizer.fingerprint]))
    sources = write_parts(parts_directory, corpus, tokenizer, progress)
    paths = [path for source in sources for path in source]
    gathered = Gathered(paths)
    check_documents(gathered)
    orders = shuffled_orders(gathered, [len(source) for source in sources], corpus)
    plans, counts = plan_shards(gathered.lengths, orders, corpus.shard_tokens)
    if not plans:
        raise UserError("the corpus has no text", got=f"{gathered.documents} documents", fix="check corpus.sources")
    progress(f"packing {sum(len(plan.order) for plan in plans):,} passages into {len(plans)} shards")
    waiting = [plan for plan in plans if not table_path(work / plan.name).exists()]
    jobs = ((work, plan, paths, tokenizer.bos_id, corpus.seq_len) for plan in waiting)
    run_jobs(shard_job, jobs, corpus.workers)
    tokens = sum(int(gathered.lengths[plan.order].sum()) + len(plan.order) for plan in plans)
    describe = {**manifest_head(corpus, tokenizer), "documents": gathered.documents, "tokens": tokens}
    describe["passages"] = sum(len(plan.order) for plan in plans)
    names = [
        (f"{source.kind}:{source.path}" if source.path else source.kind, source.weight) for source in corpus.sources
    ]
    join_corpus(work, plans, counts, describe, names, origin=origin, remote=corpus.remote)
    publish_corpus(work, out, plans, corpus.remote)
    remove(parts_directory)


def require_same_work(parts: Path, work: Path, origin: str) -> None:
    """Keeps the unfinished work of a killed build if it is of this configuration, else starts afresh."""
    marker = parts / "origin.json"
    if not marker.exists() or read_json(marker) != origin:
        remove(parts)
        remove(work)
        write_json(marker, origin)
    work.mkdir(parents=True, exist_ok=True)


def write_parts(
    directory: Path, corpus: CorpusSettings, tokenizer: TextTokenizer, progress: Progress
) -> list[list[Path]]:
    """Tokenises every source; returns the parts of each, in order."""
    sources: list[list[Path]] = []

    def jobs() -> Iterator[tuple[Any, ...]]:
        for number, source in enumerate(corpus.sources):
            sources.append([])
            for part, documents in enumerate(batches(chosen_documents(source, corpus.seed))):
                path = directory / f"{number:03d}-{part:06d}"
                sources[-1].append(path)
                if not path.exists():
                    progress(f"tokenising {len(documents):,} documents of source {number}, part {part}")
                    yield (
                        path,
                        documents,
                        str(tokenizer_file),
                        corpus.tokenizer.bos,
                        corpus.max_tokens,
                        corpus.min_tokens,
                    )

    tokenizer_file = directory.parent.parent / "tokenizer.json"
    run_jobs(part_job, jobs(), corpus.workers)
    return sources


def part_job(path: Path, documents: list[Any], tokenizer_file: str, bos: str, max_tokens: int, min_tokens: int) -> None:
    tokenizer = TextTokenizer.from_file(tokenizer_file, bos)
    write_part(path, documents, tokenizer, PassageCutter(tokenizer, max_tokens, min_tokens))


def shard_job(work: Path, plan: ShardPlan, paths: list[Path], bos_id: int, seq_len: int) -> None:
    build_shard(work / plan.name, plan, Gathered(paths), bos_id=bos_id, seq_len=seq_len, apart=False)


def run_jobs(job: Callable[..., None], jobs: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Runs jobs in this process, or in a pool that is given at most two jobs per worker ahead."""
    if workers == 1:
        for arguments in jobs:
            job(*arguments)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the pool is the parallelism
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: list[Future[None]] = []
        for arguments in jobs:
            running.append(pool.submit(job, *arguments))
            if len(running) >= 2 * workers:
                running.pop(0).result()
        for future in running:
            future.result()


def check_documents(gathered: Gathered) -> None:
    """Refuses two documents of one id: their passages could not be told apart."""
    seen: set[str] = set()
    for part in gathered.parts:
        for document in part.documents:
            if document in seen:
                raise UserError(
                    f"two documents have the id {document!r}",
                    fix="make ids unique, or set corpus.sources[].id_field to a field that is",
                )
            seen.add(document)


def shuffled_orders(gathered: Gathered, parts_of_source: list[int], corpus: CorpusSettings) -> list[np.ndarray]:
    """The passages of each source in shuffled order, after the choice of `corpus.passages` of all."""
    order = generator(corpus.seed, 3).permutation(len(gathered))
    if corpus.passages:
        order = order[: corpus.passages]
    bounds = gathered.starts[np.concatenate([[0], np.cumsum(parts_of_source)])]
    return [order[(order >= low) & (order < high)] for low, high in itertools.pairwise(bounds.tolist())]


def manifest_head(corpus: CorpusSettings, tokenizer: TextTokenizer) -> dict[str, Any]:
    return {
        "seq_len": corpus.seq_len,
        "max_tokens": corpus.max_tokens,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "tokenizer": tokenizer.fingerprint,
        "seed": corpus.seed,
    }


class FactPassages:
    """Invented passages as `writing.Passages`."""

    def __init__(self, passages: list[FactPassage], tokenizer: TextTokenizer) -> None:
        self.passages = passages
        self.encoded = tokenizer.encode_batch([passage.text for passage in passages])
        self.lengths = np.array([len(tokens) for tokens in self.encoded], dtype=np.int32)

    def tokens(self, passage: int) -> np.ndarray:
        return self.encoded[passage]

    def identity(self, passage: int) -> tuple[str, str]:
        return self.passages[passage].document, self.passages[passage].id


def ensure_facts(
    run: RunDir, cfg: PretrainSettings, facts: FactSet, tokenizer: TextTokenizer, progress: Progress
) -> None:
    """The facts' files, the injected corpus and the compiled schedule."""
    if facts.passages:
        origin = fingerprint(
            [VERSION, asdict(cfg.facts), cfg.seed, cfg.train.steps, cfg.corpus.seq_len, tokenizer.fingerprint]
        )
    else:
        origin = fingerprint([VERSION, "no facts"])
    marker = run.facts / "origin.json"
    if marker.exists():
        if read_json(marker) != origin:
            raise MismatchError(
                f"{run.facts} was made from another configuration (facts, seed, train.steps or corpus.seq_len)",
                got=read_json(marker),
                expected=origin,
                fix=f"choose another `out`, or remove {run.facts} and {run.corpus / 'injected'}",
            )
        return
    write_facts(facts, run.facts)
    if facts.passages:
        progress(f"writing {len(facts.passages):,} invented passages and their schedule")
        write_injected(run, cfg.corpus, facts, tokenizer, cfg.seed)
        groups: dict[str, list[str]] = {}
        for passage in facts.passages:
            groups.setdefault(passage.document, []).append(passage.id)
        write_schedule(
            compile_schedule(groups, cfg.facts.schedule, cfg.train.steps, cfg.seed), run.facts / "schedule.parquet"
        )
    write_json(marker, origin)


def write_injected(run: RunDir, corpus: CorpusSettings, facts: FactSet, tokenizer: TextTokenizer, seed: int) -> None:
    """The injected corpus: invented passages whole, shuffled, a person's never in one sequence."""
    passages = FactPassages(facts.passages, tokenizer)
    longest = int(np.argmax(passages.lengths))
    if passages.lengths[longest] + 1 > corpus.max_tokens:
        raise UserError(
            f"invented passage {facts.passages[longest].id} is too long",
            got=f"{passages.lengths[longest] + 1} tokens",
            expected=f"at most corpus.max_tokens = {corpus.max_tokens}",
            fix="raise corpus.max_tokens, or train the tokenizer on the corpus (corpus.tokenizer.path empty)",
        )
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
