"""Frozen models of the storage study: where values lie, low-rank updates, answers and probes, against references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.launch.studies.storage.adapters import finetune_lora
from headwater.launch.studies.storage.data import Population, ensure_tokenizer
from headwater.launch.studies.storage.models import (
    NAME,
    LowRankAttention,
    LowRankEmbedding,
    batch_of,
    encode_biography,
    exact_match,
    last_hidden,
    prompts_of,
    recall,
)
from headwater.launch.studies.storage.probes import BEFORE_NAME, PLACES, Classes, p_probe, probe
from headwater.launch.studies.storage.provenance import generate
from headwater.launch.studies.storage.settings import AdapterSettings
from headwater.train import parallel
from headwater.train.callbacks.probes import Prompt
from headwater.train.facts.biographies import ATTRIBUTES
from headwater.train.facts.settings import PopulationSettings
from headwater.train.model import PackedGPT, build_model
from headwater.train.settings import ModelSettings, TrainSettings
from headwater.train.tokenizer import TextTokenizer

PEOPLE = PopulationSettings(
    people=30,
    first_names=4,
    middle_names=4,
    last_names=4,
    cities=5,
    universities=4,
    majors=3,
    employers=4,
    years=3,
    days=3,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> Iterator[parallel.World]:
    yield parallel.start(threads=1)
    parallel.stop()


@pytest.fixture
def model(world: parallel.World) -> PackedGPT:
    torch.set_num_threads(1)  # matrices this small lose by being shared
    settings = ModelSettings(layers=2, hidden=24, heads=4, kv_heads=2, ffn_hidden=40, vocab_size=640, init_std=0.1)
    gpt = build_model(settings, TrainSettings(), world, seed=3)
    gpt.requires_grad_(False)
    return gpt


@pytest.fixture(scope="module")
def population() -> Population:
    return Population(PEOPLE, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, population: Population) -> TextTokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return ensure_tokenizer(path, population, 512)


def test_values_lie_where_they_are_said_to(population: Population, tokenizer: TextTokenizer):
    for passages, person in zip(population.biographies("multi5+permute"), population.people, strict=True):
        for each in passages:
            tokens, places = encode_biography(each, tokenizer)
            assert tokenizer.decode(tokens).strip() == each.text
            assert {a: tokenizer.decode(tokens[i:j]).strip() for a, (i, j) in places.items()} == person.values
            low, high = encode_biography(each, tokenizer, person.name)[1][NAME]
            assert tokenizer.decode(tokens[low:high]).strip() == person.name
            assert person.name not in tokenizer.decode(tokens[: high - 1])


def test_recall_counts_tokens_and_whole_values(model: PackedGPT, population: Population, tokenizer: TextTokenizer):
    told = [each for passages in population.biographies("single", [0, 1, 2]) for each in passages]
    found = recall(model, told, tokenizer, CPU)
    right = total = 0
    values = []
    for each in told:
        tokens, places = encode_biography(each, tokenizer)
        batch, _ = batch_of([tokens], CPU)
        weight = model.embedding.word_embeddings.weight
        foreseen = (last_hidden(model, batch)[: len(tokens) - 1] @ weight.t()).argmax(dim=1).numpy() == tokens[1:]
        right, total = right + foreseen.sum(), total + len(foreseen)
        values += [foreseen[low - 1 : high - 1].all() for low, high in places.values()]
    assert found["next_token"] == pytest.approx(right / total)
    assert found["values"] == pytest.approx(np.mean(values))


def test_the_embedding_update_is_an_update_of_the_embedding(model: PackedGPT):
    batch, _ = batch_of([np.arange(1, 9), np.arange(30, 41)], CPU)
    before = last_hidden(model, batch)
    update = LowRankEmbedding(model, 5, torch.Generator().manual_seed(0))
    with update.attached(model):
        assert torch.equal(last_hidden(model, batch), before), "it begins at zero"
        with torch.no_grad():
            update.b_rd.normal_(generator=torch.Generator().manual_seed(1))
        after = last_hidden(model, batch)
    assert torch.equal(last_hidden(model, batch), before), "taken off, it is gone"
    with torch.no_grad():
        model.embedding.word_embeddings.weight += update.a_Vr @ update.b_rd
    torch.testing.assert_close(last_hidden(model, batch), after, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


def test_the_attention_update_leaves_keys_alone(model: PackedGPT):
    batch, _ = batch_of([np.arange(1, 9)], CPU)
    kept: list[torch.Tensor] = []
    layer = model.decoder.layers[0].self_attention.linear_qkv
    update = LowRankAttention(model, 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for each in update.b:
            each.normal_(generator=torch.Generator().manual_seed(1))
    for attached in (False, True):
        if attached:
            with update.attached():
                handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
                last_hidden(model, batch)
                handle.remove()
        else:
            handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
            last_hidden(model, batch)
            handle.remove()
    moved = (kept[1] - kept[0]).abs().amax(dim=(0, 1)) > 1e-6
    # Two groups of two query heads, a key and a value, each six wide.
    assert moved.tolist() == ([True] * 12 + [False] * 6 + [True] * 6) * 2


def test_exact_answers_are_what_greedy_decoding_gives(
    model: PackedGPT, population: Population, tokenizer: TextTokenizer
):
    questions = population.questions(range(6))
    prompts = [each.prompt for each in questions]
    found = []
    for prompt in prompts:
        tokens = np.array([tokenizer.bos_id, *tokenizer.encode(prompt)], dtype=np.int64)
        start = len(tokens)
        for _ in range(3):
            batch, _ = batch_of([tokens], CPU)
            hidden = last_hidden(model, batch)[len(tokens) - 1]
            tokens = np.append(tokens, int((hidden @ model.embedding.word_embeddings.weight.t()).argmax()))
        found.append(Prompt(tokens, start))
    assert exact_match(model, found, CPU).all()
    wrong = [Prompt(np.append(each.tokens[:-1], (each.tokens[-1] + 1) % 512), each.target_start) for each in found]
    assert not exact_match(model, wrong, CPU).any()
    said = generate(model, tokenizer, prompts, CPU)
    for text, each in zip(said, found, strict=True):
        first = tokenizer.decode(each.tokens[each.target_start : each.target_start + 1]).strip()
        assert not text or text.startswith(first)


def test_lora_learns_the_taught_answers_and_leaves_the_model_alone(
    model: PackedGPT, population: Population, tokenizer: TextTokenizer
):
    before = {name: each.clone() for name, each in model.named_parameters()}
    taught = population.questions(population.taught[:1])[1:3]
    asked = population.questions(population.asked[:2])
    settings = AdapterSettings(steps=60, batch=4, lr=3e-2, embedding_rank=16, rank=4)
    answers = finetune_lora(model, tokenizer, taught, [asked, taught[:1]], settings, 0, CPU)
    assert [len(each) for each in answers] == [2, 12, 1]
    assert answers[0].all()
    assert not answers[1].all(), "nothing is known of the asked"
    assert not exact_match(model, prompts_of(taught, tokenizer), CPU).any()
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())


def test_a_probe_finds_what_is_there_and_nothing_else(model: PackedGPT, population: Population):
    labels = Classes(population).label_PA
    major = ATTRIBUTES.index("major")
    rng = np.random.default_rng(0)
    # Two places: a token that tells the major stands before the second alone.
    texts = [np.array([0, 100 + rng.integers(50), 200 + labels[n, major], 7]) for n in range(30) for _ in range(4)]
    owners = [n for n in range(30) for _ in range(4)]
    settings = AdapterSettings(steps=120, batch=30, lr=3e-2, embedding_rank=2)
    right = probe(model, texts, [[1, 3]] * len(texts), owners, population, settings, 0, CPU)
    assert right.shape == (4 * len(population.asked), 2, len(ATTRIBUTES))
    accuracy = right.mean(axis=0)
    assert accuracy[1, major] > 0.95
    assert accuracy[0, major] < 0.7
    others = [a for a in range(len(ATTRIBUTES)) if a != major]
    assert accuracy[:, others].max() < 0.75


def test_p_probes_stand_before_and_at_the_name_and_before_each_value(
    model: PackedGPT, population: Population, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
):
    stood: list[tuple[np.ndarray, list[int]]] = []

    def right_at_name(model, texts, places, owners, people, settings, seed, device):
        stood.extend(zip(texts, places, strict=True))
        found = np.zeros((sum(owner in people.asked for owner in owners), len(PLACES), len(ATTRIBUTES)), dtype=bool)
        found[:, 1] = True
        found[::5, 2, :] = True  # before the first value of everybody's first biography
        found[1::5, 2, 0] = True  # and, in the second, of the birth date alone
        return found

    monkeypatch.setattr("headwater.launch.studies.storage.probes.probe", right_at_name)
    found = p_probe(model, tokenizer, population, "multi5+permute", AdapterSettings(), CPU)
    passages = [each for person in population.biographies("multi5+permute") for each in person]
    for (tokens, places), passage, number in zip(stood, passages, np.repeat(np.arange(30), 5).tolist(), strict=True):
        person = population.people[number]
        assert tokenizer.decode(tokens[: places[1] + 1]).strip().endswith(person.name)
        before, after = tokenizer.decode(tokens[: places[0] + 1]), tokenizer.decode(tokens[places[0] + 1 :])
        assert person.name not in before
        assert after.strip().startswith(person.name)
        for place, name in zip(places[2:], passage.places, strict=True):
            assert tokenizer.decode(tokens[place + 1 :]).strip().startswith(person.values[name])
    assert found["person"] == population.asked
    by_place = np.array(found["right"]).mean(axis=(0, 2))
    assert by_place[PLACES.index(BEFORE_NAME)] == 0
    assert by_place[1] == 1
    assert by_place[2] == pytest.approx(0.2 + 0.2 / 6)
    # What stands first in a person's first biography is due there, and in a fifth of the texts the probe is right.
    told = [population.biographies("multi5+permute", [n])[0] for n in population.asked]
    first, second = ([next(iter(each[k].places)) for each in told] for k in (0, 1))
    dated = [name == ATTRIBUTES[0] for name in second]
    expected = [
        [0.2 * (name == a) + 0.2 * (a == ATTRIBUTES[0] and also) for a in ATTRIBUTES]
        for name, also in zip(first, dated, strict=True)
    ]
    assert np.array(found["due"]) == pytest.approx(np.array(expected))
    assert found["early"] == pytest.approx([0.2 + (0 if also else 0.2 / 5) for also in dated])
