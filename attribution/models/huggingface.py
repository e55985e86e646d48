"""Any Hugging Face causal language model as one whose gradients are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.models.adapters import base_of, is_adapter, open_adapted
from headwater.attribution.models.base import EPS, Example, Site, TracedModel, freeze
from headwater.attribution.models.finding import find_sites, shared_input
from headwater.attribution.models.heads import Head, hidden_states
from headwater.attribution.models.observing import arguments, closeness, needs_cache, observe, relative
from headwater.attribution.models.weights import open_causal_model
from headwater.configs.errors import UserError
from headwater.train.artifacts import fingerprint

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEAD_NAME = "output_head"
"""In rows, whatever the family calls it."""
_STRETCHED = ("longrope", "dynamic", "su")
"""Rotary embeddings whose angles at every place depend on the longest input of the batch."""


class HuggingFaceModel(TracedModel):
    """Any `AutoModelForCausalLM` directory: the linear layers of its body, experts included.

    Examples stand in the rows of a padded batch. Padding comes after the text and carries no loss, so causal attention
    keeps it out of everything: its output gradients are zero. Models with experts, which see some tokens only, and
    those whose rotary angles depend on the longest input take one example at a time.

    Args:
        path: its directory, or that of a LoRA adapter.
        precision: fp32 or bf16.
        optimizer_state: a saved torch optimizer state; needed for `second_moment` alone.
        base: of an adapter: the directory of its base model; empty: the one that it names.
        rows_of: of an adapter: whose linear layers, adapter or base.

    Raises:
        UserError: naming what cannot be opened or traced (weights.py, adapters.py, observing.py, heads.py).
    """

    _sites: list[Site]

    def __init__(
        self, path: str, precision: str = "fp32", optimizer_state: str = "", base: str = "", rows_of: str = "adapter"
    ) -> None:
        super().__init__()
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        adapted = is_adapter(Path(path))
        if adapted:
            base_path = base_of(Path(path), base)
            model = open_adapted(Path(path), base_path, PRECISIONS[precision])
        else:
            model = open_causal_model(path, PRECISIONS[precision])
        self.model: Any = nn.Module.to(model, self.device)
        if self.device.type == "cpu":
            from headwater.attribution.models.huggingface_attention import use_fast_attention

            use_fast_attention(self.model)
        freeze(self.model)
        self.context = context_of(self.model.config)
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.fingerprint = fingerprint(
            {n: fingerprint(p.float().cpu().numpy().tobytes()) for n, p in model.named_parameters()}
        )
        self.description = {"kind": "huggingface", "precision": precision}
        self.places = {"path": Path(path)}
        self._moments: dict[str, Tensor] | None = None
        if optimizer_state:
            self.use_moments(Path(optimizer_state))
        self._sites: list[Site] = []
        self._look_into()
        if adapted:
            self.description["rows_of"] = rows_of
            self.places["base"] = base_path
            self._sites = [each for each in map(of_adapter if rows_of == "adapter" else of_base, self._sites) if each]

    def _look_into(self) -> None:
        """Finds body, head and sites in a forward pass over two short rows, and refuses a model that looks ahead."""
        draw = torch.Generator().manual_seed(0)
        length = min(7, self.context or 7)
        ids_BL = torch.randint(0, self.vocabulary or 1, (2, length), generator=draw).to(self.device)
        seen = observe(self.model, ids_BL)
        self.cached = needs_cache(self.model, ids_BL, seen.logits)
        if self.cached:
            seen = observe(self.model, ids_BL, cached=True)
        require_causal(self.model, ids_BL, seen.logits)
        self._head = Head(self.model, seen)
        self.base = seen.base
        named = self.model.base_model if self.model.base_model is not self.model else seen.base
        head = self.model.get_output_embeddings()
        self._sites, self.left_out = find_sites(named, head, seen, ids_BL.numel())
        if not self._sites:
            raise UserError(
                f"{type(self.model).__name__} cannot be traced: no layer of it multiplies with a weight",
                expected="linear layers",
                fix="trace another model",
            )
        self._stretched = [module for module in self.model.modules() if stretched(module)]
        self.alone = bool(self._stretched) or any(site.routed for site in self._sites)

    @property
    def sites(self) -> list[Site]:
        return self._sites

    @property
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        return {site.name: site.shape for site in self._sites}

    @property
    def head(self) -> Site | None:
        weight = self._head.weight
        if weight is None:
            return None
        outputs, inputs = weight.shape
        return Site(HEAD_NAME, None, (int(outputs), int(inputs)), parameter=weight)

    def backward(self, examples: Sequence[Example], loss: str) -> None:
        ids_BL, weights_BL = self.padded(examples)
        rows, length = ids_BL.shape
        self.bounds = [row * length for row in range(rows + 1)]
        self._unstretch()
        states = hidden_states(self.base(**arguments(self.base, ids_BL, self.cached)))
        assert states is not None
        hidden = states.reshape(rows * length, -1)
        places_K = weights_BL.reshape(-1).nonzero().squeeze(1)
        labels_T = torch.roll(ids_BL.reshape(-1), -1)
        weights_K = weights_BL.reshape(-1)[places_K]
        self.predicting = places_K
        self._head.backward(hidden.index_select(0, places_K), labels_T[places_K], weights_K, loss)

    def own_backward(self, example: Example) -> None:
        self._unstretch()
        ids_1L = torch.from_numpy(np.asarray(example.tokens, dtype=np.int64))[None].to(self.device)
        logits_TV = self.model(**arguments(self.model, ids_1L, self.cached)).logits[0].float()
        losses_T = nn.functional.cross_entropy(logits_TV[:-1], ids_1L[0, 1:], reduction="none")
        (losses_T * torch.from_numpy(example.loss_weights).to(losses_T)).sum().backward()

    def _unstretch(self) -> None:
        """Rotary angles as they are before any input: transformers keeps those of the longest one so far."""
        for module in self._stretched:
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer("inv_freq", module.original_inv_freq, persistent=False)

    def padded(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The examples' tokens as the rows of a batch, int64 [B, L], and what the next token's loss counts, float32.

        Raises:
            UserError: an example is longer than the model's context.
        """
        longest = max(len(example.tokens) for example in examples)
        if self.context is not None and longest > self.context:
            raise UserError(
                "an input is longer than the model's context",
                got=f"{longest} tokens",
                expected=f"at most {self.context}",
                fix="shorten the query, or lower corpus.max_tokens",
            )
        length = -(-longest // 16) * 16 if self.context is None or longest + 16 <= self.context else longest
        if self.alone:
            length = longest
        ids_BL = torch.zeros(len(examples), length, dtype=torch.int64)
        weights_BL = torch.zeros(len(examples), length)
        for row, example in enumerate(examples):
            ids_BL[row, : len(example.tokens)] = torch.from_numpy(np.asarray(example.tokens, dtype=np.int64))
            weights_BL[row, : len(example.tokens) - 1] = torch.from_numpy(example.loss_weights)
        return ids_BL.to(self.device), weights_BL.to(self.device)

    def use_moments(self, path: Path) -> None:
        """Takes second moments from a file: a saved optimizer state, or moments that were fitted.

        Raises:
            MissingError, CorruptError, MismatchError: it is not there, cannot be read, or is no such file.
        """
        from headwater.attribution.models.fitted_moments import is_fitted
        from headwater.attribution.models.moments import read_eps

        self.places["optimizer_state"], self._moments = path, None
        self.eps = EPS if is_fitted(path) else read_eps(str(path))

    def second_moment(self, site: Site) -> Tensor:
        from headwater.attribution.models.fitted_moments import is_fitted, read_fitted
        from headwater.attribution.models.moments import read_moments

        path = self.places.get("optimizer_state", Path())
        if is_fitted(path):
            return read_fitted(path, site.name, site.shape)
        if self._moments is None:
            self._moments = read_moments(str(path) if path.name else "", self.model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        if site.name == HEAD_NAME:
            return self._moments[names[id(site.weight)]]
        parts = {part.out_parts[0]: part for part in self._sites if part.name == site.name}
        return torch.cat([part.matrix(self._moments[names[id(part.weight)]]) for _, part in sorted(parts.items())])


def of_adapter(site: Site) -> Site | None:
    """The site if it is an adapter's."""
    return site if ".lora_" in site.name else None


def of_base(site: Site) -> Site | None:
    """The site, named as in the base model, if it is no adapter's."""
    if ".lora_" in site.name:
        return None
    name = site.name.removesuffix(".base_layer")
    return replace(site, name=name, shared=shared_input(name)) if name != site.name else site


def context_of(config: Any) -> int | None:
    """The longest input of a model, if it has one."""
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def stretched(module: Any) -> bool:
    return getattr(module, "rope_type", None) in _STRETCHED and hasattr(module, "original_inv_freq")


@torch.no_grad()
def require_causal(model: Any, ids_BL: Tensor, logits_BLV: Tensor) -> None:
    """Refuses a model whose logits at a place change with the tokens after it."""
    changed_BL = ids_BL.clone()
    changed_BL[:, -1] = (changed_BL[:, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    again_BLV = model(input_ids=changed_BL).logits
    if relative(again_BLV[:, :-1], logits_BLV[:, :-1]) > closeness(again_BLV.dtype):
        raise UserError(
            f"{type(model).__name__} is not a causal language model",
            got="logits that change with a later token",
            expected="logits that depend on the tokens before them alone",
            fix="trace another model",
        )
