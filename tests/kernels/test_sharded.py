"""Two processes, each with its slice of a layer: what they project, added up, is the projection of the whole layer."""

import pytest
import torch
import torch.distributed as dist

from headwater.kernels import Factored, Full, project, project_shared, reference, signs

from ..jobs import call

RANKS, K, INPUTS, OUTPUTS = 2, 16, 96, 64
BOUNDS = torch.tensor([0, 0, 1, 34, 90], dtype=torch.int32)


def whole_layer(name: str, outputs: int):
    generator = torch.Generator().manual_seed(len(name))
    delta_TO = torch.randn(90, outputs, generator=generator)
    w_OI = torch.rand(outputs, INPUTS, generator=generator) + 0.1
    r_O, c_I = torch.rand(outputs, generator=generator) + 0.1, torch.rand(INPUTS, generator=generator) + 0.1
    return delta_TO, {"none": None, "full": Full(w_OI), "factored": Factored(r_O, c_I)}


def input_rows():
    return torch.randn(90, INPUTS, generator=torch.Generator().manual_seed(99))


def cut(correction, output=slice(None), inputs=slice(None)):
    match correction:
        case Full(w_OI):
            return Full(w_OI[output, inputs])
        case Factored(r_O, c_I):
            return Factored(r_O[output], c_I[inputs])
    return None


def side(name: str, n: int, rank: int, ranks: int = RANKS):
    """The slice of a sign matrix that a rank makes for itself."""
    return signs(0, name, n, K, start=rank * n // ranks, stop=(rank + 1) * n // ranks)


def work(results: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    a_TI = input_rows()
    output, inputs = (slice(rank * n // RANKS, (rank + 1) * n // RANKS) for n in (OUTPUTS, INPUTS))
    found = {}
    for kind in ("none", "full", "factored"):
        delta_TO, corrections = whole_layer("proj", OUTPUTS)
        column = project(
            delta_TO[:, output],
            a_TI,
            BOUNDS,
            side("proj", OUTPUTS, rank),
            signs(0, "in", INPUTS, K),
            cut(corrections[kind], output),
        )
        row = project(
            delta_TO,
            a_TI[:, inputs],
            BOUNDS,
            signs(0, "proj", OUTPUTS, K),
            side("in", INPUTS, rank),
            cut(corrections[kind], inputs=inputs),
        )
        # A rank holds half of gate above half of up, and their gradient comes as one tensor.
        gate, up = whole_layer("gate", OUTPUTS), whole_layer("up", OUTPUTS)
        both = torch.cat([gate[0][:, output], up[0][:, output]], dim=1)
        shared = project_shared(
            both.chunk(2, dim=1),
            a_TI,
            BOUNDS,
            [side("gate", OUTPUTS, rank), side("up", OUTPUTS, rank)],
            [signs(0, "in", INPUTS, K)] * 2,
            [cut(gate[1][kind], output), cut(up[1][kind], output)],
        )
        for name, rows in (("proj by columns", column), ("proj by rows", row), ("gate", shared[0]), ("up", shared[1])):
            dist.all_reduce(rows)
            found[f"{name}, {kind}"] = rows
    if rank == 0:
        torch.save(found, results)


@pytest.mark.slow
def test_slices_projected_and_added_equal_the_whole(tmp_path):
    log = tmp_path / "log"
    assert call(work, str(tmp_path / "rows.pt"), ranks=RANKS, log=log) == 0, log.read_text()
    found = torch.load(tmp_path / "rows.pt")
    assert len(found) == 12
    for name, rows in found.items():
        layer, kind = name.split()[0].strip(","), name.split()[-1]
        delta_TO, corrections = whole_layer(layer, OUTPUTS)
        left, right = signs(0, layer, OUTPUTS, K), signs(0, "in", INPUTS, K)
        expected = reference.project(delta_TO, input_rows(), BOUNDS, left, right, corrections[kind])
        assert (rows - expected).norm() / expected.norm() <= 1e-6, name
