"""Probes: the log-probability of each prompt's target, followed over training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from headwater.configs.errors import CorruptError, MissingError
from headwater.train import parallel
from headwater.train.artifacts import atomic_path
from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import Engine, StepResult
from headwater.train.model import Batch
from headwater.train.stream.stream import TrainingSequence
from headwater.train.tables import read_table, write_table
from headwater.train.tokenizer import TextTokenizer, encode_query

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("probe", pa.int32()),
        ("logprob", pa.float32()),
        ("prob", pa.float32()),
        ("exact", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt with its target: int64 [n], the target from `target_start` on."""

    tokens: np.ndarray
    target_start: int


def read_prompts(path: Path, tokenizer: TextTokenizer) -> list[Prompt]:
    """The prompts of a JSONL file with `prompt` and `target`.

    Raises:
        CorruptError: naming the line that is not a probe.
    """
    prompts, number = [], 0
    if not path.is_file():
        raise MissingError(f"{path} is missing", fix="restore it, or build the corpus again")
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line.decode())
            prompts.append(Prompt(*encode_query(tokenizer, record["prompt"], record["target"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptError(
                f"{path}, line {number} is not a probe",
                got=repr(error),
                expected='{"prompt": "...", "target": "..."}',
                fix=f"restore the file, or remove {path.parent} and {path.parent.parent / 'corpus'} to make it again",
            ) from None
    return prompts


def prompt_batches(
    prompts: list[Prompt], batch_tokens: int, device: torch.device, multiple: int = 1
) -> list[tuple[list[int], Batch]]:
    """Packs prompts, shortest first, into batches of at most `batch_tokens`; only target tokens carry loss.

    Each batch comes with the numbers of its prompts, in the order in which their targets stand in it. Batches are
    padded to a multiple of `multiple` tokens.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
    groups: list[list[int]] = []
    size = 0
    for number in order:
        length = len(prompts[number].tokens)
        if not groups or size + length > batch_tokens:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += length
    return [(group, _batch([prompts[i] for i in group], multiple).to(device)) for group in groups]


def _batch(prompts: list[Prompt], multiple: int) -> Batch:
    tokens = torch.from_numpy(np.concatenate([prompt.tokens for prompt in prompts]))
    lengths = torch.tensor([len(prompt.tokens) for prompt in prompts])
    padding = -len(tokens) % multiple
    if padding:
        tokens = torch.cat([tokens, tokens.new_zeros(padding)])
        lengths = torch.cat([lengths, torch.tensor([padding])])
    batch = Batch.from_lengths(tokens, lengths)
    place = torch.arange(len(tokens))
    in_target = torch.zeros(len(tokens))
    start = 0
    for prompt in prompts:
        end = start + len(prompt.tokens)
        in_target[(place >= start + prompt.target_start - 1) & (place < end - 1)] = 1
        start = end
    batch.weights_T = in_target
    return batch


def measure(engine: Engine, prompts: list[Prompt], batch_tokens: int) -> np.ndarray:
    """Mean target log-probability, target probability and exact match of each prompt: float32 [n, 3], on every rank.

    Exact match means that every target token is the most likely one given those before it: what greedy decoding gives.
    """
    world = engine.world
    results = np.zeros((len(prompts), 3), dtype=np.float32)
    multiple = world.tensor if engine.settings.parallel.sequence else 1
    batches = prompt_batches(prompts, batch_tokens, world.device, multiple)
    # Every replica must run as many batches, because ZeRO-3 gathers weights on all of them.
    rounds = -(-len(batches) // world.data)
    for turn in range(rounds):
        group, batch = batches[min(turn * world.data + world.data_rank, len(batches) - 1)]
        logprob_K, greedy_K = engine.evaluate(batch)
        counts = torch.tensor([len(prompts[i].tokens) - prompts[i].target_start for i in group])
        owner = torch.repeat_interleave(torch.arange(len(group)), counts)
        total = torch.zeros(len(group)).index_add_(0, owner, logprob_K.cpu())
        hits = torch.zeros(len(group)).index_add_(0, owner, greedy_K.cpu().float())
        results[group, 0] = (total / counts).numpy()
        results[group, 1] = total.exp().numpy()
        results[group, 2] = (hits == counts).float().numpy()
    if world.data > 1:
        mine = np.zeros(len(prompts), dtype=np.float32)
        for turn in range(world.data_rank, len(batches), world.data):
            mine[batches[turn][0]] = 1
        gathered = torch.from_numpy(results * mine[:, None])
        dist.all_reduce(gathered, group=parallel.data_group())
        results = gathered.numpy()
    return results


class Probes(Callback):
    name = "probes"

    def __init__(self, path: Path, prompts: list[Prompt], *, every: int, steps: list[int], batch_tokens: int) -> None:
        self.path, self.prompts, self.every, self.steps, self.batch_tokens = (
            path,
            prompts,
            every,
            set(steps),
            batch_tokens,
        )
        self._tables: list[pa.Table] = []

    def start(self, trainer: Training, step: int) -> None:
        if step and trainer.world.is_main and self.path.exists():
            table = read_table(self.path, fix="restore it, or move it away: what it noted is lost then")
            self._tables = [table.filter(np.asarray(table["step"]) <= step)]
        if step == 0:
            self._note(trainer, 0)

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if (self.every and step % self.every == 0) or step in self.steps or step == trainer.last_step:
            self._note(trainer, step)

    def _note(self, trainer: Training, step: int) -> None:
        with trainer.spends("probe_s"):
            values = measure(trainer.engine, self.prompts, self.batch_tokens)
        if not trainer.world.is_main:
            return
        columns: list[Any] = [
            pa.array(np.full(len(values), step, dtype=np.int32)),
            pa.array(np.arange(len(values), dtype=np.int32)),
            pa.array(values[:, 0]),
            pa.array(values[:, 1]),
            pa.array(values[:, 2] > 0),
        ]
        self._tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))

    def flush(self, trainer: Training, step: int) -> None:
        if trainer.world.is_main and self._tables:
            self._tables = [pa.concat_tables(self._tables).combine_chunks()]
            with atomic_path(self.path) as part:
                write_table(self._tables[0], part)
