"""Opens the model that the settings, or an index, name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.attribution.models.base import TracedModel
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.settings import TracedModelSettings
from headwater.configs.errors import MissingError
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import Checkpoint, newest, open_checkpoint
from headwater.train.parallel import World


def open_model(settings: TracedModelSettings, world: World | None = None) -> TracedModel:
    """Opens what the settings name.

    Raises:
        MissingError: no such run, checkpoint or model.
    """
    if settings.path:
        from headwater.attribution.models.huggingface import HuggingFaceModel

        return HuggingFaceModel(
            settings.path, settings.precision, settings.optimizer_state, settings.base, settings.rows_of
        )
    if world is None:
        raise ValueError("a Headwater checkpoint needs process groups: call parallel.start first")
    run = RunDir.at(settings.run)
    if settings.step is not None:
        checkpoint: Checkpoint | None = open_checkpoint(run.checkpoint(settings.step))
    else:
        checkpoint = newest(run.checkpoints)
    if checkpoint is None:
        raise MissingError(f"{run.path} has no checkpoint", fix="run `headwater pretrain` first")
    return HeadwaterModel(checkpoint, world, settings.precision)


def model_settings_of(description: Mapping[str, Any], places: Mapping[str, Path]) -> TracedModelSettings:
    """The settings that open the model an index was made with, where it is now."""
    found: dict[str, Any] = {name: str(place) for name, place in places.items()}
    return TracedModelSettings(
        **found,
        step=description.get("step"),
        precision=description["precision"],
        rows_of=description.get("rows_of", "adapter"),
    )
