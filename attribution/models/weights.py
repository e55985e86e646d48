"""Opens the directory of a Hugging Face causal language model, or says in one error why it is not one.

What transformers would do without asking is refused: weights that are not there are not drawn at random, those that
belong nowhere are not passed over, and a model's own code is never run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.artifacts import read_json
from headwater.train.tensor_files import load_tensors

_SAVE = "save the model again with save_pretrained, or download it again"


def open_causal_model(path: str | Path, dtype: torch.dtype) -> Any:
    """Reads a causal language model whose weights are all there, in evaluation mode, on the CPU.

    Raises:
        MissingError, CorruptError: a file is not there, or not whole.
        MismatchError: the weights are not those of the model that config.json describes.
        UserError: a kind of model that cannot be traced.
    """
    directory = Path(path)
    require_kind(directory, read_config(directory))
    wrapped = any(plain_name(name) != name for name in weight_names(directory))
    from headwater.train.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    model: Any
    report: Any
    try:
        with quiet():  # what it warns of is refused below
            files: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            config = AutoConfig.from_pretrained(directory, **files)
            options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
            if getattr(config, "attn_logit_softcapping", None):
                options["attn_implementation"] = "eager"  # the others leave the cap out
            kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if wrapped:
                model, report = kind.from_pretrained(None, state_dict=weights_of(directory), **options)
            else:
                model, report = kind.from_pretrained(directory, **files, **options)
    except Exception as error:  # whatever a file from the wild sets off in there
        raise as_user_error(directory, error) from error
    require_complete(directory, report)
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def read_config(directory: Path) -> dict[str, Any]:
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} holds an adapter",
            got="adapter_config.json" + (" beside a model" if (directory / "config.json").exists() else ""),
            expected="a model by itself",
            fix="merge the adapter into its base model (merge_and_unload, save_pretrained), or move it elsewhere",
        )
    if not (directory / "config.json").is_file():
        raise MissingError(
            f"{directory} is not a Hugging Face model", expected="a directory with config.json and weights"
        )
    config = read_json(directory / "config.json", made_by="save_pretrained")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CorruptError(
            f"{directory / 'config.json'} is not the configuration of a model", expected="a model_type", fix=_SAVE
        )
    return config


def require_kind(directory: Path, config: dict[str, Any]) -> None:
    """Refuses, by what its configuration says, what has no rows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, file = config["model_type"], directory / "config.json"
    own_code = config.get("auto_map")
    if own_code and (not isinstance(own_code, dict) or own_code.keys() & {"AutoModelForCausalLM", "AutoModel"}):
        raise UserError(
            f"{file}: the model brings its own code (auto_map), which is not run",
            got=kind,
            expected="a model of transformers' own",
            fix="remove auto_map if transformers' own class of this model_type computes the same",
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{file}: transformers does not know this model_type", got=kind, expected="one of its own", fix="update it"
        )
    if config.get("is_encoder_decoder") or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{file}: this is not a causal language model",
            got=f"{kind}{', an encoder-decoder' if config.get('is_encoder_decoder') else ''}",
            expected="a decoder that predicts the next token",
            fix="trace another model",
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        raise UserError(
            f"{file}: the model is quantised, and quantised weights have no gradients",
            got=method.get("quant_method", "quantization_config") if isinstance(method, dict) else method,
            expected="weights in float32 or bfloat16",
            fix="trace the model that it was made from, or save it dequantised",
        )


def weight_files(directory: Path, stem: str = "") -> list[Path]:
    """The files that hold the weights, those that transformers would read; of an adapter with its `stem`.

    Raises:
        MissingError, CorruptError: there are none, or an index that names none.
    """
    for name in (f"{stem}.safetensors", f"{stem}.bin") if stem else ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).exists():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            content = read_json(index, made_by="save_pretrained")
            places = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
                raise CorruptError(f"{index} lists no tensors", expected="a weight_map", fix=_SAVE)
            return [directory / file for file in sorted(set(places.values()))]
    raise MissingError(
        f"{directory} has no weights",
        expected=f"{stem or 'model'}.safetensors or {stem or 'pytorch_model'}.bin, or an index of them",
        fix=_SAVE,
    )


def weight_names(directory: Path) -> list[str]:
    """The names of the weights as saved.

    Raises:
        MissingError, CorruptError: a file is not there, or not whole.
    """
    return [name for path in weight_files(directory) for name in _names_in(path)]


def weights_of(directory: Path, stem: str = "") -> dict[str, torch.Tensor]:
    """The weights under the names that they had before a wrapper renamed them.

    Raises:
        MissingError, CorruptError: a file is not there, or not whole.
    """
    weights: dict[str, Any] = {}
    for path in weight_files(directory, stem):
        _names_in(path)
        if path.suffix == ".safetensors":
            found = load_tensors(path, fix=_SAVE)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        weights.update({plain_name(name): value for name, value in found.items()})
    return weights


def _names_in(path: Path) -> list[str]:
    """The tensors of a file of weights that is there and whole."""
    if not path.is_file():
        raise MissingError(f"{path} is missing", expected="every file that the index of weights names", fix=_SAVE)
    with open(path, "rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise CorruptError(f"{path} is a pointer of Git LFS, not the weights", fix="fetch it: `git lfs pull`")
    return _safetensors_names(path) if path.suffix == ".safetensors" else _pickled_names(path)


def _safetensors_names(path: Path) -> list[str]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CorruptError(f"{path} is cut, or no safetensors file", got=f"{size} bytes", fix=_SAVE)
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise CorruptError(f"{path} is no safetensors file", got=error, fix=_SAVE) from None
    if size != 8 + length + end:
        raise CorruptError(f"{path} is cut", got=f"{size} bytes", expected=f"{8 + length + end}", fix=_SAVE)
    return list(tensors)


def _pickled_names(path: Path) -> list[str]:
    try:
        mapped = zipfile.is_zipfile(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return [str(name) for name in tensors]
    except Exception as error:  # bytes from the wild: torch raises whatever it meets
        raise CorruptError(f"{path} is cut, or no file of weights", got=first_line(error), fix=_SAVE) from None


def plain_name(name: str) -> str:
    """A weight's name without what wrappers put into it: `_orig_mod.` anywhere, `module.` in front."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def require_complete(directory: Path, report: dict[str, Any]) -> None:
    """Refuses weights that are not the model's: transformers would draw what is missing, and pass over the rest."""
    kinds = {"missing": report["missing_keys"], "unexpected": report["unexpected_keys"]}
    kinds["of another shape"] = [str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]]
    found = {kind: sorted(map(str, keys)) for kind, keys in kinds.items() if keys}
    if not found:
        return
    told = [
        f"{', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''} {kind} ({len(keys)})" for kind, keys in found.items()
    ]
    raise MismatchError(
        f"the weights in {directory} are not those of the model that its config.json describes",
        got="; ".join(told),
        expected="every weight of the model, and no other",
        fix="restore the config.json of these weights, or save the whole model again with save_pretrained",
    )


def as_user_error(directory: Path, error: Exception) -> UserError:
    """An error of transformers in one line."""
    kind = MismatchError if "size mismatch" in str(error) or "ignore_mismatched_sizes" in str(error) else CorruptError
    return kind(
        f"{directory} cannot be opened as a causal language model",
        got=f"{type(error).__name__}: {first_line(error)}",
        expected="config.json and weights as save_pretrained writes them",
        fix=_SAVE,
    )


def first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
