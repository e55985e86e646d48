"""What the report can be told. Light on purpose: the command line imports this at start."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.configs import setting


@dataclass(kw_only=True, slots=True)
class ReportSettings:
    """One self-contained page and its figures for programs."""

    run: str = setting("runs/demo", "The run directory.")
    index: str = setting("headwater", "Name of the index that the figures describe.")
    trace: str = setting("headwater", "Name of the trace whose facts are shown.")
    facts: int = setting(12, "Traced facts shown.", minimum=1)
    proponents: int = setting(5, "Top passages shown for each fact.", minimum=1)
    opponents: int = setting(3, "Passages with the lowest scores shown for each fact.", minimum=0)
    excerpt: int = setting(700, "Characters of a passage shown at most.", minimum=40)
    seed: int = setting(0, "Seed of the draw of the facts shown.")
