"""Small trainings on a frozen model: their updates, and LoRA for questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from headwater.launch.studies.storage.models import (
    LowRankAttention,
    LowRankEmbedding,
    batch_of,
    exact_match,
    prompts_of,
)
from headwater.launch.studies.storage.settings import AdapterSettings
from headwater.train.facts.biographies import QuestionAnswer
from headwater.train.model import PackedGPT
from headwater.train.tokenizer import TextTokenizer


def optimise(
    parameters: Sequence[nn.Parameter],
    settings: AdapterSettings,
    examples: int,
    seed: int,
    loss_of: Callable[[list[int]], Tensor],
) -> list[float]:
    """AdamW over random batches of examples, each seen as often as the others; returns the loss of every update."""
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    laps = -(-settings.steps * settings.batch // examples)
    order = np.concatenate([rng.permutation(examples) for _ in range(laps)]).tolist()
    losses = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 - step / settings.steps)
        loss = loss_of(order[step * settings.batch : (step + 1) * settings.batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def finetune_lora(
    model: PackedGPT,
    tokenizer: TextTokenizer,
    taught: Sequence[QuestionAnswer],
    asked: Sequence[Sequence[QuestionAnswer]],
    settings: AdapterSettings,
    seed: int,
    device: torch.device,
) -> list[np.ndarray]:
    """Trains LoRA on the taught people's questions; exact answers to these and to each list of `asked`, bool [n]."""
    generator = torch.Generator().manual_seed(seed)
    embedding = LowRankEmbedding(model, settings.embedding_rank, generator)
    attention = LowRankAttention(model, settings.rank, generator)
    texts = [np.array([tokenizer.bos_id, *tokenizer.encode(each.text)], dtype=np.int64) for each in taught]

    def loss_of(chosen: list[int]) -> Tensor:
        batch, _ = batch_of([texts[n] for n in chosen], device)
        return model.run(batch)[0] / batch.weights_T.sum()

    with embedding.attached(model), attention.attached():
        optimise([*embedding.parameters(), *attention.parameters()], settings, len(texts), seed, loss_of)
        return [exact_match(model, prompts_of(each, tokenizer), device) for each in (taught, *asked)]
