"""Any Hugging Face causal language model as one whose gradients are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.models.base import Example, Site, TracedModel, freeze
from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import fingerprint
from headwater.train.losses import head_loss

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class HuggingFaceModel(TracedModel):
    """Any `AutoModelForCausalLM` directory: `nn.Linear` and `Conv1D` layers of its blocks.

    Examples stand in the rows of a padded batch. Padding comes after the text and carries no loss, so causal attention
    keeps it out of everything: its output gradients are zero.
    """

    def __init__(self, path: str, precision: str = "fp32", optimizer_state: str = "") -> None:
        from headwater.train.compat import declare_torchvision_operators

        declare_torchvision_operators()
        from transformers import AutoModelForCausalLM

        if not (Path(path) / "config.json").exists():
            raise MissingError(
                f"{path} is not a Hugging Face model", expected="a directory with config.json and weights"
            )
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=PRECISIONS[precision], local_files_only=True)
        self.model: Any = nn.Module.to(model, self.device).eval()
        if self.device.type == "cpu":
            from headwater.attribution.models.huggingface_attention import use_fast_attention

            use_fast_attention(self.model)
        self.base = self.model.base_model
        freeze(self.model)
        self.context = getattr(self.model.config, "max_position_embeddings", None)
        self.fingerprint = fingerprint(
            {n: fingerprint(p.float().cpu().numpy().tobytes()) for n, p in model.named_parameters()}
        )
        self.description = {
            "kind": "huggingface",
            "path": str(path),
            "precision": precision,
            "optimizer_state": optimizer_state,
        }
        self._optimizer_path = optimizer_state
        self._moments: dict[str, Tensor] | None = None
        self._sites = self._find_sites()

    def _find_sites(self) -> list[Site]:
        from transformers.pytorch_utils import Conv1D

        head = self.model.get_output_embeddings()
        sites = []
        for name, module in self.base.named_modules():
            if module is head or not isinstance(module, nn.Linear | Conv1D):
                continue
            weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
            outputs, inputs = weight.shape
            sites.append(Site(name, module, (int(outputs), int(inputs)), shared=shared_input(name)))
        return sites

    @property
    def sites(self) -> list[Site]:
        return self._sites

    @property
    def all_shapes(self) -> dict[str, tuple[int, int]]:
        return {site.name: site.shape for site in self._sites}

    def backward(self, examples: Sequence[Example], loss: str) -> None:
        ids_BL, weights_BL = self.padded(examples)
        rows, length = ids_BL.shape
        self.bounds = [row * length for row in range(rows + 1)]
        # Nothing is masked: padding stands after the text, where causal attention never looks. Saying so keeps
        # transformers from looking for packed sequences, and from making masks for them.
        states = self.base(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), use_cache=False).last_hidden_state
        hidden = states.reshape(rows * length, -1)
        places_K = weights_BL.reshape(-1).nonzero().squeeze(1)
        labels_T = torch.roll(ids_BL.reshape(-1), -1)
        head = self.model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise UserError("the model's head has a bias", expected="a head without one")
        ones_K = torch.ones(len(places_K), device=self.device)
        total, *_ = head_loss(hidden.index_select(0, places_K), head.weight, labels_T[places_K], ones_K, kind=loss)
        total.backward()

    def padded(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The examples' tokens as the rows of a batch, int64 [B, L], and 1 where the next token counts, float32 [B, L].

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
        ids_BL = torch.zeros(len(examples), length, dtype=torch.int64)
        weights_BL = torch.zeros(len(examples), length)
        for row, example in enumerate(examples):
            ids_BL[row, : len(example.tokens)] = torch.from_numpy(np.asarray(example.tokens, dtype=np.int64))
            weights_BL[row, example.target_start - 1 : len(example.tokens) - 1] = 1
        return ids_BL.to(self.device), weights_BL.to(self.device)

    def second_moment(self, site: Site) -> Tensor:
        from headwater.attribution.models.moments import read_moments

        if self._moments is None:
            self._moments = read_moments(self._optimizer_path, self.model)
        from transformers.pytorch_utils import Conv1D

        prefix = next(name for name, module in self.model.named_modules() if module is site.module)
        moment = self._moments[f"{prefix}.weight"]
        return moment.t() if isinstance(site.module, Conv1D) else moment


def shared_input(name: str) -> str:
    """Sites of one block that read one input: q, k and v; gate and up."""
    for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for part in group:
            if name.endswith(part):
                return name.removesuffix(part) + "/".join(group)
    return name
