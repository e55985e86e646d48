"""From the parts of the study of tracing to its summary: the paper's claims, each in a file of `claims/`."""

from __future__ import annotations

from typing import Any

from headwater.launch.studies.claim import as_kept
from headwater.launch.studies.sizes import parameters_of
from headwater.launch.studies.tracing.claims import growth, kinds, parting, recipe
from headwater.launch.studies.tracing.measured import read_seed
from headwater.launch.studies.tracing.settings import TracingSettings, corpus_run, model_run, recipe_path


def summarise(settings: TracingSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock. Intervals are [mean, low, high],
    over seeds and subjects drawn with replacement."""
    from headwater.train.stream.passages import open_passages

    seeds = [read_seed(settings, seed) for seed in settings.seeds]
    parameters = {
        size.name: parameters_of(model_run(settings, settings.seeds[0], size.name).path) for size in settings.sizes
    }
    closely = settings.sizes[-1].name, settings.amounts[-1]
    summary: dict[str, Any] = {
        "setting": {name: getattr(settings, name) for name in ("preset", "pretrain", "amounts", "seeds", "questions")},
        "closely": list(closely),
        "passages": [len(open_passages(corpus_run(settings, seed))) for seed in settings.seeds],
        "questions": [{"seen": int(each.seen_Q.sum()), "unseen": int((~each.seen_Q).sum())} for each in seeds],
        "tail_patch": {"top": settings.evaluate.tail_patch.top, "queries": settings.evaluate.tail_patch.queries},
        "left_out_facts": settings.leave_out.facts,
        "measures": {
            "growth": growth.measure(seeds, parameters, settings.amounts),
            "parting": parting.measure(seeds, closely),
            "kinds": kinds.measure(seeds, closely),
            "recipe": recipe.measure(recipe_path(settings), settings.recipe),
        },
    }
    return summary | {"claims": judge(summary)}


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Each claim with its status, what was measured, its negative control, and how the study differs from the paper."""
    found = summary["measures"]
    toy, real = differences(summary), real_differences(found["recipe"])
    claims = [
        as_kept(claim, toy)
        for each in (growth, parting, kinds)
        for claim in each.judge(found[each.__name__.rpartition(".")[2]])
    ]
    return claims + [as_kept(claim, real) for claim in recipe.judge(found["recipe"])]


def differences(summary: dict[str, Any]) -> str:
    """How every claim's setting differs from the paper's, but that of the real model."""
    weights = list(summary["measures"]["growth"]["parameters"].values())
    facts = "facts of the user's own" if summary["setting"]["questions"] else "invented people instead of T-REx's facts"
    asked = sum(each["seen"] for each in summary["questions"])
    return "; ".join(
        [
            f"{min(weights) / 1e6:.1f}M to {max(weights) / 1e6:.1f}M weights instead of 154M to 8B",
            f"{max(summary['passages']):,} passages instead of 19.6M sentences or all of C4",
            f"{facts}, {asked} questions instead of 5.4k",
            f"tail-patch of the first {summary['tail_patch']['top']}",
            f"{len(summary['setting']['seeds'])} seed(s) instead of one model",
        ]
    )


def real_differences(found: Any) -> str:
    if found is None:
        return "not run"
    return (
        f"a pretrained model taught {found['passages']:,} passages, Adam's moments of that training alone; "
        f"{found['questions']} questions about invented people, the seed(s) of one run"
    )
