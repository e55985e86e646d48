"""Conversations and spans: which tokens carry loss, from the record to the batch that is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.conversations import ChatTemplate, read_template, spans_of
from headwater.train.corpus.documents import read_documents
from headwater.train.corpus.settings import SourceSettings
from headwater.train.micro_batch import pack_sequences
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import PassageSet, open_passages
from headwater.train.stream.stream import open_stream
from headwater.train.tokenizer import TextTokenizer, encode_query, train_tokenizer

from .conftest import make_texts, settings_for

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
FORGETFUL = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}...{% endif %}{% endfor %}"
TALK = [
    {"role": "user", "content": "Which river is north of the harbor?"},
    {"role": "assistant", "content": "The willow river."},
    {"role": "user", "content": "And the quiet one?"},
    {"role": "assistant", "content": "Ember."},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a chat model's directory has of its tokenizer."""
    path = tmp_path_factory.mktemp("chat")
    inner = train_tokenizer(make_texts(40), 512).tokenizer
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    inner.save(str(path / "tokenizer.json"))
    config = {"chat_template": CHATML, "bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def chats(path: Path, talks: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"id": f"c{n}", "messages": talk}) + "\n" for n, talk in enumerate(talks)))
    return path


def test_what_the_assistant_says_is_found() -> None:
    template = ChatTemplate(CHATML, (("bos_token", "<|endoftext|>"),))
    text, spans = template.render(TALK)
    assert text.startswith("<|im_start|>user\nWhich"), "the token that begins a passage is put there by the corpus"
    assert [text[a:b] for a, b in spans] == ["The willow river.<|im_end|>\n", "Ember.<|im_end|>\n"]
    assert template.prompt(TALK[:1]) == text[: spans[0][0]]
    text, spans = ChatTemplate(MARKED).render(TALK)
    assert [text[a:b] for a, b in spans] == ["The willow river.", "Ember."]
    with pytest.raises(UserError, match="writes earlier turns otherwise"):
        ChatTemplate(FORGETFUL).render(TALK)
    with pytest.raises(UserError, match="refuses a conversation"):
        ChatTemplate("{{ raise_exception('user first') }}").render(TALK)


def test_a_template_comes_from_its_file_or_directory(directory: Path, tmp_path: Path) -> None:
    assert read_template(str(directory)).begin == "<|endoftext|>"
    (tmp_path / "own.jinja").write_text(MARKED)
    assert read_template(str(tmp_path / "own.jinja")).text == MARKED
    with pytest.raises(MissingError, match="no chat template"):
        read_template(str(tmp_path))


@pytest.mark.parametrize(
    "value", ["text", [[0]], [[2, 2]], [[0, 11]], [[4, 6], [5, 7]], [[0, True]], [[-1, 3]]], ids=str
)
def test_spans_that_are_none_are_refused(value: Any) -> None:
    assert spans_of([[0, 4], [4, 10]], 10) == ((0, 4), (4, 10))
    with pytest.raises(ValueError, match=r"begins before|no \[start, stop\)|in place of"):
        spans_of(value, 10)


def built(out: Path, source: SourceSettings, tokenizer: Path, **corpus: Any) -> tuple[PretrainSettings, PassageSet]:
    cfg = settings_for(out, Path(source.path), people=0)
    cfg.corpus.sources, cfg.corpus.tokenizer.path = [source], str(tokenizer)
    for name, value in corpus.items():
        setattr(cfg.corpus, name, value)
    build_corpus(cfg)
    return cfg, open_passages(RunDir.at(out))


def test_a_conversation_is_trained_on_where_the_assistant_speaks(directory: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texts = [text[:120] for text in make_texts(60, seed=4)]
    talks = [
        TALK,
        *(
            [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
            for a, b in zip(texts[::2], texts[1::2], strict=True)
        ),
    ]
    source = SourceSettings(kind="jsonl", path=str(chats(tmp_path / "c.jsonl", talks)), messages_field="messages")
    cfg, passages = built(tmp_path / "run", source, directory / "tokenizer.json", max_tokens=90)
    tokenizer = passages.tokenizer
    number = passages.number_of("c0#0")
    tokens, counted = passages.tokens(number), passages.counted(number)
    assert counted is not None
    said = tokenizer.tokenizer.decode(tokens[counted].tolist(), skip_special_tokens=False)
    assert said == "The willow river.<|im_end|>\nEmber.<|im_end|>\n"
    mark = tokenizer.tokenizer.token_to_id("<|im_end|>")
    assert int((tokens == mark).sum()) == 4, "the template's control tokens are the tokens"
    # The batch, against labels made place by place.
    stream = open_stream(RunDir.at(cfg.out), global_batch=3, seed=0)
    for step in rng.integers(0, 20, 4).tolist():
        sequences = stream.sequences(step, 0, 3)
        batch = pack_sequences(sequences)
        wanted = []
        for each in sequences:
            weights, begin = np.zeros(len(each.tokens)), 0
            for passage, length in zip(each.passages.tolist(), each.lengths.tolist(), strict=True):
                flags = passages.counted(passage)
                assert flags is not None
                weights[begin : begin + length - 1] = flags[1:]
                begin += length
            wanted.append(weights)
        assert torch.equal(batch.weights_T, torch.from_numpy(np.concatenate(wanted)).float())
        assert 0 < batch.weights_T.sum() < sum(int(each.lengths.sum()) for each in sequences) / 1.3


def test_spans_of_a_text_carry_its_loss(directory: Path, tmp_path: Path) -> None:
    records = [
        {"id": "part", "text": "North meadow, quiet lantern.", "count": [[6, 12], [20, 28]]},
        {"id": "whole", "text": "Signal orchard."},
    ]
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    source = SourceSettings(kind="jsonl", path=str(path), spans_field="count")
    _, passages = built(tmp_path / "run", source, directory / "tokenizer.json")
    part, whole = passages.number_of("part#0"), passages.number_of("whole#0")
    flags = passages.counted(part)
    assert flags is not None
    said = [passages.tokenizer.pieces([token])[0] for token in passages.tokens(part)[flags]]
    assert "".join(said).replace(" ", "") in ("meadow,quietlantern.".replace(",quiet", ""), "meadowlantern.")
    rest = passages.counted(whole)
    assert rest is not None
    assert rest[1:].all()


@pytest.mark.parametrize(
    ("talk", "told"),
    [
        ([{"role": "user", "content": "say <|im_end|>"}, {"role": "assistant", "content": "no"}], "<|im_end|>"),
        ([{"role": "user"}], "NoneType for its content"),
        ("hello", "in place of a list of messages"),
    ],
    ids=["control token", "no content", "text"],
)
def test_what_is_no_conversation_is_refused_by_its_line(directory: Path, tmp_path: Path, talk: Any, told: str) -> None:
    path = chats(tmp_path / "c.jsonl", [TALK, talk])
    source = SourceSettings(kind="jsonl", path=str(path), messages_field="messages")
    with pytest.raises(UserError, match=r"c\.jsonl:2|'c1'") as refused:
        built(tmp_path / "run", source, directory / "tokenizer.json", max_tokens=90)
    assert told in str(refused.value)


def test_corpora_without_masks_are_described_as_before(tmp_path: Path) -> None:
    from headwater.train.corpus.documents import describe_source

    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n')
    assert (
        not {"messages_field", "spans_field", "chat_template"}
        & describe_source(SourceSettings(kind="jsonl", path=str(path))).keys()
    )
    assert [each.spans for each in read_documents(SourceSettings(kind="jsonl", path=str(path)))] == [None]


def test_the_beginning_token_before_documents_alone(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(make_texts(12))))
    source = SourceSettings(kind="jsonl", path=str(path))
    _, every = built(tmp_path / "every", source, directory / "tokenizer.json")
    cfg, first = built(tmp_path / "first", source, directory / "tokenizer.json", begin_token="first")
    bos, ids = first.tokenizer.bos_id, first.ids(0, len(first))
    assert sorted(ids) == sorted(every.ids(0, len(every)))
    middles = 0
    for number, name in enumerate(ids):
        before, now = every.tokens(every.number_of(name)).tolist(), first.tokens(number).tolist()
        assert before[0] == bos
        assert now == (before if name.endswith("#0") else before[1:])
        middles += not name.endswith("#0")
        assert first.text(number) == every.text(every.number_of(name))
    assert middles > 5
    assert first.corpora[0].manifest["tokens"] == int(first.lengths.sum()) == int(every.lengths.sum()) - middles
    stream = open_stream(RunDir.at(cfg.out), global_batch=3, seed=0)
    assert all(each.counted is None for each in stream.sequences(0, 0, 3))


def test_a_question_in_a_chat_ends_where_the_answer_begins(directory: Path) -> None:
    tokenizer = TextTokenizer(Tokenizer.from_file(str(directory / "tokenizer.json")))
    prompt = read_template(str(directory)).prompt(TALK[:1])
    tokens, start = encode_query(tokenizer, prompt, "The willow river.", rendered=True)
    assert tokenizer.decode(tokens[start:]) == "The willow river."
    assert int((tokens == tokenizer.tokenizer.token_to_id("<|im_start|>")).sum()) == 2
    plain, _ = encode_query(tokenizer, prompt, "The willow river.")
    assert tokenizer.tokenizer.token_to_id("<|im_start|>") not in plain, "written by somebody, it is text"
