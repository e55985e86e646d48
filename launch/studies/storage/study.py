"""Whether what a model stores can be extracted: the study of Allen-Zhu and Li 2023 (arXiv 2309.14316).

    headwater study storage                                 # the preset study/storage, two CPU cores
    headwater study storage study/storage-1b out=runs/study/published

Invented people have biographies, written in sixteen ways. Half of the people are also asked about; what the model
answers about the other half shows whether their biographies were stored so that questions reach them. Two protocols:
pretraining on biographies and then fine-tuning on questions, and both from the start. Every training is a run
directory under `out`; a study that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.configs import load_config
from headwater.launch.parts.pool import finish_parts
from headwater.launch.parts.settings import keep_study
from headwater.launch.studies.storage.data import (
    CELEBRITY,
    MAIN,
    PLAIN,
    Population,
    ensure_corpus,
    ensure_tokenizer,
    rewritten_name,
)
from headwater.launch.studies.storage.parts import StoragePart
from headwater.launch.studies.storage.settings import StorageSettings, people_at
from headwater.train.artifacts import fingerprint, write_json
from headwater.train.facts.biographies import Variant
from headwater.train.settings import PretrainSettings


class Storage:
    """One study."""

    def __init__(self, settings: StorageSettings, say: Callable[[str], None] = print) -> None:
        self.settings, self.say, self.out = settings, say, Path(settings.out)
        for name in [*settings.variants, *settings.mixed, *settings.windowed]:
            Variant.parse(name)
        # Mistakes in any of these are found before anything starts.
        self.base = load_config(PretrainSettings, settings.preset, settings.pretrain)
        load_config(PretrainSettings, settings.preset, [*settings.pretrain, *settings.mix])
        load_config(PretrainSettings, settings.preset, [*settings.pretrain, *settings.finetune])
        for point in settings.grid:
            load_config(PretrainSettings, settings.preset, [*settings.pretrain, *point.pretrain])

    def run(self) -> dict[str, Any]:
        """Runs what is not done yet, and writes the report; returns the summary."""
        from headwater.launch.studies.storage.page import write_report
        from headwater.launch.studies.storage.summary import analyse

        self._check_same()
        parts = self.parts()
        for part in parts:
            if not part.is_done():
                self._prepare(part)
        finish_parts(parts, self.settings.parallel, self.say)
        summary = analyse(self.settings, parts)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[StoragePart]:
        """The parts of the study: what all seeds run first, so that the main comparison is there early, and the search
        for a size last."""
        chosen = self.settings
        made = []
        for seed in chosen.seeds:
            wanted = [("mixed", name) for name in chosen.mixed] + [("pretrain", name) for name in chosen.variants]
            if chosen.celebrity:
                wanted.append(("pretrain", CELEBRITY))
            wanted += [("pretrain", rewritten_name(share)) for share in chosen.rewritten]
            made += [
                self._part(protocol, name, seed)
                for protocol, name in wanted
                if seed == chosen.seeds[0] or name in chosen.repeated
            ]
        made.sort(key=lambda part: (part.variant not in chosen.repeated, part.seed))
        windows = [(each.label, name) for name in chosen.windowed for each in chosen.windows]
        made += [self._part("windowed", name, chosen.seeds[0], window=label) for label, name in windows]
        points = [(each.name, seed) for each in chosen.grid for seed in chosen.grid_seeds]
        compared = (MAIN, PLAIN)
        return made + [self._part("grid", name, seed, point=point) for point, seed in points for name in compared]

    def _part(self, protocol: str, name: str, seed: int, *, window: str = "", point: str = "") -> StoragePart:
        path = self._home(seed, point) / protocol / (f"{name}_{window}" if window else name)
        which = f" {point or window}" if point or window else ""
        return StoragePart(
            name=f"{protocol}{which} {name}, seed {seed}",
            path=path,
            protocol=protocol,
            variant=name,
            seed=seed,
            tasks=self._tasks(protocol, name, point),
            window=window,
            point=point,
        )

    def _home(self, seed: int, point: str) -> Path:
        """Where the tokenizer and the corpora lie that parts have in common."""
        return (self.out / "grid" / point if point else self.out) / f"seed-{seed}"

    def _tasks(self, protocol: str, name: str, point: str) -> tuple[str, ...]:
        chosen = self.settings
        if protocol == "mixed":
            return ("train", "told", "asked", *(("trace",) if name in chosen.provenance.variants else ()))
        if protocol == "windowed":
            return ("train", "told", "asked")
        if protocol == "grid":
            ranks = next(each.ranks for each in chosen.grid if each.name == point)
            return ("train", "told", *(f"places-{rank}" for rank in ranks or [chosen.p_probe.embedding_rank]))
        tasks = ["train", "told", *["full"] * bool(chosen.finetune)]
        tasks += ["lora"] * (name in [*chosen.lora_variants, CELEBRITY])
        tasks += [f"lora-{each.name}" for each in chosen.lora_sizes if name in chosen.lora_variants]
        tasks += ["q_probe"] * (name in chosen.q_probed) + ["places"] * (name in chosen.p_probed)
        controlled = chosen.untrained and name in chosen.repeated and name in chosen.p_probed
        return (*tasks, *["untrained"] * controlled)

    def _check_same(self) -> None:
        searched = self.settings.grid_seeds if self.settings.grid else []
        same = replace(self.settings, resamples=0, parallel=1, out="", grid_seeds=searched)
        keep_study(
            self.out,
            self.settings,
            {"pretraining": asdict(self.base), **asdict(same)},
            mark=fingerprint([asdict(self.base), asdict(same)]),
            config="study.yaml",
        )

    def _prepare(self, part: StoragePart) -> None:
        """The tokenizer of the seed, the corpora of the part, and its note."""
        home = self._home(part.seed, part.point)
        point = next((each for each in self.settings.grid if each.name == part.point), None)
        population = Population(people_at(self.settings, point), part.seed)
        tokenizer = home / "tokenizer.json"
        ensure_tokenizer(tokenizer, population, self.base.corpus.tokenizer.vocab_size)
        share = self.settings.question_share if part.protocol in ("mixed", "windowed") else 0.0
        corpora: dict[str, tuple[str | None, float]] = {"train": (part.variant, share)}
        if part.protocol == "pretrain":
            corpora["full"] = (None, 1.0)
        paths = {}
        for task, (variant, share) in corpora.items():
            paths[task] = home / "corpora" / (f"{variant}-{share:g}" if variant else "questions")
            ensure_corpus(paths[task], self.base.corpus, population, tokenizer, variant, share)
        note = {"protocol": part.protocol, "variant": part.variant, "seed": part.seed, "tasks": list(part.tasks)}
        note |= {"window": part.window, "point": part.point}
        corpora_of = {task: str(path) for task, path in paths.items()}
        write_json(part.path / "part.json", {**note, "corpora": corpora_of, "settings": str(self.out / "study.yaml")})


def run_storage(settings: StorageSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Storage(settings, say).run(), settings.out)
