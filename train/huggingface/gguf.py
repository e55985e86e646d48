"""A GGUF file as a Llama model of Hugging Face: its configuration, its tensors and its tokenizer.

A file that holds more than a plain Llama model has (biases, experts, factors of the rotary positions) is refused. The
query and key rows of a head lie in it in pairs (2 i, 2 i + 1) that turn together, where Hugging Face pairs the first
half of a head with its second half.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train.compat import declare_torchvision_operators

SUFFIX = ".gguf"
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's names, with those of the file."""
PLAIN = re.compile(rf"(({'|'.join(NAMES.values())})|blk\.\d+\.({'|'.join(IN_LAYER.values())}))\.weight")


class GgufReader:
    """Tensors of a GGUF file under Hugging Face's names, float32, each of its expected shape.

    Attributes:
        config: what config.json of the same model says.

    Raises:
        UserError: the package `gguf` is not installed.
        MissingError, CorruptError: there is no such file, or it is none.
        MismatchError: it is not a plain Llama model.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise MissingError(f"{file} is missing", expected="a GGUF file", fix="correct the path")
        try:
            from gguf import GGUFReader
        except ModuleNotFoundError:
            fix = "pip install gguf, or give a directory saved by save_pretrained"
            raise UserError(f"{file} cannot be read without the package gguf", fix=fix) from None
        self.file = file
        try:
            self._reader: Any = GGUFReader(file)
        except (ValueError, IndexError, KeyError, OSError) as error:
            what = f"{file} cannot be read"
            raise CorruptError(what, got=error, expected="a GGUF file", fix="download it again") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._require_plain()
        self.config = self._config()

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, quantised ones multiplied out.

        Raises:
            MismatchError: the file has none of this name, or of another shape.
        """
        from gguf import dequantize

        stem = name.removesuffix(".weight")
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
        place = f"blk.{layer[1]}.{IN_LAYER[layer[2]]}.weight" if layer else f"{NAMES[stem]}.weight"
        found = self._tensors.get(place)
        values = None if found is None else torch.tensor(dequantize(found.data, found.tensor_type))
        if values is None or tuple(values.shape) != shape:
            got = "no such tensor" if values is None else tuple(values.shape)
            raise MismatchError(f"{self.file}: {place}", got=got, expected=shape, fix="download the file again")
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(place.split(".")[-2])
        if heads is not None:
            count = self.config[heads]
            values = values.view(count, -1, 2, shape[1]).transpose(1, 2).reshape(shape)
        return values.float()

    def tokenizer(self) -> tuple[bytes, str] | None:
        """The tokenizer.json of the file's tokenizer, and its beginning token; None where it has none."""
        if self._value("tokenizer.ggml.tokens") is None:
            return None
        declare_torchvision_operators()
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(self.file.parent, gguf_file=self.file.name, local_files_only=True)
        with TemporaryDirectory() as directory:
            made.save_pretrained(directory)
            return (Path(directory) / "tokenizer.json").read_bytes(), made.bos_token or ""

    def _require_plain(self) -> None:
        architecture = self._value("general.architecture")
        others = [name for name in self._tensors if not PLAIN.fullmatch(name)]
        scaling = self._value("llama.rope.scaling.type") or "none"
        got = None
        if architecture != "llama":
            got = f"general.architecture = {architecture}"
        elif others or scaling != "none":
            got = ", ".join(others[:3]) or f"llama.rope.scaling.type = {scaling}"
        if got is not None:
            raise MismatchError(
                f"{self.file} is not a Llama model of the plain architecture",
                got=got,
                expected="llama, with neither biases nor experts nor scaled rotary positions",
                fix="import a Llama model of the plain architecture",
            )

    def _config(self) -> dict[str, Any]:
        heads = self._value("llama.attention.head_count")
        embedding = self._tensors.get("token_embd.weight")
        given = {
            "num_hidden_layers": self._value("llama.block_count"),
            "hidden_size": self._value("llama.embedding_length"),
            "intermediate_size": self._value("llama.feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._value("llama.attention.head_count_kv") or heads,
            "head_dim": self._value("llama.attention.key_length"),
            "rms_norm_eps": self._value("llama.attention.layer_norm_rms_epsilon"),
            "rope_theta": self._value("llama.rope.freq_base"),
            "max_position_embeddings": self._value("llama.context_length"),
            "eos_token_id": self._value("tokenizer.ggml.eos_token_id"),
            "vocab_size": None if embedding is None else int(embedding.shape[1]),
        }
        known = {key: value for key, value in given.items() if value is not None}
        tied = "output.weight" not in self._tensors
        return {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": tied, **known}

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        value = None if field is None else field.contents()
        # 1e-5 that was stored in four bytes is meant as 1e-5.
        return float(str(np.float32(value))) if isinstance(value, float) else value
