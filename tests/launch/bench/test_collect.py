"""The benchmarks of collecting and capturing gradient rows: they run, and what they print can be checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.configs.errors import UserError
from headwater.launch.bench.collect import main, read_examples
from headwater.launch.bench.parser import run_benchmark

KEYS = {
    "tokens_per_s",
    "passages_per_s",
    "ratio_fwdbwd",
    "ratio_no_wgrad",
    "ratio_own_fwdbwd",
    "ratio_encode",
    "peak_rss_bytes",
    "bytes_per_passage",
}

SETUP = {
    *("model", "parameters", "documents", "tokens", "correction", "moments", "proj", "dims", "dtype"),
    *("threads", "rounds", "codec", "seconds"),
}


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Path:
    return tiny_llama


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    texts = ["A river runs to the sea. " * 4, "Stone.", "Snow falls on the harbor at night."]
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correction", "dtype", "codec"),
    [("none", "fp32", "factors8"), ("adafactor", "bf16", "int8"), ("adam", "fp32", "sign")],
)
def test_collect_measures_and_writes(
    model: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    correction: str,
    dtype: str,
    codec: str,
) -> None:
    target = tmp_path / "found.json"
    arguments = f"--model {model} --corpus {corpus} --docs 3 --max-len 48 --proj 5 --rounds 1 --json {target}"
    arguments += f" --correction {correction} --dtype {dtype} --codec {codec}"
    measured = run_benchmark("collect", main, arguments.split())
    assert set(measured) == KEYS | SETUP
    written = json.loads(target.read_text())
    assert written == measured
    found = {key: measured[key] for key in KEYS}
    assert all(value > 0 for value in found.values())
    # Seven layers in each of two blocks, and the lengths of the three documents, the longest cut.
    assert written["dims"] == 14 * 25
    assert written["tokens"] == 48 + 6 + 34
    # Of 5 x 5 numbers a layer: 8 products of 10 signs with a scale each; a byte a number, or a bit, with a scale.
    stored = {"factors8": 14 * 8 * (2 + 2), "int8": 14 * (25 + 2), "sign": 14 * (4 + 2)}
    assert found["bytes_per_passage"] == stored[codec] + 8
    assert found["tokens_per_s"] / found["passages_per_s"] == pytest.approx(written["tokens"] / 3)
    printed = capsys.readouterr().out
    assert ("moments are random" in printed) == (correction != "none")
    assert f"(350 dimensions, {codec})" in printed


def test_bad_options_are_named(model: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="--correction"):
        main(model=str(model), corpus=str(corpus), correction="adamw")
    with pytest.raises(UserError, match="--dtype"):
        main(model=str(model), corpus=str(corpus), dtype="fp64")
    with pytest.raises(UserError, match="unknown codec"):
        main(model=str(model), corpus=str(corpus), codec="int3")
    with pytest.raises(UserError, match="--corpus"):
        read_examples(str(model), "", 3, 48)
    with pytest.raises(UserError, match="not a Hugging Face model"):
        main(model="/nowhere", corpus=str(corpus))


@pytest.mark.slow
def test_capture_measures_both_kinds_of_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from headwater.launch.bench.capture import main as capture

    arguments = "--layers 2 --hidden 32 --ffn-hidden 48 --vocab 128 --seq-len 64 --longest 20 --refresh 2 --rounds 1"
    arguments += f" --proj 4 --head 5 --json {tmp_path / 'f.json'}"
    found = run_benchmark("capture", capture, arguments.split())
    assert json.loads((tmp_path / "f.json").read_text()) == found
    assert found["dims"] == 8 * 16 + 25
    assert "4 x 4 a layer, 5 x 5 of the head" in capsys.readouterr().out
    assert found["ratio"] > 0.3
    assert found["overhead"] == pytest.approx(found["ratio"] - 1)
