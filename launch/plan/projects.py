"""What a study, a sweep or a demo trains in all: how often, and how long, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

from headwater.configs import load_config
from headwater.configs.sources import find_config, read_with_bases
from headwater.launch.machines.estimates import updates
from headwater.train.settings import PretrainSettings

SCHEMAS = {
    "acquisition": "headwater.launch.studies.acquisition.settings:AcquisitionSettings",
    "storage": "headwater.launch.studies.storage.settings:StorageSettings",
    "overlearnt": "headwater.launch.studies.overlearnt.settings:OverlearntSettings",
    "lds": "headwater.launch.studies.lds.settings:LdsSettings",
    "exposures": "headwater.launch.studies.exposures.settings:ExposuresSettings",
    "pretrained": "headwater.launch.studies.pretrained.settings:PretrainedSettings",
    "selection": "headwater.launch.studies.selection.settings:SelectionSettings",
    "demo": "headwater.launch.demo:DemoSettings",
    "tracing": "headwater.launch.studies.tracing.settings:TracingSettings",
    "sweep": "headwater.launch.ablate.settings:AblateSettings",
}


RUN_KEYS = frozenset(field.name for field in fields(PretrainSettings))


@dataclass(frozen=True, slots=True)
class Work:
    """Trainings of one kind.

    Attributes:
        count: how many.
        steps: updates of each.
        size: an update's tokens, as a multiple of those of the training that is planned.
    """

    what: str
    count: int
    steps: int
    size: float = 1.0

    def days(self, step: float) -> float:
        """Days that they take one after another, if an update of the planned training takes `step` seconds."""
        return self.count * self.steps * self.size * step / 86400


@dataclass(frozen=True, slots=True)
class Project:
    """A configuration that is no pretraining, but names one.

    Attributes:
        kind: a key of SCHEMAS.
        tree: the configuration as it is written, bases merged.
    """

    kind: str
    config: str
    tree: dict[str, Any]

    @property
    def schema(self) -> type:
        module, name = SCHEMAS[self.kind].split(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]

    @property
    def keys(self) -> set[str]:
        return {field.name for field in fields(self.schema)}

    def owns(self, key: str) -> bool:
        """Whether an override's key is this configuration's own, not the pretraining's.

        A name that both have is a section there: `facts=FILE` is the study's, `facts.people=20` the pretraining's.
        """
        top = key.strip().removesuffix("+").partition(".")[0]
        return top in self.keys and (top not in RUN_KEYS or "." not in key)

    def pretraining(self) -> tuple[str, list[str]]:
        """The pretraining that it names, or is made with by default, and its overrides of it."""
        default = self.schema()
        preset = str(self.tree.get("preset", default.preset))
        given = self.tree.get("pretrain" if "pretrain" in self.keys else "overrides") or []
        overrides = [str(each) for each in given]
        if self.kind != "sweep" or self.tree.get("kind", default.kind) == "pretrain":
            return preset, overrides
        inner = project_of(preset)
        if inner is None:
            return preset, []
        preset, more = inner.pretraining()
        return preset, [*more, *(each.removeprefix("pretrain.") for each in overrides if each.startswith("pretrain."))]


def project_of(config: str | None) -> Project | None:
    """The study, sweep or demo that a configuration is; None of a pretraining."""
    if config is None:
        return None
    tree = read_with_bases(find_config(config))
    if set(tree) <= RUN_KEYS:
        return None
    for kind in SCHEMAS:
        project = Project(kind, config, tree)
        if set(tree) <= project.keys:
            return project
    return None  # loading it as a pretraining says what is wrong with it


def whole_work(config: str | None, overrides: Iterable[str], planned: PretrainSettings) -> list[Work]:
    """All trainings of a study, a sweep or a demo; empty for a plain pretraining.

    Args:
        overrides: those that are the study's own count.
        planned: the training that the study names.
    """
    project = project_of(config)
    if project is None:
        return []
    chosen = [text for text in overrides if project.owns(text.partition("=")[0])]
    settings: Any = load_config(project.schema, project.config, _with_placeholders(project, chosen), cross_checks=False)
    return list(_COUNTED[project.kind](settings, planned))


def _with_placeholders(project: Project, chosen: list[str]) -> list[str]:
    """Overrides that give what the study wants from its user and a plan needs not."""
    missing = [key for key, value in project.tree.items() if value == "???"]
    given = {text.partition("=")[0].strip() for text in chosen}
    return [*chosen, *(f"{key}=-" for key in missing if key not in given)]


def _demo(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    yield Work("the pretraining", 1, updates(planned))


def _acquisition(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    seeds, further = len(settings.used_seeds), settings.stages[1:]
    few = min(settings.part_seeds or seeds, seeds)
    effect = settings.effect_steps or settings.steps
    if not settings.run:
        yield Work("base models", few, max(settings.stages))
        if few < seeds:
            yield Work("base models, to the first stage", seeds - few, settings.stages[0])
    yield Work("with records", seeds, settings.steps)
    if further:
        yield Work("with records, from further stages", few * len(further), effect)
    if settings.sizes:
        # The real model and these sizes have other weights: each update is counted as one of the base's.
        yield Work("models of other sizes", few * len(settings.sizes), settings.stages[0] + effect)
    # A file's records have too few wordings for these.
    if settings.spacing.intervals and not settings.facts:
        yield Work("with facts at several intervals", few, settings.spacing.steps)
    if settings.popularity.meetings and not settings.facts:
        yield Work("with facts of several popularities, two corpora", 2 * few, settings.popularity.steps)
    if settings.model:
        yield Work("of the real model", len(settings.real.seeds), settings.real.steps)
    for batch in settings.batches:
        size = batch / planned.train.global_batch
        yield Work(f"with a batch of {batch}, two shares of records", 2 * few, settings.steps, size)


def _overlearnt(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    yield Work("models", len(settings.seeds), updates(planned))
    yield Work("without what was named", len(settings.seeds) * len(settings.leave_out.arms), updates(planned))


def _lds(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    yield Work("the model of the whole corpus", 1, updates(planned))
    yield Work("models of halves", settings.models, updates(planned))
    yield Work("halves again, from other weights", settings.again, updates(planned))


def _pretrained(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    from headwater.launch.studies.pretrained.settings import left_out_step

    seeds = len(settings.seeds)
    yield Work("models", seeds, settings.traced[-1])
    yield Work("without what was named", seeds * len(settings.leave_out.arms), left_out_step(settings))


def _exposures(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    from headwater.launch.studies.exposures.cells import training_names

    seeds, names = len(settings.seeds), training_names(settings, planned.facts.people)
    yield Work("models that see everything", seeds, updates(planned))
    yield Work("without some exposures", seeds * len(names), updates(planned))


def _selection(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    from headwater.launch.studies.selection.settings import ARMS

    yield Work("models of whole corpora", len(settings.seeds), updates(planned))
    yield Work("models of what was chosen", len(settings.seeds) * len(ARMS), updates(planned))


def _tracing(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    # The sizes have other weights: each update is counted as one of the preset's.
    models, last = len(settings.seeds) * len(settings.sizes), settings.amounts[-1]
    yield Work("models of all sizes", models, last)
    if settings.leave_out.facts:
        yield Work("without gold and random passages", 2 * models, last)
        for step in settings.amounts:
            count = models * len(settings.leave_out.methods)
            yield Work(f"without what was named after {step} steps", count, step)


def _storage(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    from headwater.launch.studies.storage.study import Storage

    tasks = [task for part in Storage(settings).parts() if not part.point for task in part.tasks]
    yield Work("pretrainings", tasks.count("train"), updates(planned))
    if settings.finetune:
        tuned = load_config(PretrainSettings, settings.preset, [*settings.pretrain, *settings.finetune])
        tokens = planned.train.global_batch * planned.corpus.seq_len
        size = tuned.train.global_batch * tuned.corpus.seq_len / tokens
        yield Work("fine-tunings of all weights", tasks.count("full"), updates(tuned), size)
    untrained = tasks.count("untrained")
    trained = [("by LoRA", settings.lora, tasks.count("lora"))]
    trained += [(f"by LoRA, {each.name}", each, tasks.count(f"lora-{each.name}")) for each in settings.lora_sizes]
    trained.append(("Q-probes", settings.q_probe, tasks.count("q_probe") + untrained))
    trained.append(("P-probes", settings.p_probe, tasks.count("places") + untrained))
    for what, adapter, count in trained:
        if count:
            # Questions are shorter than a training's sequences: this is an upper bound.
            yield Work(f"{what}, at most", count, adapter.steps, adapter.batch / planned.train.global_batch)
    yield from _storage_grid(settings, planned)


def _storage_grid(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    """The search for a size, with two variants at each: an update of another size is counted as one of the preset's."""
    both = 2 * len(settings.grid_seeds)
    for point in settings.grid:
        made = load_config(PretrainSettings, settings.preset, [*settings.pretrain, *point.pretrain])
        yield Work(f"at the size {point.name}", both, updates(made))
        steps, size = point.probe_steps or settings.p_probe.steps, settings.p_probe.batch / planned.train.global_batch
        yield Work("P-probes there, at most", both * max(1, len(point.ranks)), steps, size)


def _sweep(settings: Any, planned: PretrainSettings) -> Iterator[Work]:
    from headwater.launch.ablate.cells import expand

    cells = expand(settings)
    if settings.kind == "storage":
        each = [work for cell in cells for work in _storage(cell.settings, cell.pretraining)]
        for what in dict.fromkeys(work.what for work in each):
            same = [work for work in each if work.what == what]
            yield replace(same[0], count=sum(work.count for work in same))
        return
    tokens = planned.train.global_batch * planned.corpus.seq_len
    found: dict[tuple[int, float], set[str]] = {}
    for cell in cells:
        made = cell.pretraining
        # Ways of tracing share their pretraining.
        key = str(replace(made, out="")) if settings.kind == "trace" else cell.name
        size = made.train.global_batch * made.corpus.seq_len / tokens
        found.setdefault((updates(made), size), set()).add(key)
    for (steps, size), names in found.items():
        batch = f", {size:g} of the batch" if size != 1 else ""
        yield Work(f"pretrainings of cells{batch}", len(names), steps, size)


_COUNTED = {
    "demo": _demo,
    "acquisition": _acquisition,
    "overlearnt": _overlearnt,
    "lds": _lds,
    "exposures": _exposures,
    "pretrained": _pretrained,
    "selection": _selection,
    "tracing": _tracing,
    "storage": _storage,
    "sweep": _sweep,
}
