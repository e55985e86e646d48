"""Settings of the study of storage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from headwater.attribution.settings import IndexSettings, TracedModelSettings, task_weight_setting
from headwater.configs import Problem, section, setting
from headwater.launch.studies.storage.data import CELEBRITY, rewritten_name
from headwater.train.facts.biographies import VARIANTS
from headwater.train.facts.settings import PopulationSettings


@dataclass(kw_only=True, slots=True)
class AdapterSettings:
    """Training of a small part of a frozen model."""

    steps: int = setting(200, "Updates.", minimum=1)
    batch: int = setting(32, "Questions, names or biographies an update.", minimum=1)
    lr: float = setting(3e-4, "Learning rate, falling linearly to zero.", above=0)
    embedding_rank: int = setting(128, "Rank of the update of the embedding.", minimum=1)
    rank: int = setting(8, "Rank of the updates of queries and values; unused by probes.", minimum=1)


@dataclass(kw_only=True, slots=True)
class LoraSettings(AdapterSettings):
    """LoRA of other ranks or another length."""

    name: str = setting("", "What it is called.")


@dataclass(kw_only=True, slots=True)
class WindowSettings:
    """A stretch of mixed training in which questions are met; elsewhere they are left out, and nothing takes their
    place."""

    first: float = setting(0.0, "Where it begins, as a share of the steps.", minimum=0, maximum=1)
    last: float = setting(1.0, "Where it ends.", minimum=0, maximum=1)

    def problems(self) -> Iterator[Problem]:
        if self.last <= self.first:
            yield Problem("last", self.last, f"more than first = {self.first}")

    @property
    def label(self) -> str:
        """In per cent, as `0-50`."""
        return f"{100 * self.first:g}-{100 * self.last:g}"

    def steps(self, steps: int) -> tuple[int, int]:
        """The first and the last update with questions, counted from 1."""
        return int(self.first * steps) + 1, int(self.last * steps)


@dataclass(kw_only=True, slots=True)
class GridSettings:
    """A size at which P-probes are held against each other: with rich biographies and with plain ones."""

    name: str = setting("", "What it is called.")
    people: int = setting(0, "People; 0: as many as the study has.", minimum=0)
    pretrain: list[str] = setting([], "Further key=value overrides of the pretraining: depth, width, steps.")
    ranks: list[int] = setting([], "Ranks of the probes' update of the embedding; none: that of `p_probe`.", minimum=1)
    probe_steps: int = setting(0, "Updates of the probes; 0: those of `p_probe`.", minimum=0)


@dataclass(kw_only=True, slots=True)
class ProvenanceSettings:
    """Tracing the answers of models that were trained on biographies and questions from the start."""

    variants: list[str] = setting(["single", "multi5+permute"], "Of the mixed runs, those whose answers are traced.")
    questions: int = setting(60, "Questions about asked people, drawn by the seed.", minimum=1)
    top: int = setting(20, "Proponents counted beside the whole.", minimum=1)
    task_weight: float | str = task_weight_setting()
    index: IndexSettings = section(IndexSettings, model=TracedModelSettings(run="-"))

    renamed: ClassVar[dict[str, str]] = {"lambda_": "task_weight"}


@dataclass(kw_only=True, slots=True)
class StorageSettings:
    """The study of storage and extraction."""

    out: str = setting("runs/study/storage", "Where the runs and the report go.")
    population: PopulationSettings = section(PopulationSettings)
    preset: str = setting("study/storage-base", "The pretraining of every run.")
    pretrain: list[str] = setting([], "key=value overrides of it.")
    variants: list[str] = setting(list(VARIANTS), "Biographies that are pretrained on, then fine-tuned for questions.")
    mixed: list[str] = setting(["single", "multi5+permute"], "Biographies trained on with questions from the start.")
    seeds: list[int] = setting([0], "Of people and model.", minimum=0)
    repeated: list[str] = setting(
        ["single", "multi5+permute"], "Variants that every seed runs; the others run with the first alone."
    )
    question_share: float = setting(0.8, "Share of the rows with questions in mixed training.", above=0, maximum=0.95)
    mix: list[str] = setting([], "key=value overrides of mixed training.")
    finetune: list[str] = setting([], "key=value overrides of fine-tuning all weights; empty leaves it out.")
    lora: AdapterSettings = section(AdapterSettings)
    lora_variants: list[str] = setting(["single", "multi5+permute"], "Variants that are also fine-tuned by LoRA.")
    q_probe: AdapterSettings = section(AdapterSettings, embedding_rank=16)
    p_probe: AdapterSettings = section(AdapterSettings, embedding_rank=2)
    q_probed: list[str] = setting(list(VARIANTS), "Variants with Q-probes: attributes from the name alone.")
    p_probed: list[str] = setting(
        ["single", "multi5+permute"], "Variants with P-probes: attributes from places in the biography."
    )
    untrained: bool = setting(
        False, "Probe the weights before the first step too, with the variants of `repeated`: the probes' control."
    )
    lora_sizes: list[LoraSettings] = setting([], "Further LoRAs, of the variants of `lora_variants`.")
    rewritten: list[float] = setting(
        [], "Shares of the people whose biographies are multi5+permute, those of the others single.", above=0, below=1
    )
    windows: list[WindowSettings] = setting([], "Stretches of mixed training that alone have questions; one run each.")
    windowed: list[str] = setting([], "Variants that are trained on with questions in each of `windows`.")
    grid: list[GridSettings] = setting([], "Sizes, from small to large, of the search for one at which P-probes show.")
    grid_seeds: list[int] = setting([100], "Of that search; none of `seeds`.", minimum=0)
    celebrity: bool = setting(True, "Also give rich biographies to the taught half, and poor ones to the asked half.")
    provenance: ProvenanceSettings = section(ProvenanceSettings)
    resamples: int = setting(1000, "Draws of people for the intervals.", minimum=10)
    parallel: int = setting(1, "Parts that run at once, on cores of their own.", minimum=1)
    ranks: int = setting(1, "Processes that train a part, through torchrun.", minimum=1)

    def problems(self) -> Iterator[Problem]:
        if not self.seeds:
            yield Problem("seeds", self.seeds, "at least one seed")
        if not self.variants and not self.mixed:
            yield Problem("variants", self.variants, "at least one variant, here or in mixed")
        for key, among in (("lora_variants", "variants"), ("q_probed", "variants"), ("p_probed", "variants")):
            missing = set(getattr(self, key)) - {*self.variants, CELEBRITY}
            if missing and self.variants:
                yield Problem(key, sorted(missing), f"names that stand in {among} too")
        for key, names in (
            ("lora_sizes", [each.name for each in self.lora_sizes]),
            ("grid", [each.name for each in self.grid]),
            ("windows", [each.label for each in self.windows]),
            ("rewritten", [rewritten_name(each) for each in self.rewritten]),
        ):
            if len(set(names)) != len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
                yield Problem(key, names, "each once, with a name of letters and figures")
        if set(self.grid_seeds) & set(self.seeds) and self.grid:
            yield Problem("grid_seeds", self.grid_seeds, f"other seeds than those that are reported, {self.seeds}")
        if set(self.provenance.variants) - set(self.mixed):
            yield Problem("provenance.variants", self.provenance.variants, "names that stand in mixed too")


def people_at(settings: StorageSettings, point: GridSettings | None) -> PopulationSettings:
    """The people of the study, or of a point of its grid."""
    if point is None or not point.people:
        return settings.population
    return replace(settings.population, people=point.people)
