"""Models of several sizes: what is other in each, and how many weights it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.configs import setting


@dataclass(kw_only=True, slots=True)
class SizeSettings:
    """A model of another size."""

    name: str = setting("", "What it is called.")
    pretrain: list[str] = setting([], "Further key=value overrides of the pretraining.")


def parameters_of(path: Path) -> int:
    """Weights of a run's model; an embedding that is the head too is counted once."""
    from headwater.configs import load_config
    from headwater.launch.machines.estimates import count_parameters
    from headwater.train.artifacts import RunDir
    from headwater.train.settings import PretrainSettings
    from headwater.train.tokenizer import TextTokenizer

    model = load_config(PretrainSettings, path / "config.yaml").model
    vocabulary = model.vocab_size or TextTokenizer.from_file(RunDir(path).tokenizer).vocab_size
    return count_parameters(model, vocabulary).total
