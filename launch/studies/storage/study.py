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
from headwater.launch.studies.storage.data import CELEBRITY, Population, ensure_corpus, ensure_tokenizer
from headwater.launch.studies.storage.parts import StoragePart
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.train.artifacts import fingerprint, write_json
from headwater.train.facts.biographies import Variant
from headwater.train.settings import PretrainSettings


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
        for part in parts:
            if not part.is_done():
                self._prepare(part)
        finish_parts(parts, self.settings.parallel, self.say)
        summary = analyse(self.settings, parts)
        write_report(self.settings, summary)
        return summary

    def parts(self) -> list[StoragePart]:
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
                    tasks = self._tasks(protocol, name)
                    label = f"{protocol} {name}, seed {seed}"
                    made.append(
                        StoragePart(name=label, path=path, protocol=protocol, variant=name, seed=seed, tasks=tasks)
                    )
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
        keep_study(
            self.out,
            self.settings,
            {"pretraining": asdict(self.base), **asdict(same)},
            mark=fingerprint([asdict(self.base), asdict(same)]),
            config="study.yaml",
        )

    def _prepare(self, part: StoragePart) -> None:
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


def run_storage(settings: StorageSettings) -> dict[str, Any]:
    """Runs the study and prints what became of the paper's claims; returns the summary."""
    from headwater.launch.studies.console import run_and_show

    return run_and_show(lambda say: Storage(settings, say).run(), settings.out)
