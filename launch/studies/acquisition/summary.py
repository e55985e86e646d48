"""From the probes of a study's runs to its summary: acquisition by injection, retention by scenario and depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from headwater.launch.studies.acquisition.conditions import Condition, Conditions
from headwater.launch.studies.acquisition.judging import judge, measure_claims
from headwater.launch.studies.acquisition.measured import CONTROL, Measured, pool, read_run
from headwater.launch.studies.acquisition.metrics import fit_exponential, fit_power
from headwater.launch.studies.acquisition.parts import REAL, ContinuedPart
from headwater.launch.studies.acquisition.records import CONTROL_SEED, grid_of
from headwater.launch.studies.acquisition.settings import AcquisitionSettings
from headwater.launch.studies.sizes import parameters_of
from headwater.train.artifacts import read_json
from headwater.train.facts.fictional import DEPTHS


def groups_of(measured: Measured) -> list[tuple[str, str, np.ndarray]]:
    """Group, depth and probes, in the order in which the records stand; the control last."""
    names = dict.fromkeys(measured.group_P.tolist())
    ordered = [name for name in names if name != CONTROL] + [CONTROL] * (CONTROL in names)
    found = [(name, depth, measured.of(name, depth)) for name in ordered for depth in DEPTHS]
    return [each for each in found if len(each[2])]


def summarise_group(conditions: Conditions, condition: Condition, group: str, chosen: np.ndarray) -> dict[str, Any]:
    """What one group and depth shows: effectivity, decay, fits, with intervals over seeds and records."""
    measured, effect_PI = condition.measured, condition.effect_PI
    sample = (measured, chosen)
    owners = {(measured.seed_P[n], measured.owner_P[n]) for n in chosen.tolist()}
    row: dict[str, Any] = {"probes": len(chosen), "records": len(owners)}
    row["first_effectivity"] = conditions.interval([sample], lambda n: float(np.nanmean(effect_PI[n, 0])))
    row["effectivity"] = conditions.interval([sample], lambda n: float(np.nanmean(condition.mean_effect_P[n])))
    if group == CONTROL:
        return row
    t_T, kept_PT = condition.t_T, condition.kept_PT
    usable = chosen[np.isfinite(kept_PT[chosen, 0])]
    row["retained_probes"] = len(usable)
    if len(usable) >= 2:
        mean_T = kept_PT[usable].mean(axis=0)
        power, exponential = fit_power(t_T, mean_T), fit_exponential(t_T, mean_T)
        row["decay"] = conditions.interval(
            [(measured, usable)], lambda n: fit_power(t_T, kept_PT[n].mean(axis=0)).decay
        )
        row["power"] = {**asdict(power), "x_intercept": finite(power.x_intercept)}
        row["exponential"] = asdict(exponential)
        row["retained"] = {"t": t_T.tolist(), "mean": mean_T.tolist()}
    fit, kept_T = condition.pooled_fit(chosen), condition.pooled(chosen)
    if fit is not None and kept_T is not None:
        row["pooled"] = {
            "t": t_T.tolist(),
            "mean": kept_T.tolist(),
            "level": fit.level,
            "decay": conditions.interval([sample], condition.decay),
            "r2": fit.r2,
            "x_intercept": finite(fit.x_intercept),
        }
    return row


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def summarise(conditions: Conditions, condition: Condition) -> dict[str, Any]:
    """One condition: its curves, and a row for each group and depth."""
    measured = condition.measured
    kept = ("label", "stage", "batch", "copies", "plan", "size", "parameters")
    found = groups_of(measured)
    longest = max(measured.shown_P, key=len)
    return {
        **{name: getattr(condition, name) for name in kept},
        "seeds": np.unique(measured.seed_P).tolist(),
        "injections": list(longest),
        "steps": measured.steps.tolist(),
        "curves": {f"{g}/{d}": measured.logprob_PS[chosen].mean(axis=0).tolist() for g, d, chosen in found},
        "groups": {f"{g}/{d}": summarise_group(conditions, condition, g, chosen) for g, d, chosen in found},
    }


def read_conditions(settings: AcquisitionSettings, parts: Sequence[ContinuedPart]) -> Conditions:
    """The finished runs, by what they have in common."""
    members: dict[str, list[ContinuedPart]] = {}
    for part in parts:
        members.setdefault(part.label, []).append(part)
    made = []
    for label, same in members.items():
        first = same[0]
        factors = {name: getattr(first, name) for name in ("stage", "batch", "copies", "plan", "size")}
        made.append(
            Condition(
                label,
                pool([read_run(part.path) for part in same]),
                grid_of(settings, first).window,
                settings.minimum_gain,
                parameters=parameters_of(first.path),
                alike_controls=not invented_controls(settings, first),
                **factors,
            )
        )
    return Conditions(made, settings.resamples, crossed=bool(settings.facts))


def analyse(settings: AcquisitionSettings, parts: Sequence[ContinuedPart]) -> dict[str, Any]:
    """The summary of a study whose runs are finished: per condition, then the claims. A function of the runs alone."""
    conditions = read_conditions(settings, parts)
    note = read_json(parts[0].path / "part.json")
    ends = [read_json(part.path / "done.json") for part in parts]
    whole = sum(end["seconds"]["all"] for end in ends)
    summary: dict[str, Any] = {
        "study": "acquisition",
        "settings": asdict(settings),
        "scenarios": {name: note["groups"].count(name) for name in dict.fromkeys(note["groups"])},
        "familiar": settings.used_familiar,
        "spread": len({steps[0] for steps in note["shown"] if steps}),
        "leaking_probes": note["leaking_probes"],
        "invented_controls": invented_controls(settings, parts[0]),
        "probes": ends[0]["probes"],
        "probing_share": sum(end["seconds"]["probing"] for end in ends) / max(whole, 1e-9),
        "seconds": whole,
        "parts": {part.name: end["seconds"]["all"] for part, end in zip(parts, ends, strict=True)},
        "model": describe_model(parts[0].path),
        "conditions": [summarise(conditions, each) for each in conditions.every],
        "measures": measure_claims(conditions),
    }
    summary["claims"] = judge(summary)
    return summary


def invented_controls(settings: AcquisitionSettings, part: ContinuedPart) -> int:
    """Controls that are invented, since the file of records has none left over."""
    from headwater.launch.studies.acquisition.records import published
    from headwater.train.facts.fictional import make_records

    if not settings.facts or part.plan == REAL:
        return 0
    records, _ = published(settings, part.seed)
    invented = {record.text for record in make_records(settings.control, part.seed + CONTROL_SEED)}
    return sum(record.text in invented for record in records)


def describe_model(path: Path) -> dict[str, Any]:
    from headwater.configs import load_config
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, path / "config.yaml")
    kept = ("layers", "hidden", "heads", "ffn_hidden")
    shape = {name: getattr(settings.model, name) for name in kept}
    return {**shape, "batch": settings.train.global_batch, "seq_len": settings.corpus.seq_len}
