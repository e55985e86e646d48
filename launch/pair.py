"""A minimal pair: a run, and the same training without some of what it saw; every other visit is the same.

    headwater pair runs/demo runs/demo-without                        # without anything that was injected
    headwater pair runs/demo runs/demo-without --fact FACT_ID         # without the passages that state one fact
    headwater pair runs/demo runs/demo-without --exclude FILE         # without what a file lists, as train.exclude

Nothing takes the place of what is left out: a passage that gave way to an injection stays away too. So whatever differs
between the two runs comes from what is left out; the ledgers are held against one another to show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from headwater.configs import load_config
from headwater.configs.errors import MissingError, UserError
from headwater.launch.parts.pair import compare_ledgers
from headwater.launch.parts.settings import keep_settings
from headwater.launch.parts.training import is_trained, pretrain_whole, share_corpus
from headwater.train.artifacts import RunDir, fingerprint, require_empty, write_bytes, write_json
from headwater.train.settings import PretrainSettings

NOTE, WITHOUT, DIFFERENCE = "pair.json", "without.txt", "difference.json"
"""In the second run's directory: its settings, what it leaves out, and what compare_ledgers found."""


def make_pair(run: Path, out: Path, fact: str = "", exclude: Path | None = None) -> dict[str, int]:
    """Trains the second run of a pair, or goes on with it; returns what its ledger lacks, and how many of that were
    injections.

    Args:
        run: a finished run.
        fact: leave out the passages that state this fact alone.
        exclude: leave out what this file lists alone.

    Raises:
        MissingError: there is no such run or fact.
        UserError: the run is not finished, `out` holds something else, or the second run was asked to stop.
        MismatchError: `out` holds another pair, or the ledgers differ in more than what is left out.
    """
    whole, second = RunDir(run), RunDir(out)
    if not whole.config.exists():
        raise MissingError(f"{run} is no run directory", expected="one that `headwater pretrain` made")
    before = load_config(PretrainSettings, whole.config, [f"out={run}"])
    if not is_trained(run, before):
        raise UserError(f"{run} is not finished", expected="its last checkpoint", fix="go on with it first")
    lines = list(excluded_by(before)) + list(left_out_lines(whole, fact, exclude))
    overrides = [f"out={out}", f"train.exclude={out / WITHOUT}"]
    overrides += ["callbacks.capture.enabled=false", "callbacks.extra=[]"]
    settings = load_config(PretrainSettings, whole.config, overrides)
    if not (out / NOTE).exists():
        require_empty(out)
    kept = {**asdict(settings), "without": lines}
    what, fix = f"{out} holds another pair", "choose another directory, or remove it"
    keep_settings(out / NOTE, kept, home=out, mark=fingerprint(kept), what=what, fix=fix)
    write_bytes(out / WITHOUT, "".join(f"{line}\n" for line in lines).encode())
    share_corpus(run, out)
    if pretrain_whole(out, settings):
        raise UserError(f"{out} was stopped before its end", fix="start again: it goes on where it stands")
    found = compare_ledgers(whole, second, out / WITHOUT)
    write_json(out / DIFFERENCE, found)
    return found


def excluded_by(settings: PretrainSettings) -> Iterable[str]:
    """What a run leaves out already."""
    return Path(settings.train.exclude).read_text().splitlines() if settings.train.exclude else ()


def left_out_lines(run: RunDir, fact: str, exclude: Path | None) -> Iterable[str]:
    """The lines of train.exclude.

    Raises:
        MissingError: the run has no such fact, or nothing was injected.
    """
    if exclude is not None:
        if not exclude.is_file():
            expected = "a file of ids, as train.exclude takes it"
            raise MissingError(f"{exclude} is missing", expected=expected, fix="correct --exclude")
        return exclude.read_text().splitlines()
    if fact:
        return gold_of(run, fact)
    from headwater.train.stream.passages import open_passages

    injected = open_passages(run).corpora[1:]
    if not injected:
        raise MissingError(f"nothing is injected into {run.path}", fix="give --exclude FILE")
    return [name for corpus in injected for name in corpus.ids(0, corpus.passages)]


def gold_of(run: RunDir, fact: str) -> list[str]:
    """The passages that state a fact."""
    path = run.facts / "facts.jsonl"
    if not path.exists():
        raise MissingError(f"{path} is missing", fix="give --exclude FILE in place of --fact")
    facts = {record["fact_id"]: record["gold"] for record in map(json.loads, path.read_text().splitlines())}
    if fact not in facts:
        first = next(iter(facts), "none")
        raise MissingError(f"{run.path} has no fact {fact}", expected=f"one of {path}, such as {first}")
    return facts[fact]
