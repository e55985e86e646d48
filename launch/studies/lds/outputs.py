"""What a model says to every query at the end of its training: a callback, and the file that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headwater.train.artifacts import RunDir, atomic_path
from headwater.train.callbacks.base import Callback, Training
from headwater.train.callbacks.probes import Prompt, measure, read_prompts
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings
from headwater.train.tokenizer import TextTokenizer

QUERIES = "queries.jsonl"
OUTPUTS = "outputs.npy"
"""In the run directory: float64 [queries, 3], the target's log-probability (summed over its tokens), its probability,
and 1 where greedy decoding gives it."""

CALLBACK = "headwater.launch.studies.lds.outputs:from_settings"


class Outputs(Callback):
    """Measures the queries that lie in the run directory when the training has ended."""

    name = "outputs"

    def __init__(self, path: Path, prompts: list[Prompt], batch_tokens: int) -> None:
        self.path, self.prompts, self.batch_tokens = path, prompts, batch_tokens

    def end(self, trainer: Training, step: int) -> None:
        if step < trainer.last_step:  # it was asked to stop
            return
        measured = measure(trainer.engine, self.prompts, self.batch_tokens).astype(np.float64)
        if trainer.world.is_main:
            tokens = np.array([len(prompt.tokens) - prompt.target_start for prompt in self.prompts])
            measured[:, 0] *= tokens
            with atomic_path(self.path) as part, open(part, "wb") as file:
                np.save(file, measured)


def from_settings(settings: PretrainSettings, run: RunDir, world: World) -> Outputs:
    tokenizer = TextTokenizer.from_file(run.tokenizer, settings.corpus.tokenizer.bos)
    prompts = read_prompts(run.path / QUERIES, tokenizer)
    return Outputs(run.path / OUTPUTS, prompts, settings.callbacks.probes.batch_tokens)


def read_outputs(path: Path) -> np.ndarray:
    """What a run directory's model said: float64 [queries, 3]."""
    return np.load(path / OUTPUTS)
