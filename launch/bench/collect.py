"""What collecting gradient rows costs beside the model's own forward and backward pass.

headwater bench collect --model HF_DIR --corpus FILE.jsonl --docs 64 --max-len 256 --proj 16 --correction adafactor
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from headwater.configs.errors import MissingError, UserError


def main(
    model: str = "",
    corpus: str = "",
    docs: int = 64,
    max_len: int = 256,
    proj: int = 16,
    correction: str = "none",
    dtype: str = "fp32",
    batch_tokens: int = 2048,
    rounds: int = 3,
    threads: int = 1,
    codec: str = "int8",
) -> dict[str, Any]:
    """Rows of documents under a Hugging Face model: passages/s, tokens/s, and the time as a ratio to the forward and
    backward pass of the same batches as transformers makes it, with and without weight gradients, and to one with the
    attention and the head that the rows are collected with. The variants take turns in one run.

    --model: a causal language model's directory, with its tokenizer. --corpus: JSONL with `text`.
    --correction: none, adafactor or adam; their second moments are random here, which costs what real ones cost.
    --codec: how the rows would be stored; its encoding is timed beside their collecting.
    Times are the process's own (process time), on one thread unless --threads says otherwise.
    """
    import torch

    from headwater.attribution.index.codecs.registry import make_codec
    from headwater.attribution.models.base import Site
    from headwater.attribution.models.huggingface import HuggingFaceModel
    from headwater.attribution.rows.collector import GradientCollector, batched, collect
    from headwater.attribution.settings import ProjectionSettings
    from headwater.launch.bench.timing import interleaved
    from headwater.train.numerics import keep_freed_memory, use_onednn

    for name, value, allowed in (
        ("correction", correction, ("none", "adafactor", "adam")),
        ("dtype", dtype, ("fp32", "bf16")),
    ):
        if value not in allowed:
            raise UserError(f"--{name} is not one", got=value, expected=", ".join(allowed))
    torch.set_num_threads(threads)
    keep_freed_memory()
    if dtype == "fp32":
        use_onednn()

    class RandomMoments(HuggingFaceModel):
        def second_moment(self, site: Site) -> torch.Tensor:
            draw = torch.Generator().manual_seed(len(site.name))
            return torch.rand(site.shape, generator=draw) + 0.1

    traced = RandomMoments(model, dtype)
    examples = read_examples(model, corpus, docs, max_len)
    collector = GradientCollector(traced, ProjectionSettings(dims=proj), correction, "cross_entropy")
    batches = [[examples[i] for i in batch] for batch in batched([len(e.tokens) for e in examples], batch_tokens)]

    stored = make_codec(codec, collector.layout)
    rows_ND = collect(collector, examples, batch_tokens)
    # Before any pass with weight gradients, which would need more.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    unit_ND = torch.nn.functional.normalize(rows_ND)

    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=traced.model.dtype, local_files_only=True)
    plain.eval()

    def plain_pass(batch: list[Any]) -> None:
        ids_BL, counted_BL = traced.padded(batch)
        labels_BL = ids_BL.masked_fill(counted_BL.roll(1, dims=1) == 0, -100)
        plain(input_ids=ids_BL, labels=labels_BL, use_cache=False).loss.backward()

    def passes() -> None:
        plain.requires_grad_(False)
        embedding = plain.get_input_embeddings()
        handle = embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
        for batch in batches:
            plain_pass(batch)
        handle.remove()

    def passes_with_weights() -> None:
        plain.requires_grad_(True)
        for batch in batches:
            plain_pass(batch)
            plain.zero_grad(set_to_none=True)

    def own_passes_with_weights() -> None:
        traced.model.requires_grad_(True)
        for batch in batches:
            traced.backward(batch, "cross_entropy")
            traced.model.zero_grad(set_to_none=True)
        traced.model.requires_grad_(False)

    variants: dict[str, Callable[[], object]] = {
        "forward and backward": passes_with_weights,
        "without weight gradients": passes,
        "own forward and backward": own_passes_with_weights,
        "collect": lambda: collect(collector, examples, batch_tokens),
        "encode": lambda: stored.encode(unit_ND),
    }
    seconds = interleaved(variants, rounds)
    tokens = sum(len(example.tokens) for example in examples)
    found = {
        "tokens_per_s": tokens / seconds["collect"],
        "passages_per_s": len(examples) / seconds["collect"],
        "ratio_fwdbwd": seconds["collect"] / seconds["forward and backward"],
        "ratio_no_wgrad": seconds["collect"] / seconds["without weight gradients"],
        "ratio_own_fwdbwd": seconds["collect"] / seconds["own forward and backward"],
        "ratio_encode": seconds["encode"] / seconds["collect"],
        "peak_rss_bytes": peak,
        "bytes_per_passage": stored.bytes_per_row + 8,  # and two norms
    }
    setup = {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in traced.model.parameters()),
        "documents": len(examples),
        "tokens": tokens,
        "correction": correction,
        "moments": "none" if correction == "none" else "random",
        "proj": proj,
        "dims": collector.layout.dims,
        "dtype": dtype,
        "threads": threads,
        "rounds": rounds,
        "codec": codec,
        "seconds": seconds,
    }
    report(found, setup)
    return {**found, **setup}


def read_examples(model: str, corpus: str, docs: int, max_len: int) -> list[Any]:
    """The first documents of a JSONL file, cut after `max_len` tokens of the model's own tokenizer.

    Raises:
        MissingError: no such file, or no document in it.
    """
    import numpy as np
    from transformers import AutoTokenizer

    from headwater.attribution.models.base import Example

    if not Path(corpus).is_file():
        raise MissingError(f"--corpus {corpus or '(not given)'} is missing", expected="a JSONL file with `text`")
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in islice((line for line in file if line.strip()), docs)]
    tokens = [np.asarray(tokenizer(text, truncation=True, max_length=max_len)["input_ids"]) for text in texts]
    examples = [Example(each.astype(np.int64)) for each in tokens if len(each) > 1]
    if not examples:
        raise MissingError(f"{corpus} holds no document of two tokens or more")
    return examples


def report(found: dict[str, Any], setup: dict[str, Any]) -> None:
    print(
        f"{setup['parameters'] / 1e6:.1f}M parameters, {setup['documents']} documents, {setup['tokens']:,} tokens, "
        f"{setup['dtype']}, correction {setup['correction']}, {setup['threads']} thread(s), process time"
    )
    if setup["moments"] == "random":
        print("the second moments are random: no optimizer state was read")
    print(f"tokens/s                                     {found['tokens_per_s']:12,.0f}")
    print(f"passages/s                                   {found['passages_per_s']:12,.1f}")
    print(f"time over transformers' forward + backward   {found['ratio_fwdbwd']:12.3f}")
    print(f"  without weight gradients                   {found['ratio_no_wgrad']:12.3f}")
    print(f"  with Headwater's attention and head        {found['ratio_own_fwdbwd']:12.3f}")
    print(f"{'time of coding the rows over it':44s} {found['ratio_encode']:12.3f}")
    print(f"peak memory, MiB                             {found['peak_rss_bytes'] / 2**20:12,.0f}")
    stored = f"bytes a passage ({setup['dims']} dimensions, {setup['codec']})"
    print(f"{stored:44s} {found['bytes_per_passage']:12,.0f}")
