"""The tensors of a Hugging Face directory, each checked as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import read_json


class LlamaReader:
    """Tensors of a directory of safetensors files, by name, each of its expected shape."""

    def __init__(self, directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.directory, self.shapes = directory, shapes
        index = directory / "model.safetensors.index.json"
        if index.exists():
            content = read_json(index)
            places = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(places, dict):
                raise CorruptError(f"{index} lists no tensors", expected="a weight_map", fix="restore it")
            self.places: dict[str, str] = places
        elif (directory / "model.safetensors").exists():
            with self._open("model.safetensors") as file:
                self.places = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise MissingError(
                f"{directory} has no weights",
                expected="model.safetensors, or its index",
                fix="save the model with save_pretrained(safe_serialization=True)",
            )

    def tensor(self, name: str) -> Tensor:
        if name not in self.places:
            raise MismatchError(
                f"{self.directory} has no tensor {name}",
                expected="every tensor of the Llama model that config.json describes",
                fix="download or save the model again",
            )
        with self._open(self.places[name]) as file:
            try:
                tensor = file.get_tensor(name)
            except SafetensorError as error:
                what = f"{self.directory / self.places[name]} does not hold {name}"
                raise CorruptError(what, got=error, fix="download or save the model again") from None
        if tuple(tensor.shape) != self.shapes[name]:
            raise MismatchError(
                f"{self.directory}: {name} has another shape than config.json says",
                got=tuple(tensor.shape),
                expected=self.shapes[name],
                fix="restore the config.json of these weights",
            )
        return tensor.to(torch.float32)

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CorruptError(
                f"{path} cannot be read",
                got=error,
                expected="a safetensors file",
                fix="download the model again, or save it with save_pretrained(safe_serialization=True)",
            ) from None
