"""Further questions that a study asks a model over its training, beside the run's own probes and at the same steps."""

from __future__ import annotations

from pathlib import Path

from headwater.train.artifacts import RunDir
from headwater.train.callbacks.probes import Probes, Prompt, read_prompts
from headwater.train.settings import PretrainSettings
from headwater.train.tokenizer import TextTokenizer


class Asked(Probes):
    """Probes of another file, under a name of their own."""

    def __init__(
        self, name: str, path: Path, prompts: list[Prompt], *, every: int, steps: list[int], batch_tokens: int
    ) -> None:
        super().__init__(path, prompts, every=every, steps=steps, batch_tokens=batch_tokens)
        self.name = name


def asker(name: str, questions: Path, answers: Path, settings: PretrainSettings, run: RunDir) -> Asked:
    """The callback of a training.

    Args:
        questions: JSON lines with `prompt` and `target`.
        answers: where what was measured goes, in the format of a run's probes.
    """
    probes, tokenizer = settings.callbacks.probes, settings.corpus.tokenizer
    prompts = read_prompts(questions, TextTokenizer.from_file(run.tokenizer, tokenizer.bos))
    return Asked(name, answers, prompts, every=probes.every, steps=probes.steps, batch_tokens=probes.batch_tokens)
