"""Learning rates against values worked out by hand."""

from __future__ import annotations

import pytest

from headwater.configs import ConfigError, load_config
from headwater.train.learning_rate import learning_rate
from headwater.train.settings import OptimizerSettings, PretrainSettings


def rates(steps: list[int], total: int = 110, **changes) -> list[float]:
    settings = OptimizerSettings(**{"lr": 2.0, "min_lr_ratio": 0.1, "warmup": 10, **changes})
    return [learning_rate(settings, step, total) for step in steps]


def test_warmup_rises_linearly_to_the_peak():
    assert rates([1, 5, 10]) == pytest.approx([0.2, 1.0, 2.0])
    assert rates([0, 1], warmup=0, schedule="constant") == [2.0, 2.0]
    assert rates([1], warmup=1) == [2.0]


def test_cosine():
    # Halfway between 2 and 0.2 in the middle; a quarter of the way the cosine is sqrt(1/2).
    assert rates([60, 110]) == pytest.approx([1.1, 0.2])
    assert rates([35]) == pytest.approx([0.2 + 1.8 * 0.5 * (1 + 0.5**0.5)])


def test_linear():
    assert rates([35, 60, 110], schedule="linear") == pytest.approx([1.55, 1.1, 0.2])


def test_warmup_stable_decay():
    assert rates([11, 50, 90, 100, 110], schedule="wsd", decay_ratio=0.2) == pytest.approx([2.0, 2.0, 2.0, 1.1, 0.2])
    assert rates([11, 110], schedule="wsd", decay_ratio=0.0) == pytest.approx([2.0, 2.0])


def test_constant():
    assert rates([11, 110], schedule="constant") == [2.0, 2.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_beyond_the_last_step_it_stays(schedule):
    assert rates([200], schedule=schedule) == pytest.approx(rates([110], schedule=schedule))


def test_a_warmup_as_long_as_the_run():
    assert rates([5, 10], total=10) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(("old", "new"), [("final_lr", "min_lr_ratio"), ("decay", "decay_ratio")])
def test_what_a_ratio_was_called_before_names_the_new_key(old: str, new: str):
    with pytest.raises(ConfigError, match=f"write optimizer.{new}"):
        load_config(PretrainSettings, None, [f"optimizer.{old}=0.1"])
