"""Pieces of checkpoints: where a part's numbers lie, and files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwater.configs.errors import CorruptError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import open_checkpoint
from headwater.train.loading import Pieces, runs
from headwater.train.model import ParameterPart
from headwater.train.tensor_files import TensorFile, save_tensors

from ..jobs import call, train


@pytest.mark.parametrize(
    ("shape", "dim", "gated"),
    [((9, 5), 0, False), ((12, 5), 0, True), ((7, 9), 1, False), ((9,), 0, False), ((7,), None, False)],
)
def test_runs_are_where_the_part_lies_in_the_whole(shape: tuple[int, ...], dim: int | None, gated: bool) -> None:
    size = 3
    parameter = torch.nn.Parameter(torch.zeros(1))
    part = ParameterPart("x", parameter, shape, dim, gated)
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    for rank in range(size):
        own = part.slice(whole, rank, size).flatten()
        for first in range(len(own)):
            for count in range(len(own) - first + 1):
                found = [
                    n for start, length in runs(part, rank, size, first, count) for n in range(start, start + length)
                ]
                assert found == own[first : first + count].tolist()


def test_runs_of_neighbouring_rows_are_one() -> None:
    part = ParameterPart("x", torch.nn.Parameter(torch.zeros(1)), (8, 5), 0, False)
    assert list(runs(part, 1, 2, 3, 12)) == [(23, 12)]


def test_a_file_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "whole": torch.arange(4)}
    save_tensors(tmp_path / "x.safetensors", tensors)
    file = TensorFile(tmp_path / "x.safetensors", "")
    assert torch.equal(
        file.read("a", [(2, 4), (13, 2)], 6), torch.cat([tensors["a"].flatten()[i:j] for i, j in ((2, 6), (13, 15))])
    )
    assert torch.equal(file.read("b", [(0, 7)], 7), tensors["b"])
    for name in ("c", "whole"):
        with pytest.raises(CorruptError, match=name):
            file.read(name, [(0, 1)], 1)
    file.close()
    whole = (tmp_path / "x.safetensors").read_bytes()
    damaged = [whole[:length] for length in (0, 5, 60, len(whole) - 1)]
    for harmed in (*damaged, len(b"[]").to_bytes(8, "little") + b"[]", b"\xff" * 40):
        (tmp_path / "x.safetensors").write_bytes(harmed)
        with pytest.raises(CorruptError, match=r"x\.safetensors"):
            TensorFile(tmp_path / "x.safetensors", "").read("b", [(0, 7)], 7)
    with pytest.raises(CorruptError, match="gone"):
        TensorFile(tmp_path / "gone", "")


EMBEDDING, NORM = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"


def place(name: str, *shape: int) -> ParameterPart:
    return ParameterPart(name, torch.nn.Parameter(torch.zeros(1)), shape, 0 if name == EMBEDDING else None, False)


def read_where_one_lacks_a_file(path: str) -> None:
    """On every rank: rank 1 finds no file of the final norm; nobody waits for it."""
    from headwater.train import parallel

    world = parallel.start()
    checkpoint = open_checkpoint(path)
    if world.rank == 1:
        checkpoint.meta["tensors"]["weight"][NORM]["file"] = "gone.safetensors"
    with Pieces(checkpoint) as pieces:
        whole = pieces.shared("weight", place(EMBEDDING, 384, 32), world.device)
    assert torch.equal(whole, checkpoint.tensor("weight", EMBEDDING).flatten())
    with (
        pytest.raises(UserError, match=r"gone\.safetensors cannot be read \(rank 1 on "),
        Pieces(checkpoint) as pieces,
    ):
        [pieces.shared("weight", place(NORM, 32), world.device) for _ in range(3)]
    with pytest.raises(UserError, match="another shape"), Pieces(checkpoint) as pieces:
        pieces.read("weight", place(EMBEDDING, 384, 16), 0, 1)


@pytest.mark.slow
def test_a_piece_that_one_rank_cannot_read_is_said_by_all(fresh: Callable[[], Path], config: Path, tmp_path: Path):
    run, log = RunDir.at(fresh()), tmp_path / "log"
    train([config, f"out={run.path}", "train.hard_stop=1", "checkpoint.every=1"], log=log)
    assert call(read_where_one_lacks_a_file, str(run.checkpoint(1)), ranks=2, log=log) == 0, log.read_text()
