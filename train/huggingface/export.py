"""From a checkpoint to a Llama directory of Hugging Face.

headwater export runs/a out/a-llama     # LlamaForCausalLM.from_pretrained("out/a-llama"): the same logits
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from headwater.configs.errors import MissingError, UserError
from headwater.train.artifacts import RunDir, atomic_path, read_json, require_empty, write_bytes, write_json
from headwater.train.checkpoint import Checkpoint, model_settings, newest, open_checkpoint
from headwater.train.huggingface.families import DTYPES, family_config
from headwater.train.huggingface.names import to_llama
from headwater.train.tensor_files import save_tensors
from headwater.train.tokenizer import TextTokenizer

_FILE_BYTES = 5 << 30


def find_checkpoint(path: str | Path, step: int | None = None) -> Checkpoint:
    """A checkpoint directory itself, or the newest (or the given) one of a run.

    Raises:
        MissingError: there is none.
    """
    path = Path(path)
    if step is None and (path / "checkpoint.json").exists():
        return open_checkpoint(path)
    run = RunDir.at(path)
    found = newest(run.checkpoints) if step is None else open_checkpoint(run.checkpoint(step))
    if found is None:
        raise MissingError(
            f"{path} has no checkpoint",
            expected="a run directory, or a directory with checkpoint.json",
            fix="run `headwater pretrain` first",
        )
    return found


def export_llama(source: str | Path, out: str | Path, *, step: int | None = None, dtype: str = "fp32") -> Checkpoint:
    """Writes a directory that `LlamaForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Raises:
        MissingError, CorruptError: no whole checkpoint.
        UserError: `out` is not empty, or `dtype` is unknown.
    """
    out = Path(out)
    require_empty(out)
    if dtype not in DTYPES:
        raise UserError("there is no such number format", got=dtype, expected=" or ".join(DTYPES))
    checkpoint = find_checkpoint(source, step)
    checkpoint.verify()
    model = model_settings(checkpoint)
    tokenizer, eos, context = _tokenizer_of(checkpoint)
    with atomic_path(out) as part:
        part.mkdir()
        _write_shards(part, ((name, tensor.to(DTYPES[dtype])) for name, tensor in to_llama(checkpoint, model)))
        write_json(part / "config.json", family_config(model, tokenizer, eos, context, dtype))
        if tokenizer is not None:
            _write_tokenizer(part, tokenizer, eos, context)
    return checkpoint


def _tokenizer_of(checkpoint: Checkpoint) -> tuple[TextTokenizer | None, int | None, int]:
    """The tokenizer that lies in the checkpoint or its run, the token that documents ended with where they did, and the
    longest passage that the model was trained on."""
    run = RunDir.at(checkpoint.path.parent.parent)
    path = next((p for p in (checkpoint.path / "tokenizer.json", run.tokenizer) if p.exists()), None)
    tokenizer, context = None, int(checkpoint.meta.get("context", 2048))
    if path is not None:
        tokenizer = TextTokenizer.from_file(path, checkpoint.meta.get("bos", ""))
    eos = checkpoint.meta.get("eos_id")
    manifest = run.corpus / "base" / "manifest.json"
    if manifest.exists():
        corpus = read_json(manifest)
        eos, context = corpus.get("eos_id"), int(corpus["max_tokens"])
    return tokenizer, eos, context


def _write_tokenizer(directory: Path, tokenizer: TextTokenizer, eos: int | None, context: int) -> None:
    from tokenizers import Tokenizer, processors

    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    # Every passage begins with this token in training, so every text does there too.
    own.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos} $A", pair=f"{tokenizer.bos} $A $B", special_tokens=[(tokenizer.bos, tokenizer.bos_id)]
    )
    write_bytes(directory / "tokenizer.json", own.to_str(pretty=True).encode())
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos,
            "eos_token": None if eos is None else own.id_to_token(eos),
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
        },
    )


def _write_shards(directory: Path, named: Iterator[tuple[str, Tensor]]) -> None:
    """model.safetensors, or numbered files of a few GiB with an index."""
    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def put() -> None:
        save_tensors(directory / f"part-{len(files)}", held, {"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in named:
        if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > _FILE_BYTES:
            put()
        held[name] = tensor.contiguous()
        total += tensor.nbytes
    put()
    if len(files) == 1:
        (directory / "part-0").rename(directory / "model.safetensors")
        return
    places = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (directory / f"part-{number}").rename(directory / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(directory / "model.safetensors.index.json", index)
