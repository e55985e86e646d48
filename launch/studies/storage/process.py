"""One part of the storage study, in a process of its own: a training, and what is asked of the model.

    python -m headwater.launch.studies.storage.process runs/study/storage/seed-0/mixed/single [CORES]

Reads part.json, which the study has written there. Each task leaves NAME.json when it is finished; those that are
there are not done again, and a training that was killed goes on. A lock keeps a study that was killed and started
again from running a part beside the process that was left over from before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs import load_config
from headwater.launch.jobs.command import run_module
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import is_trained
from headwater.launch.studies.storage.data import Population
from headwater.launch.studies.storage.settings import AdapterSettings, StorageSettings, people_at
from headwater.train.artifacts import RunDir, json_line, read_json, write_bytes, write_json
from headwater.train.facts.biographies import QuestionAnswer
from headwater.train.settings import PretrainSettings

TOLD_PEOPLE = 100
"""People whose biographies are read again to see what is known of them."""


class Interrupted(Exception):
    """A training was asked to stop, and has saved."""


class PartRun:
    """The tasks of one part."""

    def __init__(self, path: Path, note: dict[str, Any]) -> None:
        self.path, self.note = path, note
        self.settings = load_config(StorageSettings, self.note["settings"])
        self.point = next((each for each in self.settings.grid if each.name == self.note.get("point")), None)
        self.population = Population(people_at(self.settings, self.point), self.note["seed"])
        self.protocol, self.variant = self.note["protocol"], self.note["variant"]

    def run(self) -> None:
        for task in self.note["tasks"]:
            place = self.path / f"{task}.json"
            if place.exists():
                continue
            began = time.perf_counter()
            name, _, which = task.partition("-")
            work = getattr(self, f"do_{name}")
            made = work(which) if which else work()
            write_json(place, {**made, "seconds": round(time.perf_counter() - began, 2)})

    @cached_property
    def asked(self) -> list[QuestionAnswer]:
        return self.population.questions(self.population.asked)

    @cached_property
    def taught(self) -> list[QuestionAnswer]:
        return self.population.questions(self.population.taught)

    def do_train(self) -> dict[str, Any]:
        mixed = self.protocol in ("mixed", "windowed")
        more = self.settings.mix if mixed else self.point.pretrain if self.point else []
        overrides = [*self.settings.pretrain, *more]
        if self.protocol == "windowed":
            overrides.append(f"train.exclude={self._write_exclusions(overrides)}")
        # A model that has never met a question has nothing to be followed by questions.
        questions = self.asked if mixed else []
        return self.train(self.path, self.note["corpora"]["train"], overrides, questions)

    def _write_exclusions(self, overrides: list[str]) -> Path:
        """The file that leaves the questions out but in the part's stretch of the training."""
        steps = load_config(PretrainSettings, self.settings.preset, overrides).train.steps
        window = next(each for each in self.settings.windows if each.label == self.note["window"])
        first, last = window.steps(steps)
        outside = [(low, high) for low, high in ((1, first - 1), (last + 1, steps)) if low <= high]
        lines = [f"{each.id}\t{low}\t{high}\n" for each in self.taught for low, high in outside]
        path = self.path / "exclude.txt"
        write_bytes(path, "".join(lines).encode())
        return path

    def train(self, path: Path, corpus: str, overrides: list[str], questions: list[QuestionAnswer]) -> dict[str, Any]:
        """A run directory over a corpus made before; its probes are the questions."""
        overrides = [
            *overrides,
            f"out={path}",
            f"seed={self.note['seed']}",
            f"corpus.seed={self.note['seed']}",
            f"corpus.prebuilt={corpus}",
            "facts.people=0",
            "facts.distractors=0",
            *([] if questions else ["callbacks.probes.every=0"]),
        ]
        settings = load_config(PretrainSettings, self.settings.preset, overrides)
        if not is_trained(path, settings):
            self._prepare_run(settings, questions)
            began = time.perf_counter()
            self._train(settings, overrides)
            if not is_trained(path, settings):
                raise Interrupted
            seconds = time.perf_counter() - began
        else:
            seconds = 0.0
        return {"steps": settings.train.steps, "training_seconds": round(seconds, 2)}

    def _prepare_run(self, settings: PretrainSettings, questions: list[QuestionAnswer]) -> None:
        from headwater.train.corpus.build import build_corpus

        build_corpus(settings)
        if not questions:
            return
        lines = [
            {
                "example_id": each.id,
                "fact_id": each.id,
                "relation": each.attribute,
                "subject": self.population.people[each.person].name,
                "prompt": each.prompt,
                "target": each.target,
                "gold": [],
            }
            for each in questions
        ]
        write_bytes(RunDir.at(settings.out).facts / "probes.jsonl", "".join(map(json_line, lines)).encode())

    def _train(self, settings: PretrainSettings, overrides: list[str]) -> None:
        if self.settings.ranks == 1:
            from headwater.train.run import pretrain_run

            pretrain_run(settings)
            return
        given = [self.settings.preset, *overrides]
        run_module("headwater.train", given, processes=self.settings.ranks, what="training")

    def do_told(self) -> dict[str, Any]:
        from headwater.launch.studies.storage.models import recall

        def measure(model: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
            made = {}
            for name, half in (("taught", self.population.taught), ("asked", self.population.asked)):
                told = self.population.biographies(self.variant, half[: TOLD_PEOPLE // 2])
                made[name] = recall(model, [each for passages in told for each in passages], tokenizer, device)
            return made

        return self.with_model(RunDir.at(self.path), measure)

    def do_asked(self) -> dict[str, Any]:
        return self.answers(RunDir.at(self.path))

    def do_full(self) -> dict[str, Any]:
        run = RunDir.at(self.path / "full")
        checkpoint = RunDir.at(self.path).checkpoint(read_json(self.path / "train.json")["steps"])
        overrides = [*self.settings.pretrain, *self.settings.finetune, f"model.init_from={checkpoint}"]
        trained = self.train(run.path, self.note["corpora"]["full"], overrides, self.asked)
        return {**trained, **self.answers(run)}

    def answers(self, run: RunDir) -> dict[str, Any]:
        """Exact answers about both halves."""
        from headwater.launch.studies.storage.models import exact_match, prompts_of

        def measure(model: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
            found = [
                exact_match(model, prompts_of(each, tokenizer), device)
                for each in (self.taught, self.asked, self.population.shuffled_questions())
            ]
            return as_answers(self.asked, *found)

        return self.with_model(run, measure)

    def do_lora(self, size: str = "") -> dict[str, Any]:
        from headwater.launch.studies.storage.adapters import finetune_lora

        settings = next((each for each in self.settings.lora_sizes if each.name == size), self.settings.lora)

        def measure(model: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
            asked = (self.asked, self.population.shuffled_questions())
            found = finetune_lora(model, tokenizer, self.taught, asked, settings, self.note["seed"], device)
            return as_answers(self.asked, *found)

        return self.with_model(RunDir.at(self.path), measure)

    def do_q_probe(self) -> dict[str, Any]:
        return self.with_model(RunDir.at(self.path), self._q_probed)

    def do_places(self, rank: str = "") -> dict[str, Any]:
        """P-probes; of a size of the grid with an update of the embedding of this rank, and as long as it asks."""
        settings = self.settings.p_probe
        if rank and self.point:
            steps = self.point.probe_steps or settings.steps
            settings = replace(settings, embedding_rank=int(rank), steps=steps)
        return self.with_model(
            RunDir.at(self.path), lambda model, tokenizer, device: self._p_probed(model, tokenizer, device, settings)
        )

    def do_untrained(self) -> dict[str, Any]:
        """Both probes of the weights before any step."""

        def measure(model: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
            return {
                "q_probe": self._q_probed(model, tokenizer, device),
                "places": self._p_probed(model, tokenizer, device, self.settings.p_probe),
            }

        return self.with_model(RunDir.at(self.path), measure, untrained=True)

    def _q_probed(self, model: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
        from headwater.launch.studies.storage.probes import q_probe

        return q_probe(model, tokenizer, self.population, self.settings.q_probe, device)

    def _p_probed(self, model: Any, tokenizer: Any, device: Any, settings: AdapterSettings) -> dict[str, Any]:
        from headwater.launch.studies.storage.probes import p_probe

        return p_probe(model, tokenizer, self.population, self.variant, settings, device)

    def do_trace(self) -> dict[str, Any]:
        from headwater.launch.studies.storage.provenance import trace_answers

        return trace_answers(RunDir.at(self.path), self.population, self.settings.provenance, self.note["seed"])

    def with_model(
        self, run: RunDir, action: Callable[[Any, Any, Any], dict[str, Any]], *, untrained: bool = False
    ) -> dict[str, Any]:
        """Opens a run's newest checkpoint, or the weights before any step, on this one process."""
        from headwater.launch.studies.storage.models import open_frozen, open_untrained
        from headwater.train import parallel
        from headwater.train.numerics import keep_freed_memory, use_onednn
        from headwater.train.tokenizer import TextTokenizer

        threads = load_config(PretrainSettings, run.config).train.threads
        world = parallel.start(threads=threads)
        try:
            keep_freed_memory()
            use_onednn()
            model = open_untrained(run, world, self.note["seed"]) if untrained else open_frozen(run, world)
            return action(model, TextTokenizer.from_file(run.tokenizer), world.device)
        finally:
            parallel.stop()


def as_answers(
    questions: list[QuestionAnswer], taught: np.ndarray, right: np.ndarray, shuffled: np.ndarray
) -> dict[str, Any]:
    """Shares of exact answers; of every question about an asked person whether it was, and whether the answer was that
    of another person (`shuffled`)."""
    return {
        "taught": float(taught.mean()),
        "asked": float(right.mean()),
        "person": [each.person for each in questions],
        "attribute": [each.attribute for each in questions],
        "right": right.astype(int).tolist(),
        "shuffled": shuffled.astype(int).tolist(),
    }


def do_tasks(path: Path, note: dict[str, Any]) -> int:
    """What is left of a part; returns the exit status, 0 also where it was asked to stop and has saved."""
    with suppress(Interrupted):
        PartRun(path, note).run()
    return 0


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], do_tasks))
