"""Validation: the loss on documents that are never trained on, source by source, followed over training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from headwater.train import parallel
from headwater.train.artifacts import write_bytes
from headwater.train.callbacks.base import Callback, Training
from headwater.train.callbacks.boards import Boards
from headwater.train.callbacks.metrics import json_of, read_metrics
from headwater.train.engine import Engine, StepResult
from headwater.train.micro_batch import pack_sequences
from headwater.train.model import Batch
from headwater.train.settings import ValidationSettings
from headwater.train.stream.corpus import Corpus
from headwater.train.stream.stream import TrainingSequence


def sequences_of(corpus: Corpus, limit: int) -> dict[str, list[TrainingSequence]]:
    """The first sequences of each source of a corpus, whose order is shuffled; all if the limit is 0."""
    length = corpus.manifest["seq_len"]
    found: dict[str, list[TrainingSequence]] = {}
    for source in corpus.sources:
        count = min(limit or source.sequences, source.sequences)
        for number in range(source.first_sequence, source.first_sequence + count):
            packed = corpus.sequence(number)
            tokens = np.zeros(length, dtype=np.int64)
            tokens[: len(packed.tokens)] = packed.tokens
            counted = None
            if packed.counted is not None:
                counted = np.ones(length, dtype=bool)
                counted[: len(packed.tokens)] = packed.counted
            passages = packed.first_passage + np.arange(len(packed.lengths))
            flags = np.zeros(len(passages), dtype=bool)
            found.setdefault(source.name, []).append(
                TrainingSequence(tokens, packed.lengths, passages, flags, number, counted)
            )
    return found


def measure(engine: Engine, batches: list[Batch]) -> tuple[float, int]:
    """Mean cross entropy (nats) over the tokens of some batches that carry loss, and their number, on every rank."""
    world = engine.world
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    # Every replica must run as many batches, because ZeRO-3 gathers weights on all of them.
    for turn in range(-(-len(batches) // world.data)):
        place = turn * world.data + world.data_rank
        logprob_K, _ = engine.evaluate(batches[min(place, len(batches) - 1)].to(world.device))
        if place < len(batches):
            total -= torch.tensor([float(logprob_K.double().sum()), -len(logprob_K)], dtype=torch.float64).to(total)
    if world.data > 1:
        dist.all_reduce(total, group=parallel.data_group())
    count = int(total[1].item())
    return (total[0].item() / count if count else math.nan), count


class Validation(Callback):
    """Writes a line of validation.jsonl for each source at every look: step, source, loss (nats), perplexity, tokens.

    Args:
        path: of validation.jsonl.
        corpus: the held-out documents.
        settings: how often, and how much of each source.
        micro_batch: sequences that a rank runs at once.
        boards: where the losses are shown.
    """

    name = "validation"

    def __init__(
        self, path: Path, corpus: Corpus, settings: ValidationSettings, micro_batch: int, boards: Boards
    ) -> None:
        self.path, self.every, self.boards = path, settings.every, boards
        self.batches = {
            name: [pack_sequences(sequences[i : i + micro_batch]) for i in range(0, len(sequences), micro_batch)]
            for name, sequences in sequences_of(corpus, settings.sequences).items()
        }
        self._lines: list[dict[str, Any]] = []

    def start(self, trainer: Training, step: int) -> None:
        if trainer.world.is_main:
            self._lines = read_metrics(self.path, step)
        if step == 0:
            self._look(trainer, 0)

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        if step % self.every == 0 or step == trainer.last_step:
            self._look(trainer, step)

    def _look(self, trainer: Training, step: int) -> None:
        with trainer.spends("validation_s"):
            found = {name: measure(trainer.engine, batches) for name, batches in self.batches.items()}
        if not trainer.world.is_main:
            return
        for name, (loss, tokens) in found.items():
            perplexity = math.exp(loss) if loss < 700 else math.inf
            self._lines.append({"step": step, "source": name, "loss": loss, "perplexity": perplexity, "tokens": tokens})
        self.boards.show({f"validation/{name}": loss for name, (loss, _) in found.items()}, step)

    def flush(self, trainer: Training, step: int) -> None:
        if trainer.world.is_main and self._lines:
            write_bytes(self.path, "".join(map(json_of, self._lines)).encode())
