"""The planner: exact parameters, memory against Megatron's estimate and against measured allocations, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.configs import ConfigError, UserError
from headwater.launch.machines import estimates
from headwater.launch.machines.estimates import Layout, Recipe
from headwater.launch.machines.layouts import PlanSettings, nearest_layouts, vocabulary
from headwater.launch.plan.report import load_plan, make_plan, run_plan, summary
from headwater.train.settings import CorpusSettings, ModelSettings, ParallelSettings, PretrainSettings, TrainSettings

from ...jobs import call
from .allocations import measured_and_planned

LLAMA = {
    "8b": ModelSettings(
        layers=32, hidden=4096, heads=32, kv_heads=8, ffn_hidden=14336, tie_embeddings=False, vocab_size=128256
    ),
    "3b": ModelSettings(layers=28, hidden=3072, heads=24, kv_heads=8, ffn_hidden=8192, vocab_size=128256),
    "1b": ModelSettings(layers=16, hidden=2048, heads=32, kv_heads=8, ffn_hidden=8192, vocab_size=128256),
}


def settings_of(
    model: str, *, tensor: int = 1, pipeline: int = 1, seq_len: int = 4096, micro: int = 1
) -> PretrainSettings:
    return PretrainSettings(
        model=LLAMA[model],
        parallel=ParallelSettings(tensor=tensor, pipeline=pipeline, sequence=tensor > 1),
        corpus=CorpusSettings(seq_len=seq_len, max_tokens=1024),
        train=TrainSettings(steps=1000, global_batch=512, micro_batch=micro, precision="bf16"),
    )


# Counts that the models' own cards and files state.
@pytest.mark.parametrize(("name", "count"), [("8b", 8_030_261_248), ("3b", 3_212_749_824), ("1b", 1_235_814_400)])
def test_parameters_of_published_models_are_exact(name: str, count: int):
    assert estimates.count_parameters(LLAMA[name], 128256).total == count


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_stages_add_up_to_the_model(tie: bool, tensor: int, pipeline: int):
    model = replace(LLAMA["1b"], tie_embeddings=tie)
    parameters = estimates.count_parameters(model, 128256)
    layout = Layout(tensor, pipeline, 1, False, 1, 1, 1, "none")
    stages = [parameters.on_stage(layout, stage == 0, stage == pipeline - 1) for stage in range(pipeline)]
    norms = model.layers * 2 * model.hidden + model.hidden
    copy = parameters.embedding if tie and pipeline > 1 else 0
    assert sum(stages) * tensor == parameters.total + copy + norms * (tensor - 1)


def megatron_bytes(settings: PretrainSettings, layout: Layout) -> float:
    """Megatron's estimate for selective recomputation with sequence parallelism and a distributed optimizer.

    Weights and optimizer: 6 + 12 / data bytes for each parameter of the most loaded rank. Activations: Table 2 of
    "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198) with its first stage's in-flight
    micro-batches, and 4 bytes for each logit where there is one stage.
    """
    model = settings.model
    hidden, ffn, vocab = model.hidden, model.ffn_hidden, model.vocab_size
    attention = 2 * hidden * hidden * (1 + model.kv_heads / model.heads)
    layers = model.layers * (attention + 3 * hidden * ffn + 2 * hidden) + hidden
    heads = 1 if model.tie_embeddings or layout.pipeline > 1 else 2
    held = (layers / layout.pipeline + heads * hidden * vocab) / layout.tensor * (6 + 12 / layout.data)
    tokens = settings.corpus.seq_len * layout.micro_batch
    kept = tokens * (model.layers * (18 * hidden + 4 * ffn) + (8 + hidden) * layout.pipeline)
    if layout.pipeline == 1:
        kept += 4 * tokens * (hidden + vocab)
    else:
        kept *= min(1, layout.micro_batches / layout.pipeline)
    return held + kept / layout.tensor


@pytest.mark.parametrize(
    ("name", "gpus", "options"),
    [
        ("8b", 64, {"tensor": 2, "seq_len": 8192}),
        ("8b", 64, {"tensor": 2, "pipeline": 2, "seq_len": 8192}),
        ("8b", 64, {"tensor": 4}),
        ("3b", 32, {}),
        ("1b", 16, {"micro": 2}),
    ],
)
def test_memory_agrees_with_megatrons_estimate(name: str, gpus: int, options: dict):
    settings = settings_of(name, **options)
    layout = Layout.of(settings, gpus)
    # Megatron keeps gradients in fp32, DeepSpeed in the weights' format: its bytes of a parameter are put in.
    recipe = Recipe(weights=2, gradients=4, moments=12 / layout.data)
    ours = estimates.memory_of(settings, layout, LLAMA[name].vocab_size, recipe=recipe, bucket=0).total
    assert ours == pytest.approx(megatron_bytes(settings, layout), rel=0.10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["zero.stage=0", "model.vocab_size=8192"]),
        (1, ["zero.stage=1"]),
        (1, ["zero.stage=3"]),
        (1, ["zero.stage=1", "train.precision=bf16"]),
        (1, ["zero.stage=2", "train.precision=bf16"]),
        (1, ["zero.stage=0", "train.recompute=full"]),
        (2, ["zero.stage=0"]),
        (2, ["zero.stage=1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_memory_agrees_with_measured_allocations(ranks: int, overrides: list[str], tmp_path: Path):
    shape = ["layers=4", "hidden=256", "heads=4", "kv_heads=2", "ffn_hidden=688", "vocab_size=4096"]
    common = [f"model.{each}" for each in shape] + ["corpus.seq_len=256", "train.micro_batch=4"]
    arguments = [*common, f"train.global_batch={8 * ranks}", *overrides]
    log, out = tmp_path / "log", tmp_path / "bytes.json"
    assert call(measured_and_planned, arguments, out, ranks=ranks, log=log) == 0, log.read_text()
    measured, planned = json.loads(out.read_text())
    assert planned == pytest.approx(measured, rel=0.15)


def test_one_fp32_replica_has_no_second_copy_of_its_weights():
    """Nothing is shared out, so torch's AdamW works on the weights: 4 + 4 + 8 bytes of a parameter, no bucket."""
    settings = settings_of("1b")
    settings.train.precision = "fp32"
    parameters = estimates.count_parameters(LLAMA["1b"], 128256).total
    for stage in (0, 1, 2):
        memory = estimates.memory_of(settings, replace(Layout.of(settings, 1), zero=stage), 128256)
        assert memory.weights + memory.gradients + memory.moments == 16 * parameters
        assert memory.communication == memory.update == 0
    shared = estimates.memory_of(settings, replace(Layout.of(settings, 2), zero=1), 128256)
    assert shared.moments == 12 * parameters / 2
    plain = estimates.memory_of(settings, replace(Layout.of(settings, 2), zero=0), 128256)
    assert (plain.moments, plain.update) == (8 * parameters, 4 * estimates.REDUCE_BUCKET)


def test_zero_stages_share_out_what_they_say():
    settings = settings_of("1b")
    by_stage = [
        estimates.memory_of(settings, replace(Layout.of(settings, 16), zero=stage), 128256) for stage in range(4)
    ]
    parameters = 1_235_814_400
    assert by_stage[0].moments == 12 * parameters
    assert by_stage[1].moments == pytest.approx(12 * parameters / 16)
    # Sums of micro-batches are kept in fp32: whole beside bf16 gradients, or this rank's share of them.
    assert by_stage[1].gradients + by_stage[1].sums == 4 * parameters
    assert by_stage[2].gradients == pytest.approx(4 * parameters / 16)
    assert estimates.memory_of(settings, replace(Layout.of(settings, 16), micro_batches=1), 128256).sums == 0
    assert by_stage[3].weights < by_stage[2].weights
    assert by_stage[0].total > by_stage[1].total > by_stage[2].total > by_stage[3].total


def test_recomputation_and_sequence_parallelism_save_activations():
    plain = settings_of("8b", tensor=4)
    layout = Layout.of(plain, 64)

    def activations(**changes: object) -> int:
        return estimates.memory_of(plain, replace(layout, **changes), 128256).activations  # type: ignore[arg-type]

    assert activations(recompute="full") < activations() / 10
    assert activations(sequence=False) > activations()


def test_operations_and_time_are_the_plain_formula():
    settings = settings_of("8b", tensor=2)
    plan = make_plan(settings, PlanSettings(gpus=64, mfu=0.5))
    tokens = 512 * 4096
    assert plan.operations.matrices == 6 * (plan.parameters.matrices + 128256 * 4096)
    flops = summary(plan)["flops_per_step"]
    # 6 N for each token, to within the embedding's rows and attention over at most 1024 places.
    assert flops == pytest.approx(6 * plan.parameters.total * tokens, rel=0.05)
    assert plan.time.step == pytest.approx(flops / (64 * 989e12 * 0.5))
    assert plan.time.days == pytest.approx(plan.time.step * 1000 / 86400)
    assert plan.checkpoint == 12 * plan.parameters.total
    piped = make_plan(settings_of("8b", tensor=2, pipeline=4), PlanSettings(gpus=64, mfu=0.5))
    micro_batches = 512 / 8
    assert piped.time.step == pytest.approx(plan.time.step * (micro_batches + 3) / micro_batches)


def test_index_bytes_are_the_codecs_own():
    from headwater.attribution.index.codecs.registry import CODECS
    from headwater.attribution.rows.layout import RowLayout

    plan = make_plan(settings_of("1b"), PlanSettings(gpus=8, projection=16, passages=1000))
    layout = RowLayout([(f"module{number}", 16, 16) for number in range(plan.index.modules)])
    assert plan.index.dims == layout.dims
    checked = set(CODECS) & set(plan.index.bytes)
    assert {"bf16", "int8"} <= checked
    for name in checked:
        # Two float32 norms are stored beside each row.
        assert plan.index.bytes[name] == pytest.approx(1000 * (CODECS[name](layout).bytes_per_row + 8), rel=0.02), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.tensor=3"], "a divisor of model.ffn_hidden"),
        (["parallel.tensor=16", "gpus=32"], "a divisor of model.kv_heads"),
        (["parallel.pipeline=5", "gpus=80"], "a divisor of model.layers"),
        (["gpus=12", "parallel.pipeline=8"], "a multiple of parallel.tensor x parallel.pipeline"),
        (["parallel.pipeline=2", "zero.stage=2"], "0 or 1 when parallel.pipeline"),
        (["train.micro_batch=6", "gpu=l40s"], "memory per GPU"),
        (["train.global_batch=4"], "train.global_batch = 4"),
        (["zero.stage=0"], "with bf16"),
    ],
)
def test_impossible_layouts_are_refused_with_some_that_work(tmp_path: Path, overrides: list[str], message: str):
    path = tmp_path / "8b.yaml"
    path.write_text(
        "model: {layers: 32, hidden: 4096, heads: 32, kv_heads: 8, ffn_hidden: 14336, tie_embeddings: false,"
        " vocab_size: 128256}\ncorpus: {seq_len: 4096}\nparallel: {tensor: 2}\n"
        "train: {global_batch: 480, micro_batch: 1, precision: bf16}\n"
    )
    with pytest.raises(UserError, match=message) as caught:
        make_plan(*load_plan(str(path), ["gpus=16", *overrides]))
    assert "use one of these" in str(caught.value)
    proposal = str(caught.value).split("use one of these:\n")[1].splitlines()[0].partition("#")[0].split()
    make_plan(*load_plan(str(path), ["gpus=16", *overrides, *proposal]))


def test_too_few_gpus_names_how_many_are_enough():
    machines = PlanSettings(gpus=1, gpu="l40s")
    with pytest.raises(UserError, match=r"gpus=\d+"):
        make_plan(settings_of("8b"), machines)
    assert nearest_layouts(settings_of("8b"), machines, 128256) == []


def test_other_mistakes_come_together_and_are_not_taken_for_layouts():
    with pytest.raises(ConfigError) as caught:
        load_plan(None, ["gpus=x", "gpu=h1000", "model.heads=3", "train.stops=1"])
    assert {problem.key for problem in caught.value.problems} == {
        "gpus",
        "gpu",
        "model.hidden",
        "model.kv_heads",
        "train.stops",
    }


def test_vocabulary_comes_from_the_tokenizer_file(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 7}]}))
    settings = PretrainSettings()
    settings.corpus.tokenizer.path = str(path)
    assert vocabulary(settings) == 8
    path.write_text("{}")
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        vocabulary(settings)


def test_json_output_and_no_torch(capsys: pytest.CaptureFixture[str]):
    run_plan(None, ["gpus=1"], as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["memory"]["total"] > 0
    run_plan(None, ["gpus=1"])
    assert "checkpoint" in capsys.readouterr().out
    code = "import sys; from headwater.launch.plan.report import run_plan; run_plan(None, ['gpus=1'])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)
