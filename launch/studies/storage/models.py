"""Frozen models of the storage study: exact answers, what is known of the biographies, hidden states, low-rank updates.

Letters: T tokens of a batch, d width, r rank, V rows of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.configs.errors import MissingError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.probes import Prompt, prompt_batches
from headwater.train.checkpoint import newest
from headwater.train.facts.biographies import Biography, QuestionAnswer
from headwater.train.loading import load_weights
from headwater.train.model import Batch, PackedGPT, build_model
from headwater.train.parallel import World
from headwater.train.settings import ModelSettings, TrainSettings
from headwater.train.tokenizer import TextTokenizer, encode_query

NAME = "name"
BATCH_TOKENS = 4096
MULTIPLE = 64
"""Batches are padded to a multiple of tokens: new shapes cost oneDNN milliseconds each."""


def open_frozen(run: RunDir, world: World) -> PackedGPT:
    """The model of a run's newest checkpoint, frozen, in fp32.

    Raises:
        MissingError: the run has none.
    """
    checkpoint = newest(run.checkpoints)
    if checkpoint is None:
        raise MissingError(f"{run.path} has no checkpoint")
    model = build_model(ModelSettings(**checkpoint.meta["model"]), TrainSettings(), world, seed=0)
    load_weights(model, checkpoint)
    model.requires_grad_(False)
    return model.eval()


def open_untrained(run: RunDir, world: World, seed: int) -> PackedGPT:
    """A model of the shape of a run's newest checkpoint, frozen, with the weights of a seed before any step.

    Raises:
        MissingError: the run has none.
    """
    checkpoint = newest(run.checkpoints)
    if checkpoint is None:
        raise MissingError(f"{run.path} has no checkpoint")
    model = build_model(ModelSettings(**checkpoint.meta["model"]), TrainSettings(), world, seed=seed)
    model.requires_grad_(False)
    return model.eval()


def prompts_of(questions: Sequence[QuestionAnswer], tokenizer: TextTokenizer) -> list[Prompt]:
    return [Prompt(*encode_query(tokenizer, each.prompt, each.target)) for each in questions]


@torch.no_grad()
def exact_match(model: PackedGPT, prompts: list[Prompt], device: torch.device) -> np.ndarray:
    """Whether greedy decoding gives each prompt's target: bool [n]."""
    exact = np.zeros(len(prompts), dtype=bool)
    for group, batch in prompt_batches(prompts, BATCH_TOKENS, device, MULTIPLE):
        greedy_K = model.run(batch)[3].cpu()
        counts = torch.tensor([len(prompts[i].tokens) - prompts[i].target_start for i in group])
        owner_K = torch.repeat_interleave(torch.arange(len(group)), counts)
        hits = torch.zeros(len(group)).index_add_(0, owner_K, greedy_K.float())
        exact[group] = (hits == counts).numpy()
    return exact


def encode_biography(
    biography: Biography, tokenizer: TextTokenizer, name: str = ""
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """Tokens int64 [n], the beginning token first, and where each attribute's value lies in them.

    Args:
        name: the person's; if given, `NAME` is where it stands first.
    """
    encoding = tokenizer.tokenizer.encode(biography.text, add_special_tokens=False)
    ends = np.array([end for _, end in encoding.offsets])
    spans = dict(biography.places)
    if name:
        start = biography.text.index(name)
        spans[NAME] = (start, start + len(name))
    places = {
        each: (1 + int(np.searchsorted(ends, start, side="right")), 2 + int(np.searchsorted(ends, stop)))
        for each, (start, stop) in spans.items()
    }
    return np.array([tokenizer.bos_id, *encoding.ids], dtype=np.int64), places


def batch_of(texts: Sequence[np.ndarray], device: torch.device) -> tuple[Batch, np.ndarray]:
    """Texts end to end, padded; where each begins, int64 [n]."""
    lengths = [len(each) for each in texts]
    padding = -sum(lengths) % MULTIPLE
    tokens = np.concatenate([*texts, np.zeros(padding, dtype=np.int64)])
    counted = [True] * len(lengths) + [False] * bool(padding)
    batch = Batch.from_lengths(
        torch.from_numpy(tokens), torch.tensor(lengths + [padding] * bool(padding)), torch.tensor(counted)
    )
    return batch.to(device), np.cumsum([0, *lengths[:-1]])


def grouped(lengths: Sequence[int], most: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Numbers of texts, in order, in groups of at most `most` tokens."""
    group: list[int] = []
    size = 0
    for number, length in enumerate(lengths):
        if group and size + length > most:
            yield group
            group, size = [], 0
        group.append(number)
        size += length
    if group:
        yield group


@torch.no_grad()
def recall(
    model: PackedGPT, told: Sequence[Biography], tokenizer: TextTokenizer, device: torch.device
) -> dict[str, Any]:
    """How well the biographies themselves are known: shares of next tokens, and of whole values, that are foreseen."""
    encoded = [encode_biography(each, tokenizer) for each in told]
    right = total = 0
    values: dict[str, list[bool]] = {}
    for group in grouped([len(tokens) for tokens, _ in encoded]):
        batch, starts = batch_of([encoded[n][0] for n in group], device)
        greedy_K = model.run(batch)[3].cpu().numpy()
        # Every token but each text's first is foreseen from the place before it.
        foreseen_T = np.zeros(len(batch.tokens_T), dtype=bool)
        foreseen_T[batch.weights_T.cpu().numpy().nonzero()[0] + 1] = greedy_K
        right, total = right + int(greedy_K.sum()), total + len(greedy_K)
        for start, number in zip(starts.tolist(), group, strict=True):
            for name, (low, high) in encoded[number][1].items():
                values.setdefault(name, []).append(bool(foreseen_T[start + low : start + high].all()))
    by_attribute = {name: float(np.mean(found)) for name, found in values.items()}
    return {
        "next_token": right / max(total, 1),
        "values": float(np.mean(list(by_attribute.values()))),
        "by_attribute": by_attribute,
    }


class LowRankEmbedding(nn.Module):
    """An update A B of the embedding, added while it is attached: A [V, r] drawn small, B [r, d] zero."""

    def __init__(self, model: PackedGPT, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = model.embedding.word_embeddings.weight
        rows, width = weight.shape
        rank = min(rank, width)
        self.a_Vr = nn.Parameter(torch.randn(rows, rank, generator=generator).to(weight.device) / rank**0.5)
        self.b_rd = nn.Parameter(torch.zeros(rank, width, device=weight.device))

    @contextmanager
    def attached(self, model: PackedGPT) -> Iterator[None]:
        def add(module: nn.Module, inputs: Any, named: dict[str, Any], output: Tensor) -> Tensor:
            tokens_T = (named["input_ids"] if "input_ids" in named else inputs[0]).reshape(-1)
            return output + (self.a_Vr[tokens_T] @ self.b_rd)[:, None]

        handle = model.embedding.register_forward_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class LowRankAttention(nn.Module):
    """Updates of every block's queries and values (not keys), added while attached: scale B A, with B zero at first.

    Megatron keeps queries, keys and values of a block in one matrix, a group of rows for each key head: its query
    heads, its key, its value.
    """

    def __init__(self, model: PackedGPT, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = [layer.self_attention.linear_qkv for layer in model.decoder.layers]
        config = model.config
        width, groups = config.kv_channels, config.num_query_groups
        heads = config.num_attention_heads // groups
        rows = torch.arange(groups * (heads + 2) * width).reshape(groups, heads + 2, width)
        is_key = torch.zeros_like(rows, dtype=torch.bool)
        is_key[:, heads] = True
        device = self.layers[0].weight.device
        self.moved_O1 = (~is_key).reshape(-1, 1).float().to(device)
        self.a = nn.ParameterList(
            torch.randn(rank, each.weight.shape[1], generator=generator).to(device) / each.weight.shape[1] ** 0.5
            for each in self.layers
        )
        self.b = nn.ParameterList(torch.zeros(each.weight.shape[0], rank, device=device) for each in self.layers)
        self.scale = 2.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        def adder(place: int) -> Any:
            def add(module: nn.Module, inputs: Any, output: Any) -> Any:
                update = (inputs[0] @ self.a[place].t()) @ (self.b[place] * self.moved_O1).t()
                return (output[0] + self.scale * update, *output[1:])

            return add

        handles = [layer.register_forward_hook(adder(place)) for place, layer in enumerate(self.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def last_hidden(model: PackedGPT, batch: Batch) -> Tensor:
    """Hidden states after the last norm, [T, d]; the head is not run."""
    kept: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda module, inputs, output: kept.append(output))
    weights_T = batch.weights_T
    batch.weights_T = torch.zeros_like(weights_T)
    try:
        model.run(batch)
    finally:
        handle.remove()
        batch.weights_T = weights_T
    return kept[0].squeeze(1)
