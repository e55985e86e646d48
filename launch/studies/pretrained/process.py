"""One part of the study of a real pretrained model, in a process of its own.

    python -m headwater.launch.studies.pretrained.process runs/study/pretrained/seed-0/model [CORES]

A model goes on training, and is asked what it knew before. A tracing indexes it as it was after a step, ranks all
passages by every method, and at the step whose lists are left out draws the facts and measures the tail-patch. A
retraining takes its corpus from the model and leaves one of these lists out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.attribution.evaluation.ranking import Ranking
from headwater.attribution.settings import EvaluateSettings, ProjectionSettings
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.configs import load_config
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import counting_seconds, pretrain_whole, share_corpus
from headwater.launch.studies.leave_out import draw_facts, named_by, probed, write_lists
from headwater.launch.studies.pretrained.common import write_common
from headwater.launch.studies.pretrained.settings import PretrainedSettings, left_out_step, model_run, start_path
from headwater.train.artifacts import RunDir
from headwater.train.huggingface.importing import import_llama
from headwater.train.settings import PretrainSettings

if TYPE_CHECKING:
    from headwater.train.parallel import World


def train_or_trace(path: Path, task: dict[str, Any]) -> int:
    """Makes a part, or goes on with it; returns the exit status."""
    factors, out = task["factors"], path.parent.parent
    if factors["part"] == "start":
        import_llama(factors["model"], start_path(path.parent))
        return 0
    if factors["part"] == "traced":
        settings = load_config(PretrainedSettings, out / "config.yaml", [f"out={out}"])
        trace_at(path, settings, factors["seed"], factors["step"])
        return 0
    if factors["part"] == "retraining":
        share_corpus(path.parent / "model", path)
    else:
        write_common(path)
    return pretrain_whole(path, load_config(PretrainSettings, task["preset"], task["overrides"]))


def trace_at(path: Path, settings: PretrainedSettings, seed: int, step: int) -> None:
    """Ranks all passages for every question with the model as it was after a step, and writes table.json at the end."""
    from headwater.attribution.evaluation.evaluate import measure_tail_patch
    from headwater.attribution.evaluation.ranking import write_rankings
    from headwater.attribution.evaluation.table import build_table, write_table
    from headwater.train import parallel
    from headwater.train.numerics import keep_freed_memory, use_onednn
    from headwater.train.stream.passages import open_passages

    run = model_run(settings, seed)
    evaluate = replace(settings.evaluate, run=str(run.path), seed=seed)
    build_indexes(run, settings, seed, step)
    queries = read_queries(run.facts / "probes.jsonl")
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        passages = open_passages(run)
        rankings = rank(run, settings, evaluate, step, queries, world)
        for name, each in rankings.items():
            write_rankings(path / f"{name}.jsonl", each)
        patched = None
        if step == left_out_step(settings):
            leave_out, probability = settings.leave_out, probed(run, step)
            chosen = draw_facts(probability, leave_out.known, leave_out.facts, seed)
            named = named_by(path, run, leave_out.arms, [queries[i] for i in chosen], leave_out.top, seed)
            write_lists(run, queries, probability, chosen, named)
            if evaluate.tail_patch.enabled:
                patched = measure_tail_patch(run, step, evaluate, queries, rankings, passages, world).probability
    finally:
        parallel.stop()
    write_table(path / "table.json", build_table(rankings, patched, seed=0))


def build_indexes(run: RunDir, settings: PretrainedSettings, seed: int, step: int) -> None:
    """`headwater-STEP`, as the settings say, and where they ask for it `head-STEP`, rows of the output head alone, and
    `gradient-STEP`: cross entropy, no curvature."""
    from headwater.attribution.index.build import build_index

    model = replace(settings.index.model, run=str(run.path), path="", step=step)
    base = replace(settings.index, out="", model=model, projection=replace(settings.index.projection, seed=seed))
    build_index(replace(base, name=f"headwater-{step}"))
    if settings.head:
        build_index(replace(base, name=f"head-{step}", projection=head_alone(base.projection, settings.head)))
    if step in settings.plain:
        plain = replace(base.curvature, kind="none", damping=None, sample=None)
        build_index(replace(base, name=f"gradient-{step}", loss="cross_entropy", correction="none", curvature=plain))


def head_alone(projection: ProjectionSettings, dims: int) -> ProjectionSettings:
    """A projection that leaves no module but the output head."""
    return replace(projection, modules={"*": 0}, head=dims)


def rank(
    run: RunDir,
    settings: PretrainedSettings,
    evaluate: EvaluateSettings,
    step: int,
    queries: list[Query],
    world: World,
) -> dict[str, list[Ranking]]:
    """The ranking of all passages for every question, by method."""
    from headwater.attribution.evaluation.any_index import baselines
    from headwater.attribution.evaluation.evaluate import GradientMethod, gradient_rankings
    from headwater.train.stream.passages import open_passages

    methods = {"headwater": GradientMethod(f"headwater-{step}", "task")}
    if settings.head:
        methods["head"] = GradientMethod(f"head-{step}", "task")
    if step == settings.traced[-1]:
        methods["captured"] = GradientMethod("captured", "task")
    if step in settings.plain:
        methods["gradient_cosine"] = GradientMethod(f"gradient-{step}", "none")
        methods["gradient_dot"] = GradientMethod(f"gradient-{step}", "none", normalize=False)
    found = {name: gradient_rankings(run, method, queries, evaluate, world) for name, method in methods.items()}
    passages = open_passages(run)
    return found | {method.name: method.rank(queries, passages) for method in baselines(evaluate)}


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], counting_seconds(train_or_trace)))
