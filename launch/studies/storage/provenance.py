"""Where the answers of a mixed run come from: the person's own biographies, others' questions, or the rest.

Answers about asked people, right or wrong, are traced over every passage of the run (shares.py says how scores
become shares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headwater.attribution.tracing.queries import Query
from headwater.launch.studies.storage.data import Population
from headwater.launch.studies.storage.models import batch_of, last_hidden, open_frozen
from headwater.launch.studies.storage.settings import ProvenanceSettings
from headwater.launch.studies.storage.shares import KINDS, kinds_of, shares
from headwater.train.artifacts import RunDir
from headwater.train.facts.draws import generator
from headwater.train.model import PackedGPT
from headwater.train.tokenizer import TextTokenizer

INDEX = "storage"
ANSWER_TOKENS = 10


def trace_answers(run: RunDir, population: Population, settings: ProvenanceSettings, seed: int) -> dict[str, Any]:
    """Answers questions about asked people, and traces each answer, right or wrong, to its passages."""
    from headwater.attribution.index.build import build_index
    from headwater.attribution.search.scorer import Scoring
    from headwater.attribution.tracing.attributor import Attributor
    from headwater.train import parallel
    from headwater.train.numerics import keep_freed_memory, use_onednn

    model = replace(settings.index.model, run=str(run.path), path="")
    path = build_index(replace(settings.index, model=model, name=INDEX, out=""))
    asked = population.questions(population.asked)
    chosen = generator(seed, 26).permutation(len(asked))[: settings.questions].tolist()
    questions = [asked[n] for n in sorted(chosen)]
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        attributor = Attributor.open(path, world=world)
        answers = generate(
            open_frozen(run, world), attributor.passages.tokenizer, [each.prompt for each in questions], world.device
        )
        # A model that says nothing is asked why it would say the right thing.
        told = [answer or each.target for answer, each in zip(answers, questions, strict=True)]
        queries = [Query(q.id, q.prompt, answer) for q, answer in zip(questions, told, strict=True)]
        scores_QN = attributor.scores(queries, Scoring(task_weight=settings.task_weight))
        ids = attributor.passages.ids(0, len(attributor.passages))
    finally:
        parallel.stop()
    kinds_QN = kinds_of(questions, told, ids, population)
    rows = [
        {
            "id": question.id,
            "person": question.person,
            "attribute": question.attribute,
            "answer": answer,
            "right": answer == question.target,
            **shares(scores_QN[n], kinds_QN[n], settings.top),
        }
        for n, (question, answer) in enumerate(zip(questions, told, strict=True))
    ]
    return {"kinds": list(KINDS), "questions": rows, "passages": len(ids)}


@torch.no_grad()
def generate(model: PackedGPT, tokenizer: TextTokenizer, prompts: Sequence[str], device: torch.device) -> list[str]:
    """Greedy continuations up to a full stop, without it."""
    weight_Vd = model.shared_embedding_or_output_weight() if model.tied else model.output_layer.weight
    texts = [np.array([tokenizer.bos_id, *tokenizer.encode(each)], dtype=np.int64) for each in prompts]
    begun = [len(each) for each in texts]
    running = list(range(len(texts)))
    for _ in range(ANSWER_TOKENS):
        if not running:
            break
        batch, starts = batch_of([texts[n] for n in running], device)
        ends = torch.from_numpy(starts) + torch.tensor([len(texts[n]) - 1 for n in running])
        following = (last_hidden(model, batch)[ends.to(device)] @ weight_Vd.t()).argmax(dim=1).tolist()
        for number, token in zip(list(running), following, strict=True):
            if token == tokenizer.bos_id or tokenizer.pieces([token])[0].startswith("."):
                running.remove(number)
            else:
                texts[number] = np.append(texts[number], token)
    return [tokenizer.decode(each[start:]).strip() for each, start in zip(texts, begun, strict=True)]
