"""Tiny random models of many families of transformers, and the rows they should have.

python -m tests.attribution.families    # holds each against autograd and writes the table of attribution/models
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.models.base import Example
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.rows.hooks import sign_parts
from headwater.attribution.settings import ProjectionSettings

TABLE = Path(__file__).resolve().parents[2] / "attribution/models/README.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
LENGTHS = (5, 13, 2, 9)
VOCABULARY = 131

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_NARROW = {**_GROUPED, "head_dim": 6, "query_pre_attn_scalar": 6}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 4}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2}
_MLA = {
    **_COMMON,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 20,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_SHARED_KV = {
    **_GROUPED,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "laurel_rank": 4,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral, a window": ("MistralConfig", {**_GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 6}),
    "gemma2, caps": (
        "Gemma2Config",
        {**_NARROW, "sliding_window": 6, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5},
    ),
    "gemma3": ("Gemma3TextConfig", {**_NARROW, "sliding_window": 6}),
    "gemma3n, shared keys": ("Gemma3nTextConfig", _SHARED_KV),
    "olmo2": ("Olmo2Config", _GROUPED),
    "phi": ("PhiConfig", _COMMON),
    "phi3": ("Phi3Config", _GROUPED),
    "phi3, longrope": (
        "Phi3Config",
        {
            **_GROUPED,
            "original_max_position_embeddings": 8,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "gpt2": ("GPT2Config", _GPT),
    "openai-gpt": ("OpenAIGPTConfig", _GPT),
    "opt": (
        "OPTConfig",
        {**{k: v for k, v in _COMMON.items() if k != "intermediate_size"}, "ffn_dim": 40, "word_embed_proj_dim": 24},
    ),
    "bloom": ("BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 24, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {k: v for k, v in _COMMON.items() if k != "intermediate_size"}),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 24, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "expansion_ratio": 2},
    ),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "cohere": ("CohereConfig", _GROUPED),
    "stablelm": ("StableLmConfig", _GROUPED),
    "granite": ("GraniteConfig", {**_GROUPED, "logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "smollm3": ("SmolLM3Config", _GROUPED),
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 24, "state_size": 8, "num_hidden_layers": 2}),
    "mixtral": ("MixtralConfig", {**_EXPERTS, "num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", {**_EXPERTS, "num_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 24},
    ),
    "gpt_oss": ("GptOssConfig", {**_EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 6}),
    "granitemoe": ("GraniteMoeConfig", {**_EXPERTS, "num_local_experts": 4, "logits_scaling": 4.0}),
    "dbrx, clipped": (
        "DbrxConfig",
        {
            "d_model": 24,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "vocab_size": VOCABULARY,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5},
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            **_GROUPED,
            "head_dim": 6,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 1,
        },
    ),
    "deepseek_v2": ("DeepseekV2Config", _MLA),
}


def make_family(name: str, path: Path) -> Path:
    """A random model of two layers, saved as transformers does; no weight of it is 0 or 1 throughout."""
    from headwater.attribution.models.weights import quiet
    from headwater.train.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import transformers

    torch.manual_seed(7)
    kind, settings = FAMILIES[name]
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**settings))
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
        model.save_pretrained(path)
    return path


def examples() -> list[Example]:
    """Passages of several lengths, and a query, whose loss is on its last tokens alone."""
    draw = np.random.default_rng(3)
    made = [Example(draw.integers(3, VOCABULARY, size=length)) for length in LENGTHS]
    return [*made[:-1], Example(made[-1].tokens, target_start=6)]


def log_odds(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """The loss by its definition, from the model's own logits."""
    own_T = logits_TV.gather(1, labels_T[:, None]).squeeze(1)
    return torch.logsumexp(logits_TV.scatter(1, labels_T[:, None], float("-inf")), 1) - own_T


def dense_rows(path: Path, collector: GradientCollector, asked: list[Example]) -> Tensor:
    """Rows float64 [n, D] of the dense gradients that a float64 copy of the model, untouched, has of its own loss."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation=own_attention(path)
    )
    weights = dict(model.eval().named_parameters())
    traced = collector.model
    assert isinstance(traced, HuggingFaceModel)
    names = {id(weight): name for name, weight in traced.model.named_parameters()}
    parts = {(id(site.weight), site.piece): site for site in traced.sites}
    rows_ND = torch.zeros(len(asked), collector.layout.dims, dtype=torch.float64)
    for row_D, example in zip(rows_ND, asked, strict=True):
        model.zero_grad()
        tokens = torch.from_numpy(example.tokens)
        # It makes its mask in the default type.
        torch.set_default_dtype(torch.float64 if model.config.model_type == "mpt" else torch.float32)
        try:
            logits_TV = model(input_ids=tokens[None]).logits[0].double()
        finally:
            torch.set_default_dtype(torch.float32)
        log_odds(logits_TV[:-1], tokens[1:])[example.target_start - 1 :].sum().backward()
        for site in parts.values():
            gradient = weights[names[id(site.weight)]].grad
            if gradient is None:
                continue
            span = collector.spans[site.name]
            left = sign_parts(0, f"{site.name}/out", site.shape[0], span.k_out, site.out_parts).double()
            right = sign_parts(0, f"{site.shared}/in", site.shape[1], span.k_in, site.in_parts).double()
            row_D[span.slice] += (left.T @ site.matrix(gradient.double()) @ right).flatten()
    return rows_ND


def own_attention(path: Path) -> str | None:
    """The attention that computes what the family is: the faster one leaves Gemma 2's cap out."""
    return "eager" if '"gemma2"' in (path / "config.json").read_text() else None


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def measured(name: str, path: Path) -> dict[str, Any]:
    """How far a family's rows are from its gradients."""
    traced = HuggingFaceModel(str(make_family(name, path)))
    collector = GradientCollector(traced, ProjectionSettings(dims=6), "none", "log_odds")
    asked = examples()
    rows, expected = collector.rows(asked), dense_rows(path, collector, asked)
    alone = torch.cat([collector.rows([example]) for example in asked])
    parts = [relative(rows[:, span.slice], expected[:, span.slice]) for span in collector.layout]
    return {
        "family": name,
        "layers": len(collector.layout),
        "experts": any(site.routed for site in traced.sites),
        "coverage": collector.coverage,
        "cosine": float(torch.nn.functional.cosine_similarity(rows.double(), expected, dim=1).min()),
        "difference": relative(rows, expected),
        "worst": max(parts),
        "alone": relative(alone, rows),
    }


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| family | layers with rows | share of parameters | least cosine | difference | of the worst layer |"]
    lines.append("|---|---|---|---|---|---|")
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            found = measured(name, Path(directory))
        numbers = f"{found['layers']} | {found['coverage']:.2f} | {found['cosine']:.6f}"
        lines.append(f"| {name} | {numbers} | {found['difference']:.1e} | {found['worst']:.1e} |")
        print(lines[-1], file=sys.stderr)
    text = TABLE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    TABLE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
