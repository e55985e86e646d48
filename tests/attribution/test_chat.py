"""An index of conversations: rows of what the assistant says alone, and questions asked in a chat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from headwater.attribution.index.build import build_index
from headwater.attribution.models.base import Example
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.rows.collector import GradientCollector
from headwater.attribution.settings import IndexSettings, ProjectionSettings
from headwater.attribution.tracing.attributor import Attributor
from headwater.attribution.tracing.queries import Query, as_query
from headwater.attribution.tracing.query_rows import query_rows
from headwater.configs.errors import MissingError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'A:' if m.role == 'assistant' else 'U:' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


TALKS = [
    talk("who?", "Ann"),
    talk("what colour has the sea?", "blue"),
    talk("x" * 90, "y"),
    talk("where?", "in Rome, I think"),
]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_llama, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def index(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("index")
    lines = [json.dumps({"id": f"t{n}", "messages": each}) for n, each in enumerate(TALKS)]
    (where / "talks.jsonl").write_text("\n".join(lines))
    settings = IndexSettings(out=str(where / "index"), codecs=["fp32"])
    settings.model.path, settings.curvature.kind, settings.projection.dims = str(model), "none", 6
    settings.corpus.path, settings.corpus.messages_field = str(where / "talks.jsonl"), "messages"
    settings.corpus.max_tokens = 48
    return build_index(settings)


def test_rows_are_those_of_the_assistants_words(model: Path, index: Path) -> None:
    with Attributor.open(index) as attributor:
        passages, opened = attributor.passages, attributor.opened[0]
    collector = GradientCollector(HuggingFaceModel(str(model)), ProjectionSettings(dims=6), "none", "log_odds")
    tokenizer = passages.tokenizer
    numbers = [passages.number_of("t0#0"), passages.number_of("t3#0")]
    rows_ND = opened.passage_rows(np.array(numbers))
    for number, row_D, said in zip(numbers, rows_ND, ("Ann\n", "in Rome, I think\n"), strict=True):
        tokens = passages.tokens(number).astype(np.int64)
        weights = np.zeros(len(tokens), dtype=np.float32)
        weights[len(tokens) - len(said) :] = 1  # a byte is a token
        own_D = collector.rows([Example(tokens, weights=weights)])[0]
        assert tokenizer.decode(tokens).endswith(said)
        assert torch.allclose(row_D, own_D, rtol=1e-5, atol=1e-6)
        whole_D = collector.rows([Example(tokens)])[0]
        assert torch.cosine_similarity(own_D, whole_D, dim=0) < 0.9, "the negative control"


def test_a_passage_in_which_nobody_is_taught_has_no_row(index: Path) -> None:
    with Attributor.open(index) as attributor:
        number = attributor.passages.number_of("t2#0")
        assert not attributor.opened[0].passage_rows(np.array([number])).any()
        (found,) = attributor.scores([Query("q", "who?", "Ann")])
    assert found[number] == 0
    assert np.count_nonzero(found) >= 3
    assert np.isfinite(found).all()


def test_a_question_in_a_chat_is_put_as_the_template_writes_it(model: Path) -> None:
    from headwater.train.tokenizer import TextTokenizer

    own = HuggingFaceModel(str(model))
    tokenizer = TextTokenizer.from_file(model / "tokenizer.json")
    collector = GradientCollector(own, ProjectionSettings(dims=6), "none", "log_odds")
    asked = as_query({"messages": TALKS[0]}, 1)
    assert (asked.prompt, asked.target, asked.messages) == ("who?", "Ann", (TALKS[0][0],))
    row_1D = query_rows(collector, tokenizer, [asked])
    text = np.array([0, *tokenizer.encode("U:who?\nA:Ann")], dtype=np.int64)
    assert torch.allclose(row_1D, collector.rows([Example(text, len(text) - 3)]), rtol=1e-5, atol=1e-6)
    against = as_query({"messages": TALKS[0][:1], "target": "Ann", "against": "Bob"}, 1)
    other = np.array([0, *tokenizer.encode("U:who?\nA:Bob")], dtype=np.int64)
    difference_1D = row_1D - collector.rows([Example(other, len(other) - 3)])
    assert torch.allclose(query_rows(collector, tokenizer, [against]), difference_1D, rtol=1e-4, atol=1e-5)


def test_a_chat_needs_a_template(tiny_llama: Path) -> None:
    from headwater.train.tokenizer import TextTokenizer

    collector = GradientCollector(HuggingFaceModel(str(tiny_llama)), ProjectionSettings(dims=2), "none", "log_odds")
    with pytest.raises(MissingError, match=r"query 7 cannot be asked: .* has no chat template"):
        query_rows(
            collector, TextTokenizer.from_file(tiny_llama / "tokenizer.json"), [as_query({"messages": TALKS[1]}, 7)]
        )
    with pytest.raises(ValueError, match="must end with the assistant's answer"):
        as_query({"messages": TALKS[1][:1]}, 1)
