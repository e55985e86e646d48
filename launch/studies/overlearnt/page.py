"""Summary, table and page of the study of overlearnt facts, from what its parts have left."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, interval, paired, resampled_means
from headwater.attribution.evaluation.ranking import Ranking, read_rankings
from headwater.attribution.evaluation.table import build_table, format_interval
from headwater.launch.studies.overlearnt.process import last_probabilities
from headwater.launch.studies.overlearnt.settings import LABELS, METHODS, OverlearntSettings, model_run
from headwater.train.artifacts import RunDir, read_json, write_bytes, write_json

METRICS = {"mrr": "MRR", "hit@10": "Hit@10", "recall@10": "Recall@10", "tail_patch": "Tail-patch"}
SHOWN = (*METHODS, "bm25", "random", "gold")
HOLDS, ON_AVERAGE, FAILS = "holds", "holds on average", "does not hold"
HELD_TO = {"last_log_odds": 0.85, "captured": 0.90}
"""Least MRR."""
SHARE_OF_GOLD = 0.85
"""Least share of the drop that leaving out the gold passages brings."""


def summarise(settings: OverlearntSettings) -> dict[str, Any]:
    """The study's figures: a function of what the parts have left, and of no clock."""
    asked = {seed: read_measured(settings, seed) for seed in settings.seeds}
    drops = {seed: read_drops(settings, seed) for seed in settings.seeds}
    seeds = {}
    for seed in settings.seeds:
        rankings, patched = asked[seed]
        seeds[str(seed)] = {
            **build_table(rankings, patched, reference="captured", seed=0),
            "leave_out": leave_out_table(drops[seed]),
            "model": model_figures(model_run(settings, seed), settings.leave_out.known),
        }
    pooled = {
        **build_table(*pool(asked), reference="captured", seed=0),
        "leave_out": leave_out_table(joined(list(drops.values()))),
    }
    setting = {name: getattr(settings, name) for name in ("preset", "pretrain", "precision", "checkpoints")}
    return {"setting": setting, "seeds": seeds, "pooled": pooled, "claims": judge(pooled, seeds)}


def read_measured(
    settings: OverlearntSettings, seed: int
) -> tuple[dict[str, list[Ranking]], dict[str, np.ndarray] | None]:
    """The rankings of every method, and the tail-patch of each query if it was measured."""
    run = model_run(settings, seed)
    names = [*METHODS, "bm25", "random"]
    rankings = {name: read_rankings(run.evaluation / f"{name}.jsonl") for name in names}
    if not settings.evaluate.tail_patch.enabled:
        return rankings, None
    rise = read_json(run.evaluation / "tail_patch.json")["rise"]
    return rankings, {name: np.array(values) for name, values in rise.items()}


def pool(asked: Mapping[int, tuple[dict[str, list[Ranking]], dict[str, np.ndarray] | None]]) -> tuple[Any, Any]:
    """All seeds' queries as one set."""
    rankings: dict[str, list[Ranking]] = {}
    patched: dict[str, list[np.ndarray]] = {}
    for seed, (ranked, rises) in asked.items():
        for name, each in ranked.items():
            rankings.setdefault(name, []).extend(replace(r, example_id=f"{seed}/{r.example_id}") for r in each)
        for name, values in (rises or {}).items():
            patched.setdefault(name, []).append(values)
    return rankings, {name: np.concatenate(parts) for name, parts in patched.items()} or None


def model_figures(run: RunDir, known: float) -> dict[str, float]:
    """Probes, their targets' mean probability at the end of training, and the share of those that are known."""
    probability = last_probabilities(run)
    return {
        "probes": len(probability),
        "target_prob": float(probability.mean()),
        "known": float(np.mean(probability >= known)),
    }


def read_drops(settings: OverlearntSettings, seed: int) -> dict[str, dict[str, Any]]:
    """Per arm: how many passages were left out, each fact's probability before, and its drop: float64 [facts]."""
    model = model_run(settings, seed)
    facts = read_json(model.path / "leave_out" / "facts.json")
    places = [fact["probe"] for fact in facts]
    before_F = last_probabilities(model)[places]
    arms = {}
    for arm in settings.leave_out.arms:
        after_F = last_probabilities(RunDir(model.path.parent / f"without-{arm.replace('_', '-')}"))[places]
        passages = len((model.path / "leave_out" / f"{arm}.txt").read_text().splitlines())
        arms[arm] = {"passages": passages, "drop": before_F - after_F, "before": before_F}
    return arms


def joined(parts: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {
        arm: {
            "passages": sum(part[arm]["passages"] for part in parts),
            "drop": np.concatenate([part[arm]["drop"] for part in parts]),
            "before": np.concatenate([part[arm]["before"] for part in parts]),
        }
        for arm in parts[0]
    }


def leave_out_table(arms: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Per arm: passages left out, facts, their mean probability before, its drop, the drop as a share of gold's, and
    what it is above the random arm's, fact by fact; intervals over facts drawn with replacement."""
    table = {}
    for arm, row in arms.items():
        entry: dict[str, Any] = {
            "passages": row["passages"],
            "facts": len(row["drop"]),
            "before": float(row["before"].mean()),
            "drop": interval(row["drop"]),
        }
        if "gold" in arms:
            entry["share_of_gold"] = share(row["drop"], arms["gold"]["drop"])
        if "random" in arms:
            entry["above_random"] = paired(row["drop"], arms["random"]["drop"]).difference
        table[arm] = entry
    return table


def share(drop_F: np.ndarray, gold_F: np.ndarray) -> list[float]:
    """[ratio of the means, low, high]; both means of a draw are over the same facts."""
    over_R = resampled_means(gold_F, RESAMPLES, 0)
    under = np.where(np.abs(over_R) < 1e-9, np.nan, over_R)
    low, high = np.nanquantile(resampled_means(drop_F, RESAMPLES, 0) / under, [0.025, 0.975])
    whole = float(gold_F.mean())
    return [float(drop_F.mean()) / whole if whole else float("nan"), float(low), float(high)]


def judge(pooled: Mapping[str, Any], seeds: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the study is held to, over all seeds: `holds` where the interval lies above the bound, `holds on average`
    where only the mean does."""
    claims = []
    for method, bound in HELD_TO.items():
        value = pooled["methods"][method]["mrr"]
        each = ", ".join(f"seed {seed}: {row['methods'][method]['mrr'][0]:.3f}" for seed, row in seeds.items())
        what = f"{LABELS[method]}: MRR at least {bound:.2f}"
        claims.append({"claim": what, "status": status(value, bound), "measured": f"{as_interval(value)}; {each}"})
    for method in HELD_TO:
        row = pooled["leave_out"].get(method)
        if row is None:
            continue
        if "share_of_gold" in row:
            value = row["share_of_gold"]
            what = f"{LABELS[method]}: leaving out what it names takes at least {SHARE_OF_GOLD:.0%} of gold's drop"
            claims.append({"claim": what, "status": status(value, SHARE_OF_GOLD), "measured": as_interval(value)})
        if "above_random" in row:
            value = row["above_random"]
            what = f"{LABELS[method]}: its drop is clear of random passages'"
            claims.append({"claim": what, "status": HOLDS if value[1] > 0 else FAILS, "measured": as_interval(value)})
    return claims


def status(value: list[float], bound: float) -> str:
    if value[1] >= bound:
        return HOLDS
    return ON_AVERAGE if value[0] >= bound else FAILS


def as_interval(value: list[float] | None) -> str:
    return format_interval("mrr", value)


def write_report(settings: OverlearntSettings, summary: dict[str, Any]) -> Path:
    """Writes summary.json, table.md, and the page under report/; returns the page."""
    import jinja2

    out = Path(settings.out)
    write_json(out / "summary.json", summary)
    write_bytes(out / "table.md", as_markdown(summary).encode())
    image = draw(summary)
    write_bytes(out / "report" / "methods.png", image)
    environment = jinja2.Environment(autoescape=True)
    environment.filters["cell"] = format_interval
    page = environment.from_string(TEMPLATE).render(
        s=summary,
        labels=LABELS,
        metrics=METRICS,
        shown=SHOWN,
        groups={"All seeds": summary["pooled"], **{f"Seed {seed}": row for seed, row in summary["seeds"].items()}},
        image=base64.b64encode(image).decode(),
        minutes=spent_minutes(settings),
    )
    write_bytes(out / "report" / "index.html", page.encode())
    return out / "report" / "index.html"


def spent_minutes(settings: OverlearntSettings) -> float:
    """Minutes of all parts, one after the other."""
    return sum(read_json(path) for path in Path(settings.out).glob("seed-*/*/seconds.json")) / 60


def as_markdown(summary: Mapping[str, Any]) -> str:
    """Both tables, all seeds pooled, then each seed's means, and the claims."""
    seeds = list(summary["seeds"])
    heads = [*METRICS.values(), *(f"MRR, seed {seed}" for seed in seeds)]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in SHOWN:
        row = summary["pooled"]["methods"].get(name)
        if row is None:
            continue
        cells = [format_interval(metric, row.get(metric)) for metric in METRICS]
        cells += [as_interval(summary["seeds"][seed]["methods"][name].get("mrr")) for seed in seeds]
        lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
    heads = ["passages", "drop", "share of gold's", "above random", *(f"drop, seed {seed}" for seed in seeds)]
    lines += ["", "| left out | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm, row in summary["pooled"]["leave_out"].items():
        cells = [f"{row['passages']:,}", *(as_interval(row.get(k)) for k in ("drop", "share_of_gold", "above_random"))]
        cells += [as_interval(summary["seeds"][seed]["leave_out"][arm]["drop"]) for seed in seeds]
        lines.append(f"| {LABELS[arm]} | " + " | ".join(cells) + " |")
    lines += ["", "| held to | status | measured |", "|---|---|---|"]
    lines += [f"| {claim['claim']} | {claim['status']} | {claim['measured']} |" for claim in summary["claims"]]
    return "\n".join(lines) + "\n"


def draw(summary: Mapping[str, Any]) -> bytes:
    """Retrieval and leave-out side by side: bars with intervals over all seeds, a dot for each seed. PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [name for name in SHOWN if "mrr" in summary["pooled"]["methods"].get(name, {})]
    arms = list(summary["pooled"]["leave_out"])
    panels = [
        ("MRR", methods, lambda part, name: part["methods"][name]["mrr"]),
        ("drop of the target's probability", arms, lambda part, name: part["leave_out"][name]["drop"]),
    ]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.6))
    for axis, (title, names, value) in zip(axes, panels, strict=True):
        for place, name in enumerate(reversed(names)):
            mean, low, high = value(summary["pooled"], name)
            colour = "#1f4e79" if name in METHODS else "#999999"
            axis.barh(place, mean, color=colour, xerr=[[mean - low], [high - mean]], ecolor="#222222", capsize=3)
            points = [value(part, name)[0] for part in summary["seeds"].values()]
            axis.plot(points, [place] * len(points), "o", color="#c55a11", markersize=4)
        axis.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)], fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    data = io.BytesIO()
    figure.tight_layout()
    figure.savefig(data, format="png", dpi=110)
    pyplot.close(figure)
    return data.getvalue()


TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Overlearnt facts</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.n, th.n { text-align: right } img { max-width: 100% } .holds, .holds-on-average { color: #2c6e2f; font-weight: 600 }
.does-not-hold { color: #a33; font-weight: 600 } .scroll { overflow-x: auto } small { color: #555 }
</style>
<h1>Facts learnt too well, and what still finds their sources</h1>
<p>{{ s.setting.preset }} with {{ s.setting.pretrain | join(", ") }}; {{ s.setting.precision }};
{{ s.setting.checkpoints }} saved checkpoints. {% for seed, row in s.seeds.items() %}Seed {{ seed }}: the
{{ row.model.probes }} targets have a mean probability of {{ "%.2f" | format(row.model.target_prob) }} at the end.
{% endfor %}All parts took {{ "%.0f" | format(minutes) }} minutes, counted one after the other.</p>
<h2>Held to</h2>
<div class="scroll"><table><tr><th>claim<th>status<th>measured</tr>
{% for c in s.claims %}<tr><td>{{ c.claim }}<td class="{{ c.status | replace(" ", "-") }}">{{ c.status }}
<td>{{ c.measured }}</tr>
{% endfor %}</table></div>
<img alt="MRR of each method, and drop of the probability of each list left out"
src="data:image/png;base64,{{ image }}">
{% for title, part in groups.items() %}
<h2>{{ title }}</h2>
<div class="scroll"><table><tr><th>method{% for name in metrics.values() %}<th class="n">{{ name }}{% endfor %}</tr>
{% for name in shown if name in part.methods %}<tr><td>{{ labels[name] }}
{% for metric in metrics %}<td class="n">{{ metric | cell(part.methods[name].get(metric)) }}{% endfor %}</tr>
{% endfor %}</table></div>
<div class="scroll"><table><tr><th>left out<th class="n">passages<th class="n">facts<th class="n">probability before
<th class="n">drop<th class="n">share of gold's<th class="n">above random</tr>
{% for arm, row in part.leave_out.items() %}<tr><td>{{ labels[arm] }}<td class="n">{{ row.passages }}
<td class="n">{{ row.facts }}<td class="n">{{ "%.3f" | format(row.before) }}<td class="n">{{ "mrr" | cell(row.drop) }}
<td class="n">{{ "mrr" | cell(row.get("share_of_gold")) }}<td class="n">{{ "mrr" | cell(row.get("above_random")) }}</tr>
{% endfor %}</table></div>
{% endfor %}
<p><small>Means with 95% bootstrap intervals, over queries or facts drawn with replacement. Tail-patch: mean rise of the
target's probability after one training step on a passage; on an overlearnt model it rewards the local step, and ranks
the methods otherwise than leaving out does. Leaving out: the facts are drawn among those that the model knows; the
union of the best passages of all of them is taken out of the stream and the model trained again from the same weights
in the same order. Random: as many planted passages that state none of the facts. Status: "holds" where the whole
interval is on the claim's side, "holds on average" where only the mean is.</small></p>
</html>
"""
