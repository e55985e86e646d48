import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.configs.errors import CorruptError, MismatchError, RefusedError, UserError, refusals
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.pools import run_jobs
from headwater.train.corpus.settings import SourceSettings
from headwater.train.stream.corpus import open_corpus
from headwater.train.tokenizer import TextTokenizer

from ...jobs import Job, call, wait_for
from .conftest import make_texts, settings_for, write_jsonl


def content(out) -> dict[str, bytes]:
    """Every file that a build leaves, but for locks."""
    root = Path(out)
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def times(out) -> dict[str, int]:
    return {path: (Path(out) / path).stat().st_mtime_ns for path in content(out)}


def test_a_build_leaves_what_a_run_needs_and_no_work(built):
    names = content(built.out)
    for name in (
        "tokenizer.json",
        "corpus/base/manifest.json",
        "corpus/base/passages.parquet",
        "corpus/base/index.json",
    ):
        assert name in names
    for name in ("passages.jsonl", "facts.jsonl", "probes.jsonl", "schedule.parquet"):
        assert f"facts/{name}" in names
    assert "corpus/injected/manifest.json" in names
    assert not [name for name in names if ".part" in name or ".shards" in name]
    assert not list(Path(built.out).rglob("*.lock"))


def test_a_complete_build_is_left_alone(built):
    before = times(built.out)
    build_corpus(built)
    assert times(built.out) == before


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_bytes_with_any_number_of_workers(built, tmp_path):
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path))
    cfg.corpus.workers = 2
    build_corpus(cfg)
    assert content(cfg.out) == content(built.out)


def test_another_configuration_is_refused_and_nothing_changes(built):
    before = times(built.out)
    other = settings_for(Path(built.out), Path(built.corpus.sources[0].path))
    other.corpus.max_tokens = 50
    with pytest.raises(MismatchError, match="max_tokens") as caught:
        build_corpus(other)
    assert "50" in str(caught.value)
    assert "61" in str(caught.value)
    seeded = replace(built, seed=1)
    with pytest.raises(MismatchError, match="facts"):
        build_corpus(seeded)
    assert times(built.out) == before


def test_a_changed_source_is_refused(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", make_texts(20))
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0)
    build_corpus(cfg)
    write_jsonl(tmp_path / "texts.jsonl", make_texts(21))
    with pytest.raises(MismatchError, match="sources"):
        build_corpus(cfg)


def test_without_people_there_is_nothing_injected(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", make_texts(20))
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0)
    build_corpus(cfg)
    assert not (RunDir.at(cfg.out).corpus / "injected").exists()
    assert (RunDir.at(cfg.out).facts / "probes.jsonl").read_text() == ""
    # The schedule is what depends on the steps, and there is none.
    cfg.train.steps += 1
    build_corpus(cfg)


def test_a_choice_of_passages_and_documents_is_the_seeds(tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", make_texts(60))
    chosen = []
    for seed in (0, 0, 1):
        cfg = settings_for(tmp_path / f"run{len(chosen)}", tmp_path / "texts.jsonl", people=0)
        cfg.corpus.seed, cfg.corpus.passages, cfg.corpus.sources[0].documents = seed, 40, 20
        build_corpus(cfg)
        corpus = open_corpus(RunDir.at(cfg.out).corpus / "base")
        assert (corpus.passages, corpus.manifest["documents"]) == (40, 20)
        chosen.append(corpus.ids(0, 40))
    assert chosen[0] == chosen[1]
    assert set(chosen[0]) != set(chosen[2])


def test_several_sources_keep_their_own_sequences_and_weights(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", make_texts(40), "a")
    write_jsonl(tmp_path / "b.jsonl", make_texts(20, seed=1), "b")
    cfg = settings_for(tmp_path / "run", tmp_path / "a.jsonl", people=0)
    cfg.corpus.sources.append(SourceSettings(kind="jsonl", path=str(tmp_path / "b.jsonl"), weight=2.5))
    build_corpus(cfg)
    corpus = open_corpus(RunDir.at(cfg.out).corpus / "base")
    assert [span.weight for span in corpus.sources] == [1.0, 2.5]
    for span, prefix in zip(corpus.sources, "ab", strict=True):
        for number in range(span.first_sequence, span.first_sequence + span.sequences):
            packed = corpus.sequence(number)
            ids = corpus.ids(packed.first_passage, packed.first_passage + len(packed.lengths))
            assert all(each.startswith(prefix) for each in ids)
    assert sum(span.sequences for span in corpus.sources) == corpus.sequences


def test_two_documents_of_one_id_are_refused(tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"id": "same", "text": "a river of stone"}) + "\n")
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0)
    cfg.corpus.sources *= 2
    with pytest.raises(UserError, match="'same'"):
        build_corpus(cfg)


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(UserError, match="no text"):
        build_corpus(settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0))


def test_a_damaged_tokenizer_is_not_used(built, tmp_path):
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path))
    build_corpus(cfg)
    path = RunDir.at(cfg.out).tokenizer
    path.write_text(path.read_text()[:100])
    with pytest.raises(CorruptError, match=r"tokenizer\.json"):
        build_corpus(cfg)


def test_a_given_tokenizer_is_taken(built, tmp_path):
    cfg = settings_for(tmp_path / "run", Path(built.corpus.sources[0].path), people=0)
    cfg.corpus.tokenizer.path = str(RunDir.at(built.out).tokenizer)
    build_corpus(cfg)
    corpora = [open_corpus(RunDir.at(each.out).corpus / "base") for each in (cfg, built)]
    assert corpora[0].manifest["tokenizer"] == corpora[1].manifest["tokenizer"]


def build(out: str, source: str) -> None:
    build_corpus(settings_for(Path(out), Path(source)), lambda line: print(line, flush=True))


@pytest.mark.slow
def test_a_killed_build_goes_on_and_ends_the_same(built, tmp_path):
    """Killed with -9 as each artifact appears; what is finished is kept, the result is that of an unbroken build."""
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = str(out), built.corpus.sources[0].path
    for awaited in ("tokenizer.json", "corpus/base.shards/00001.parquet", "corpus/base/manifest.json"):
        job = Job(build, *arguments, log=log)
        wait_for(lambda awaited=awaited, job=job: (out / awaited).exists() or not job.running)
        job.signal(signal.SIGKILL)
        job.wait()
        assert (out / awaited).exists() or (out / "corpus/base/manifest.json").exists()
        if (out / "corpus/base.shards").exists():
            (out / "corpus/base.shards/00099.1.part").mkdir(exist_ok=True)  # as if killed while writing a shard
        (out / "facts").mkdir(exist_ok=True)
        for name in ("corpus/tokenizer", "facts/facts.jsonl"):  # or one of these
            (out / f"{name}.1.part").touch()
    assert call(build, *arguments, ranks=1, log=log) == 0, log.read_text()
    assert content(out) == content(built.out)


@pytest.mark.slow
def test_two_processes_may_build_at_once(built, tmp_path):
    arguments = str(tmp_path / "run"), built.corpus.sources[0].path
    jobs = [Job(build, *arguments, log=tmp_path / f"log-{number}") for number in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    said = sorted((job.log.read_text().splitlines() for job in jobs), key=len)
    assert len(said[1]) > 1
    assert all(line.startswith("waiting for process") for line in said[0])  # it found everything done then
    assert len(said[0]) <= 1
    assert content(tmp_path / "run") == content(built.out)


def test_a_failed_build_does_not_bind_the_corrected_one(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"content": "a river of stone and cloud"}\n')
    cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0)
    with pytest.raises(UserError, match="text_field"):
        build_corpus(cfg)
    cfg.corpus.sources[0].text_field = "content"
    build_corpus(cfg)
    cfg.corpus.sources[0].text_field = "text"
    with pytest.raises(MismatchError, match="sources"):
        build_corpus(cfg)


def test_a_corpus_rebuilt_at_the_same_place_is_read_afresh(tmp_path):
    """A process keeps the parts of a build open; a second build at the same paths must not see those of the first."""
    found = []
    for seed in (0, 1):
        write_jsonl(tmp_path / "texts.jsonl", make_texts(20, seed=seed))
        cfg = settings_for(tmp_path / "run", tmp_path / "texts.jsonl", people=0)
        shutil.rmtree(cfg.out, ignore_errors=True)
        build_corpus(cfg)
        corpus = open_corpus(RunDir.at(cfg.out).corpus / "base")
        tokenizer = TextTokenizer.from_file(RunDir.at(cfg.out).tokenizer)
        found.append(corpus.text(corpus.numbers["doc-3#0"], tokenizer))
        assert make_texts(20, seed=seed)[3].startswith(found[-1][:20])
    assert found[0] != found[1]


def test_a_worker_that_is_killed_is_one_error(tmp_path):
    """As the kernel does for want of memory; the pool would say it in a traceback. It undoes nothing of a build."""
    with pytest.raises(RefusedError, match=r"(?s)ended from outside.*with fewer processes"), refusals():
        run_jobs(signal.raise_signal, [(signal.SIGKILL,)], workers=2)


def test_a_full_dev_shm_is_named(monkeypatch):
    """Semaphores of a pool lie there; the system's error names no place."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("headwater.train.corpus.pools.ProcessPoolExecutor", full)
    with pytest.raises(RefusedError, match="/dev/shm: No space left on device"), refusals():
        run_jobs(signal.raise_signal, [], workers=2)
