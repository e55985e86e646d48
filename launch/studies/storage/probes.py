"""Probes of what names and biographies are known to imply.

A probe is a linear classifier of the last hidden state, trained with a low-rank update of the embedding on the taught
people and read on the asked ones. P-probes stand in a biography, before its name, at the name's last token and just
before each value, and are asked for all six attributes; Q-probes stand at the end of a name that is the whole input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.launch.studies.storage.adapters import optimise
from headwater.launch.studies.storage.data import Population
from headwater.launch.studies.storage.models import (
    NAME,
    LowRankEmbedding,
    batch_of,
    encode_biography,
    last_hidden,
)
from headwater.launch.studies.storage.settings import AdapterSettings
from headwater.train.facts.biographies import ATTRIBUTES
from headwater.train.model import PackedGPT
from headwater.train.tokenizer import TextTokenizer

BEFORE_NAME, AT_NAME = "before the name", "at the name"
PLACES = (BEFORE_NAME, AT_NAME, *(f"before value {k + 1}" for k in range(len(ATTRIBUTES))))
"""Where P-probes stand. Before the name nobody can know whom a text is about; the paper's six are those before the
values."""
FIRST = 2
"""The place before the first value."""


def probed_value(name: str, value: str) -> str:
    """What a probe is asked for: of a date the month, as published; of the others the whole value."""
    return value.split()[0] if name == "birth_date" else value


class Classes:
    """The values of each attribute as class numbers."""

    def __init__(self, population: Population) -> None:
        people = population.people
        self.names = {name: sorted({probed_value(name, each.values[name]) for each in people}) for name in ATTRIBUTES}
        self.label_PA = np.array(
            [[self.names[name].index(probed_value(name, each.values[name])) for name in ATTRIBUTES] for each in people]
        )

    @property
    def sizes(self) -> list[int]:
        return [len(self.names[name]) for name in ATTRIBUTES]

    def majority(self, population: Population) -> list[float]:
        """Share of the asked people, by attribute, who have the taught people's commonest value."""
        taught, asked = self.label_PA[population.taught], self.label_PA[population.asked]
        return [float((asked[:, a] == np.bincount(taught[:, a]).argmax()).mean()) for a in range(len(ATTRIBUTES))]


def probe(
    model: PackedGPT,
    texts: Sequence[np.ndarray],
    places: Sequence[Sequence[int]],
    owners: Sequence[int],
    population: Population,
    settings: AdapterSettings,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Accuracy of linear classifiers on the asked people: bool [asked texts, S, A], right or wrong.

    Args:
        texts: tokens of each, int64 [n].
        places: S places in each text; each place has a classifier of its own for each of the A attributes.
        owners: the person of each text.
    """
    classes = Classes(population)
    generator = torch.Generator().manual_seed(seed)
    update = LowRankEmbedding(model, settings.embedding_rank, generator)
    width = model.embedding.word_embeddings.weight.shape[1]
    spots = len(places[0])
    torch.manual_seed(seed)
    heads = nn.ModuleList(nn.Linear(width, sum(classes.sizes)) for _ in range(spots)).to(device)
    norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for _ in range(spots)).to(device)
    taught = set(population.taught)
    learn = [n for n, owner in enumerate(owners) if owner in taught]
    read = [n for n, owner in enumerate(owners) if owner not in taught]
    labels_NA = torch.from_numpy(classes.label_PA[np.asarray(owners)]).to(device)

    def logits(chosen: list[int]) -> list[tuple[Tensor, ...]]:
        batch, starts = batch_of([texts[n] for n in chosen], device)
        hidden_Td = last_hidden(model, batch)
        made = []
        for spot in range(spots):
            at = torch.tensor([start + places[n][spot] for start, n in zip(starts.tolist(), chosen, strict=True)])
            made.append(heads[spot](norms[spot](hidden_Td[at.to(device)])).split(classes.sizes, dim=1))
        return made

    def loss_of(batch: list[int]) -> Tensor:
        chosen = [learn[n] for n in batch]
        found = logits(chosen)
        losses = [F.cross_entropy(each[a], labels_NA[chosen, a]) for each in found for a in range(len(ATTRIBUTES))]
        return torch.stack(losses).sum()

    with update.attached(model):
        optimise([*update.parameters(), *heads.parameters()], settings, len(learn), seed, loss_of)
        norms.eval()
        right = np.zeros((len(read), spots, len(ATTRIBUTES)), dtype=bool)
        with torch.no_grad():
            for start in range(0, len(read), 64):
                chosen = read[start : start + 64]
                for spot, each in enumerate(logits(chosen)):
                    for a in range(len(ATTRIBUTES)):
                        hit = each[a].argmax(dim=1) == labels_NA[chosen, a]
                        right[start : start + len(chosen), spot, a] = hit.cpu().numpy()
    return right


def q_probe(
    model: PackedGPT, tokenizer: TextTokenizer, population: Population, settings: AdapterSettings, device: torch.device
) -> dict[str, Any]:
    """Accuracy by attribute from the name alone, as the whole input, read at its last token; and of each asked person
    whether it was right, 0 or 1 [6]."""
    texts = [np.array([tokenizer.bos_id, *tokenizer.encode(each.name)], dtype=np.int64) for each in population.people]
    places = [[len(each) - 1] for each in texts]
    owners = list(range(len(texts)))
    right = probe(model, texts, places, owners, population, settings, population.seed, device)[:, 0]
    by_person = {str(n): right[k].tolist() for k, n in enumerate(population.asked)}
    return {"accuracy": right.mean(axis=0).tolist(), "right": by_person, **baseline(population)}


def p_probe(
    model: PackedGPT,
    tokenizer: TextTokenizer,
    population: Population,
    variant: str,
    settings: AdapterSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Accuracy by place and attribute, [8, 6], over all biographies of the asked people.

    Also of each asked person, in the order of the numbers in `person`, meaned over the person's biographies: `right`
    [people, 8, 6]; `due` [people, 6], each attribute at the place just before its own value; and `early` [people], all
    attributes but the one that is due at the place before the first value.
    """
    texts, places, owners, due = [], [], [], []
    for number, passages in enumerate(population.biographies(variant)):
        for each in passages:
            tokens, spans = encode_biography(each, tokenizer, population.people[number].name)
            texts.append(tokens)
            places.append([max(0, spans[NAME][0] - 1), spans[NAME][1] - 1, *(spans[a][0] - 1 for a in each.places)])
            owners.append(number)
            due.append([FIRST + list(each.places).index(name) for name in ATTRIBUTES])
    right = probe(model, texts, places, owners, population, settings, population.seed, device).astype(float)
    asked = set(population.asked)
    owner = np.array([each for each in owners if each in asked])
    due_NA = np.array([spots for spots, each in zip(due, owners, strict=True) if each in asked])
    at_own = np.take_along_axis(right, due_NA[:, None], axis=1)[:, 0]
    others_NA = due_NA != FIRST
    early = (right[:, FIRST] * others_NA).sum(axis=1) / others_NA.sum(axis=1)
    people = [owner == n for n in population.asked]
    return {
        "accuracy": right.mean(axis=0).tolist(),
        "texts": len(texts),
        "person": population.asked,
        "right": [right[mine].mean(axis=0).tolist() for mine in people],
        "due": [at_own[mine].mean(axis=0).tolist() for mine in people],
        "early": [float(early[mine].mean()) for mine in people],
        **baseline(population),
    }


def baseline(population: Population) -> dict[str, Any]:
    return {"majority": Classes(population).majority(population), "attributes": list(ATTRIBUTES)}
