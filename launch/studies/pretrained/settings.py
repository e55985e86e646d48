"""Settings of the study of a real pretrained model, its names for the methods, and where its files are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.attribution.settings import EvaluateSettings, IndexSettings, TracedModelSettings
from headwater.configs import Problem, load_config, section, setting
from headwater.configs.sources import read_yaml
from headwater.train.artifacts import RunDir
from headwater.train.settings import PretrainSettings

METHODS = {
    "headwater": "Headwater",
    "head": "Output head alone",
    "captured": "Captured in training",
    "gradient_cosine": "Gradient cosine",
    "gradient_dot": "Gradient dot",
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "ngram": "N-gram match",
    "encoder": "Sentence encoder",
    "random": "Random",
}
"""The ways of tracing, in the order of the table; `captured` at the last step alone, gradients where they are plain,
and the baselines that `evaluate.baselines` names."""
LABELS = {**METHODS, "gold": "Gold passages", "nothing": "Nothing"}
ARMS = ("gold", "headwater", "bm25", "random", "nothing")

COMMON = "common.jsonl"
"""In the model's directory: what it knew before, asked over training; the answers stand in common.parquet."""
CALLBACK = "headwater.launch.studies.pretrained.common:from_settings"


@dataclass(kw_only=True, slots=True)
class LeaveOutSettings:
    """Training again without the passages that a method names."""

    step: int = setting(0, "The traced step whose lists are left out and at which models are compared; 0: the last.")
    facts: int = setting(8, "Facts whose passages are left out, drawn by the seed.", minimum=1)
    known: float = setting(0.5, "Least probability of the target for a fact to be drawn.", minimum=0, maximum=1)
    top: int = setting(4, "Passages that a method names for each fact.", minimum=1)
    arms: list[str] = setting(
        ["gold", "headwater", "random"], "What is left out, each in a training of its own.", choices=ARMS
    )

    def problems(self) -> Iterator[Problem]:
        if len(set(self.arms)) != len(self.arms):
            yield Problem("arms", self.arms, "each once")


@dataclass(kw_only=True, slots=True)
class PretrainedSettings:
    """A real language model goes on training on passages with invented people among them, and is traced."""

    out: str = setting("runs/study/pretrained", "Where the runs and the report go.")
    model: str = setting("", "A directory with a Llama model of Hugging Face, or a .gguf file.")
    preset: str = setting("study/pretrained-base", "The pretraining configuration; the model's shape is the file's.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    seeds: list[int] = setting([0], "Of people, passages and order.", minimum=0)
    traced: list[int] = setting([50, 100, 160], "Steps at which the model is saved and traced.", minimum=1)
    plain: list[int] = setting([], "Of these, the steps at which plain gradients are indexed too: cosine and dot.")
    head: int = setting(0, "Dimensions a side of the output head's rows, an index of their own; 0: none.", minimum=0)
    exact: float = setting(0.6, "Share of the questions that it is to answer at the last step.", minimum=0, maximum=1)
    index: IndexSettings = section(IndexSettings, model=TracedModelSettings(run="-"))
    evaluate: EvaluateSettings = section(EvaluateSettings)
    leave_out: LeaveOutSettings = section(LeaveOutSettings)
    parallel: int = setting(1, "Parts that run at once, each with a model of its own in memory.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            yield Problem("seeds", self.seeds, "at least one seed, and each once")
        if not self.traced or self.traced != sorted(set(self.traced)):
            yield Problem("traced", self.traced, "at least one step, rising")
        elif self.leave_out.step and self.leave_out.step not in self.traced:
            yield Problem("leave_out.step", self.leave_out.step, f"one of traced = {self.traced}, or 0")
        if not set(self.plain) <= set(self.traced):
            yield Problem("plain", self.plain, f"some of traced = {self.traced}")
        if not self.model:
            yield Problem("model", self.model, "a Llama directory or a .gguf file", "`make smollm2` fetches one")


def left_out_step(settings: PretrainedSettings) -> int:
    """The step at which models without some passages are compared."""
    return settings.leave_out.step or settings.traced[-1]


def start_path(out: Path) -> Path:
    """The weights that everything begins with, as a checkpoint."""
    return out / "start" / "weights"


def shape_of(start: Path) -> list[str]:
    """Overrides that make a pretraining begin with these weights: the model's shape and the tokenizer."""
    written: dict[str, Any] = read_yaml(start / "model.yaml")
    shape = [f"model.{key}={value}" for key, value in written["model"].items() if key not in ("init_from", "seed")]
    tokenizer = written.get("corpus", {}).get("tokenizer", {})
    own = [f"corpus.tokenizer.path={start / 'tokenizer.json'}"] if tokenizer else []
    return [*shape, f"model.init_from={start}", *own, f"corpus.tokenizer.bos={quoted(tokenizer.get('bos', ''))}"]


def quoted(text: str) -> str:
    """A text as an override's value."""
    return "'" + text.replace("'", "''") + "'"


def pretraining(settings: PretrainedSettings, seed: int, path: Path) -> tuple[list[str], PretrainSettings]:
    """The overrides and settings that the model of a seed and its trainings again have in common."""
    start = shape_of(start_path(Path(settings.out)))
    overrides = [*start, *settings.pretrain, f"train.steps={settings.traced[-1]}"]
    overrides += [f"seed={seed}", f"corpus.seed={seed}", f"out={path}"]
    return overrides, load_config(PretrainSettings, settings.preset, overrides)


def model_run(settings: PretrainedSettings, seed: int) -> RunDir:
    return RunDir(Path(settings.out) / f"seed-{seed}" / "model")


def traced_path(settings: PretrainedSettings, seed: int, step: int) -> Path:
    """What the tracing of a step has left: rankings and table."""
    return Path(settings.out) / f"seed-{seed}" / f"traced-{step}"


def without_run(settings: PretrainedSettings, seed: int, arm: str) -> RunDir:
    """The training without what an arm names."""
    return RunDir(Path(settings.out) / f"seed-{seed}" / f"without-{arm.replace('_', '-')}")
