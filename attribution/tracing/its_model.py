"""The model that an index was made with, found where it is now: seen from the index, where it was, or as told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from headwater.attribution.index.manifest import model_places
from headwater.attribution.index.reader import Index
from headwater.attribution.models.base import TracedModel
from headwater.attribution.models.opening import model_settings_of, open_model
from headwater.attribution.settings import PlaceSettings
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.train.artifacts import RunDir, fingerprint_file
from headwater.train.checkpoint import open_checkpoint
from headwater.train.parallel import World


def open_model_of(index: Index, world: World, moved: PlaceSettings) -> TracedModel:
    """Opens the model that an index was made with.

    Args:
        moved: where parts of it are, in place of where the index says.

    Raises:
        MissingError: it is in none of these places.
        MismatchError: it has other weights, or another optimizer state, than when the index was made.
    """
    name = "run" if index.manifest["model"]["kind"] == "headwater" else "path"
    if (moved.path if name == "run" else moved.run) and not getattr(moved, name):
        made_with = "a run's checkpoint" if name == "run" else "a Hugging Face model"
        raise UserError(f"{index.path} was made with {made_with}", fix=f"set model.{name} to where it is")
    places = places_of(index, moved)
    wanted, got = str(index.manifest["model_fingerprint"]), ""
    rest = {key: first_there(found) for key, found in places.items() if key not in ("run", "path")}
    for place in there(places[name], index):
        if name == "run" and (got := recorded_weights(place, index.manifest["model"]["step"])) != wanted:
            continue  # before its weights are read
        model = open_model(model_settings_of(index.manifest["model"], {name: place, **rest}), world)
        got = model.fingerprint
        if got == wanted:
            require_optimizer_state(index, rest.get("optimizer_state"))
            return model
    if not got:
        raise MissingError(
            f"the {'run' if name == 'run' else 'model'} that {index.path} was made with is not there",
            got=" nor ".join(map(str, places[name])),
            fix=f"set model.{name}=DIR to where it is now",
        )
    raise MismatchError(
        f"{index.path} was made with other weights than its model has now",
        got=got,
        expected=wanted,
        fix=f"set model.{name}=DIR to where they are, restore them, or make the index again",
    )


def places_of(index: Index, moved: PlaceSettings) -> dict[str, list[Path]]:
    """Where what an index was made with may lie: as told, else as noted, the likelier place first."""
    told = {key: [Path(value)] for key, value in asdict(moved).items() if value}
    return {**model_places(index.path, index.manifest), **told}


def there(places: list[Path], index: Index) -> Iterator[Path]:
    """Those of the places at which there is a model, or a run with the checkpoint."""
    for place in places:
        if index.manifest["model"]["kind"] == "headwater":
            found = (RunDir.at(place).checkpoint(index.manifest["model"]["step"]) / "checkpoint.json").exists()
        else:
            found = (place / "config.json").exists() or (place / "adapter_config.json").exists()
        if found:
            yield place


def first_there(places: list[Path]) -> Path:
    return next((place for place in places if place.exists()), places[0])


def recorded_weights(run: Path, step: int) -> str:
    """The fingerprint that a checkpoint notes of its weights."""
    return open_checkpoint(RunDir.at(run).checkpoint(step)).fingerprint


def require_optimizer_state(index: Index, path: Path | None) -> None:
    """Refuses another optimizer state than the one whose moments corrected the rows."""
    expected = index.manifest.get("optimizer_state")
    if expected is None or path is None or not path.exists():
        return  # not needed, or missed by who reads it
    got = fingerprint_file(path)
    if got != expected:
        raise MismatchError(
            f"{index.path} was made with another optimizer state than {path}",
            got=got,
            expected=expected,
            fix="set model.optimizer_state=FILE to where it is, or make the index again",
        )
