"""The gradient rows of queries, made as the rows of the index were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from headwater.attribution.models.base import EPS, Example
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.rows.collector import GradientCollector, collect
from headwater.attribution.rows.norms import unit_rows
from headwater.attribution.settings import ProjectionSettings
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import MissingError, UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import open_checkpoint, steps_in
from headwater.train.corpus.conversations import read_template
from headwater.train.parallel import World
from headwater.train.tokenizer import TextTokenizer, encode_query, require_plain


def query_rows(
    collector: GradientCollector,
    tokenizer: TextTokenizer,
    queries: Sequence[Query],
    world: World | None = None,
    batch_tokens: int = 2048,
) -> Tensor:
    """Raw rows of the queries' targets, float32 [Q, D]; of a contrastive query the difference of both targets' rows.

    Args:
        world: its replicas of the model share the queries out, and all have all rows in the end.

    Raises:
        UserError: a query is longer than the model's context, its target is empty, or it is held against itself.
    """
    context, directory = collector.model.context, collector.model.places.get("path")
    asked = examples_of(queries, tokenizer, context, directory)
    contrasted = [i for i, query in enumerate(queries) if query.against]
    others = [replace(queries[i], target=queries[i].against, against="") for i in contrasted]
    against = dict(zip(contrasted, examples_of(others, tokenizer, context, directory), strict=True))
    for i, other in against.items():
        if np.array_equal(asked[i].tokens, other.tokens):
            raise UserError(
                f"query {queries[i].example_id} is held against its own target",
                got=queries[i].against,
                expected="another target",
                fix="leave `against` out, or name another answer",
            )
    # Every rank has looked at every query: what is refused is refused on all, and nobody waits for one that has gone.
    shared = world is not None and world.data > 1
    mine = list(range(len(queries)))
    if world is not None and shared:
        mine = mine[world.data_rank :: world.data]
    rows_QD = torch.zeros(len(queries), collector.layout.dims)
    rows_QD[mine] = collect(collector, [asked[i] for i in mine], batch_tokens)
    if others_here := [i for i in mine if i in against]:
        rows_QD[others_here] -= collect(collector, [against[i] for i in others_here], batch_tokens)
    if shared:
        dist.all_reduce(rows_QD, group=parallel.data_group())
    return rows_QD


def examples_of(
    queries: Sequence[Query], tokenizer: TextTokenizer, context: int | None, directory: Path | None = None
) -> list[Example]:
    """Queries as examples whose loss is that of the target.

    Args:
        context: longest input of the model, or None.
        directory: of the model, where its chat template is; None: it has none.

    Raises:
        UserError: one cannot be asked, or is longer than the model's context.
        MissingError: one is a conversation, and the model has no chat template.
    """
    examples = []
    for query in queries:
        if query.messages:
            tokens, start = encoded_conversation(query, tokenizer, directory)
        else:
            tokens, start = encoded(query, tokenizer)
        if context is not None and len(tokens) > context:
            raise UserError(
                f"query {query.example_id} is longer than the model's context",
                got=f"{len(tokens)} tokens",
                expected=f"at most {context}",
                fix="shorten the prompt",
            )
        examples.append(Example(np.asarray(tokens, dtype=np.int64), int(start)))
    return examples


def encoded(query: Query, tokenizer: TextTokenizer) -> tuple[np.ndarray, int]:
    """`encode_query`, with an error that names the query."""
    try:
        if not query.target.strip():
            raise UserError("its target is empty")
        return encode_query(tokenizer, query.prompt, query.target)
    except (UserError, UnicodeEncodeError, TypeError) as error:
        told = error.what if isinstance(error, UserError) else error
        raise UserError(
            f"query {query.example_id} cannot be asked: {told}",
            got=ascii((query.prompt, query.target)),
            expected="a prompt and a target, both text, the target not empty",
        ) from None


def encoded_conversation(query: Query, tokenizer: TextTokenizer, directory: Path | None) -> tuple[np.ndarray, int]:
    """The conversation as the model's chat template writes it, and the target as the assistant's answer."""
    try:
        require_plain(tokenizer, [*(each["content"] for each in query.messages), query.target], "the conversation")
        if directory is None:
            fix = "index a Hugging Face model that has one, or give prompt and target"
            raise MissingError("a run's model has no chat template", fix=fix)
        prompt = read_template(str(directory)).prompt(query.messages)
        return encode_query(tokenizer, prompt, query.target, rendered=True)
    except UserError as error:
        what = f"query {query.example_id} cannot be asked: {error.what}"
        raise type(error)(what, got=error.got, expected=error.expected, fix=error.fix) from None


def captured_query_rows(
    run: RunDir, manifest: dict[str, Any], world: World, tokenizer: TextTokenizer, queries: Sequence[Query]
) -> Tensor:
    """Raw query rows for an index of captured rows, float32 [Q, D]: the lr-weighted mean of the unit rows at the run's
    saved checkpoints up to the index's step, each with its own moments.

    Args:
        run: that the rows were captured in, where it is now.
        manifest: of the index.

    Raises:
        MissingError: no checkpoint is left.
    """
    total_QD: Tensor | None = None
    weight = 0.0
    for step in steps_in(run.checkpoints):
        checkpoint = open_checkpoint(run.checkpoint(step))
        lr = float(checkpoint.meta["lr"])
        if step > manifest["step"] or not checkpoint.meta["updates"] or not lr:
            continue
        model = HeadwaterModel(checkpoint, world, manifest["model"]["precision"])
        projection = ProjectionSettings(**manifest["projection"])
        eps = manifest.get("eps", EPS)
        collector = GradientCollector(model, projection, manifest["correction"], manifest["loss"], eps)
        rows_QD = unit_rows(query_rows(collector, tokenizer, queries, world)) * lr
        total_QD = rows_QD if total_QD is None else total_QD + rows_QD
        weight += lr
    if total_QD is None:
        raise MissingError(
            f"{run.path} has no checkpoint up to step {manifest['step']}", fix="keep some (checkpoint.steps)"
        )
    return total_QD / weight
