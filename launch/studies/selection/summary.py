"""From the trainings of the study of data selection to its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import interval
from headwater.launch.studies.lds.outputs import read_outputs
from headwater.launch.studies.selection.data import TARGET_WORDS
from headwater.launch.studies.selection.settings import (
    ARMS,
    SHUFFLED,
    WHOLE,
    SelectionSettings,
    excluded_file,
    model_run,
    seed_path,
)
from headwater.launch.studies.verdict import held_to, shown

OURS, OTHERS = "headwater", ("random", "bm25")


def summarise(settings: SelectionSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock.

    Returns:
        Of each arm, and of the whole corpus's model, the log-probability that it gives a word of the targets, in nats,
        its differences to the other arms', and what was chosen; then the claims. [mean, low, high] are over seeds
        (Student's t; with one seed, over its questions).
    """
    seeds = [seed_path(Path(settings.out), number) for number in settings.seeds]
    said_SQ = {arm: np.stack([per_word(seed / arm) for seed in seeds]) for arm in (*ARMS, WHOLE)}
    arms: dict[str, Any] = {}
    for arm, values_SQ in said_SQ.items():
        arms[arm] = {
            "log_probability": over_seeds(values_SQ),
            "by_seed": values_SQ.mean(axis=1).tolist(),
            "above": {other: over_seeds(values_SQ - theirs) for other, theirs in said_SQ.items() if other != arm},
        }
    counts = [of_what(seed, settings) for seed in seeds]
    for arm in ARMS:
        arms[arm]["chosen"] = {key: float(np.mean([each[arm][key] for each in counts])) for key in counts[0][arm]}
    kept = ("preset", "pretrain", "task", "documents", "shuffled", "share", "index", "select")
    return {
        "seeds": list(settings.seeds),
        "questions": said_SQ[OURS].shape[1],
        "passages": [each["passages"] for each in counts],
        "setting": {name: getattr(settings, name) for name in kept},
        "arms": arms,
        "claims": judge(arms),
    }


def per_word(path: Path) -> np.ndarray:
    """The log-probability that a run directory's model gives each target, by its words: float64 [questions], nats."""
    return read_outputs(path)[:, 0] / TARGET_WORDS


def over_seeds(values_SQ: np.ndarray) -> list[float]:
    """[mean, low, high], 95%: seeds differ in everything, so that they are the draws; of one seed its questions are."""
    from scipy.stats import t

    if len(values_SQ) == 1:
        return interval(values_SQ[0])
    means_S = values_SQ.mean(axis=1)
    error = means_S.std(ddof=1) / np.sqrt(len(means_S))
    reach = float(t.ppf(0.975, len(means_S) - 1) * error)
    return [float(means_S.mean()), float(means_S.mean()) - reach, float(means_S.mean()) + reach]


def of_what(seed: Path, settings: SelectionSettings) -> dict[str, Any]:
    """Of each arm, which share of its passages is shuffled, and which comes from whole documents of the task."""
    import re

    from headwater.train.stream.passages import open_passages

    passages = open_passages(model_run(seed))
    every = set(passages.ids(0, len(passages)))
    found: dict[str, Any] = {"passages": len(every)}
    for arm in ARMS:
        taken = every - set(excluded_file(seed, arm).read_text().split("\n"))
        documents = [name.rpartition("#")[0] for name in taken]
        words = [name.startswith(SHUFFLED) for name in documents]
        task = [
            bool(re.search(settings.task, name)) and not broken for name, broken in zip(documents, words, strict=True)
        ]
        found[arm] = {"passages": len(taken), "shuffled": float(np.mean(words)), "task": float(np.mean(task))}
    return found


def judge(arms: dict[str, Any]) -> list[dict[str, str]]:
    """What the study is held to: our half's model is above the others', whole interval."""
    claims = []
    for other in OTHERS:
        value = arms[OURS]["above"][other]
        what = f"{ARMS[OURS]} teaches more than {ARMS[other].replace('A random', 'a random')}"
        claims.append({"claim": what, "status": held_to(value, 0.0), "measured": f"{shown(value)} nats a word"})
    return claims
