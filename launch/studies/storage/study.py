"""Whether what a model stores can be extracted: the study of Allen-Zhu and Li 2023 (arXiv 2309.14316).

    headwater study storage                                 # configs/study/storage.yaml, two CPU cores
    headwater study storage study/storage-1b out=runs/study/published

Invented people have biographies, written in sixteen ways. Half of the people are also asked about; what the model
answers about the other half shows whether their biographies were stored so that questions reach them. Two protocols:
pretraining on biographies and then fine-tuning on questions, and both from the start. Every training is a run
directory under `out`; a study that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headwater.attribution.settings import IndexSettings, TracedModelSettings
from headwater.configs import Problem, UserError, load_config, save_config, section, setting
from headwater.launch.jobs.pieces import run_pieces
from headwater.launch.studies.storage.data import CELEBRITY, Population, ensure_corpus, ensure_tokenizer
from headwater.train.artifacts import fingerprint, read_json, require_match, write_json
from headwater.train.facts.biographies import VARIANTS, Variant
from headwater.train.facts.settings import PopulationSettings
from headwater.train.settings import PretrainSettings


@dataclass(kw_only=True, slots=True)
class AdapterSettings:
    """Training of a small part of a frozen model."""

    steps: int = setting(200, "Updates.", minimum=1)
    batch: int = setting(32, "Questions, names or biographies an update.", minimum=1)
    lr: float = setting(3e-4, "Learning rate, falling linearly to zero.", above=0)
    embedding_rank: int = setting(128, "Rank of the update of the embedding.", minimum=1)
    rank: int = setting(8, "Rank of the updates of queries and values; unused by probes.", minimum=1)


@dataclass(kw_only=True, slots=True)
class ProvenanceSettings:
    """Tracing the answers of models that were trained on biographies and questions from the start."""

    variants: list[str] = setting(["single", "multi5+permute"], "Of the mixed runs, those whose answers are traced.")
    questions: int = setting(60, "Questions about asked people, drawn by the seed.", minimum=1)
    top: int = setting(20, "Proponents counted beside the whole.", minimum=1)
    lambda_: str = setting("0.25", "Weight of the questions' curvature.")
    index: IndexSettings = section(IndexSettings, model=TracedModelSettings(run="-"))


@dataclass(kw_only=True, slots=True)
class StorageSettings:
    """The study of storage and extraction."""

    out: str = setting("runs/study/storage", "Where the runs and the report go.")
    population: PopulationSettings = section(PopulationSettings)
    preset: str = setting("configs/study/storage-base.yaml", "The pretraining of every run.")
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
        if set(self.provenance.variants) - set(self.mixed):
            yield Problem("provenance.variants", self.provenance.variants, "names that stand in mixed too")


@dataclass(frozen=True, slots=True)
class Part:
    """One training and what is asked of it.

    Attributes:
        protocol: `pretrain` (biographies, then questions) or `mixed` (both from the start).
        tasks: what is done, in order; each leaves NAME.json.
    """

    path: Path
    protocol: str
    variant: str
    seed: int
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.protocol} {self.variant}, seed {self.seed}"

    def result(self, task: str) -> Path:
        return self.path / f"{task}.json"

    @property
    def is_done(self) -> bool:
        return all(self.result(task).exists() for task in self.tasks)


class Storage:
    """One study."""

    def __init__(self, settings: StorageSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        for name in [*settings.variants, *settings.mixed]:
            Variant.parse(name)
        # Mistakes in any of these are found before anything starts.
        self.base = load_config(PretrainSettings, settings.preset, settings.pretrain)
        load_config(PretrainSettings, settings.preset, [*settings.pretrain, *settings.mix])
        load_config(PretrainSettings, settings.preset, [*settings.pretrain, *settings.finetune])

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary."""
        from headwater.launch.studies.storage.page import write_report
        from headwater.launch.studies.storage.summary import analyse

        self._check_same()
        parts = self.parts()
        waiting = [part for part in parts if not part.is_done]
        self.say(f"{len(parts)} parts, {len(parts) - len(waiting)} finished before")
        for part in waiting:
            self._prepare(part)
        run_parts(waiting, self.settings.parallel, self.say)
        summary = analyse(self.settings, parts)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[Part]:
        """The parts of the study: what all seeds run first, so that the main comparison is there early."""
        chosen = self.settings
        made = []
        for seed in chosen.seeds:
            wanted = [("mixed", name) for name in chosen.mixed] + [("pretrain", name) for name in chosen.variants]
            if chosen.celebrity:
                wanted.append(("pretrain", CELEBRITY))
            for protocol, name in wanted:
                if seed == chosen.seeds[0] or name in chosen.repeated:
                    path = self.out / f"seed-{seed}" / protocol / name
                    made.append(Part(path, protocol, name, seed, self._tasks(protocol, name)))
        return sorted(made, key=lambda part: (part.variant not in chosen.repeated, part.seed))

    def _tasks(self, protocol: str, name: str) -> tuple[str, ...]:
        chosen = self.settings
        if protocol == "mixed":
            return ("train", "told", "asked", *(("trace",) if name in chosen.provenance.variants else ()))
        tasks = ["train", "told"]
        tasks += ["full"] * bool(chosen.finetune) + ["lora"] * (name in [*chosen.lora_variants, CELEBRITY])
        return (*tasks, *["q_probe"] * (name in chosen.q_probed), *["p_probe"] * (name in chosen.p_probed))

    def _check_same(self) -> None:
        same = replace(self.settings, resamples=0, parallel=1, out="")
        wanted = fingerprint([asdict(self.base), asdict(same)])
        path = self.out / "study.json"
        if path.exists():
            what = f"{self.out} holds a study of other settings"
            require_match(what, read_json(path)["fingerprint"], wanted, "choose another out=, or remove that directory")
        write_json(path, {"fingerprint": wanted})
        save_config(self.settings, self.out / "study.yaml")

    def _prepare(self, part: Part) -> None:
        """The tokenizer of the seed, the corpora of the part, and its note."""
        home = self.out / f"seed-{part.seed}"
        population = Population(self.settings.population, part.seed)
        tokenizer = home / "tokenizer.json"
        ensure_tokenizer(tokenizer, population, self.base.corpus.tokenizer.vocab_size)
        share = self.settings.question_share if part.protocol == "mixed" else 0.0
        corpora: dict[str, tuple[str | None, float]] = {"train": (part.variant, share)}
        if part.protocol == "pretrain":
            corpora["full"] = (None, 1.0)
        paths = {}
        for task, (variant, share) in corpora.items():
            paths[task] = home / "corpora" / (f"{variant}-{share:g}" if variant else "questions")
            ensure_corpus(paths[task], self.base.corpus, population, tokenizer, variant, share)
        note = {"protocol": part.protocol, "variant": part.variant, "seed": part.seed, "tasks": list(part.tasks)}
        corpora_of = {task: str(path) for task, path in paths.items()}
        write_json(part.path / "part.json", {**note, "corpora": corpora_of, "settings": str(self.out / "study.yaml")})


def run_parts(parts: Sequence[Part], parallel: int, say: Callable[[str], None]) -> None:
    """Runs parts in processes of their own, `parallel` at once.

    Raises:
        UserError: naming those that failed, when the others are finished.
    """

    def ended(part: Part, status: int) -> bool:
        return status != 0 or part.is_done  # else it was asked to stop, and saved

    failed = run_pieces(parts, parallel, "headwater.launch.studies.storage.process", say, ended)
    if failed:
        names = "; ".join(part.name for part in failed)
        raise UserError(f"parts of the study failed: {names}", fix=f"see {failed[0].path / 'log.txt'}")


def run_storage(settings: StorageSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Storage(settings, say).run(), settings.out)
