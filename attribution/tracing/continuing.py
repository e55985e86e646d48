"""What a model says by itself: how likely an answer is to it, and how it would go on. T tokens, V of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.attribution.models.base import TracedModel
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.observing import arguments
from headwater.attribution.tracing.opened import Opened
from headwater.attribution.tracing.queries import Query
from headwater.attribution.tracing.query_rows import encoded
from headwater.configs.errors import UserError

ALTERNATIVES = 5


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token that the model goes on with.

    Attributes:
        text: by itself, white space included.
        prob: its probability.
        others: the likeliest tokens there, itself among them: (text, probability).
    """

    text: str
    prob: float
    others: list[tuple[str, float]]


@torch.no_grad()
def next_logits(model: TracedModel, tokens: np.ndarray) -> Tensor:
    """Next-token logits, float32 [T, V], of one text.

    Raises:
        UserError: the model is of a kind that gives none.
    """
    tokens_T = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    if isinstance(model, HeadwaterModel):
        return model.gpt.logits(tokens_T.to(model.device))
    if isinstance(model, HuggingFaceModel):
        ids_1T = tokens_T[None].to(model.device)
        return model.model(**arguments(model.model, ids_1T, model.cached)).logits[0].float()
    raise UserError(f"{type(model).__name__} gives no logits")


def answer_logprobs(opened: Opened, prompt: str, target: str) -> np.ndarray:
    """Log-probability of each of the target's tokens after the prompt, float64 [n].

    Raises:
        UserError: the target is empty, or both are longer than the model's context.
    """
    tokens, start = encoded(Query("question", prompt, target), opened.passages.tokenizer)
    require_room(opened.collector.model, len(tokens))
    logprob_TV = torch.log_softmax(next_logits(opened.collector.model, tokens[:-1]).double(), dim=-1)
    wanted = torch.from_numpy(tokens[start:]).to(logprob_TV.device)
    return logprob_TV[start - 1 :].gather(1, wanted[:, None]).squeeze(1).cpu().numpy()


def continuation(opened: Opened, prompt: str, count: int) -> Iterator[NextToken]:
    """The likeliest next tokens of a prompt, one after another; ends before the context does, or where a text would.

    Raises:
        UserError: the prompt is empty or fills the context.
    """
    tokenizer, model = opened.passages.tokenizer, opened.collector.model
    if not prompt.strip():
        raise UserError("there is nothing to go on from", expected="a prompt")
    tokens = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompt)]).astype(np.int64)
    require_room(model, len(tokens))
    vocabulary = tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)
    for _ in range(count):
        if model.context is not None and len(tokens) >= model.context:
            return
        prob_V = torch.softmax(next_logits(model, tokens)[-1, :vocabulary].double(), dim=-1)
        best, number = prob_V.topk(min(ALTERNATIVES, len(prob_V)))
        chosen = int(number[0])
        if chosen == tokenizer.bos_id:
            return
        texts = tokenizer.pieces(number.tolist())
        yield NextToken(texts[0], float(best[0]), list(zip(texts, best.tolist(), strict=True)))
        tokens = np.append(tokens, chosen)


def require_room(model: TracedModel, length: int) -> None:
    if model.context is not None and length > model.context:
        raise UserError(
            "the question is longer than the model's context",
            got=f"{length} tokens",
            expected=f"at most {model.context}",
            fix="shorten the prompt",
        )
