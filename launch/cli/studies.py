"""Studies and sweeps: many runs, and what they show together."""

from __future__ import annotations

import typer

from headwater.launch.cli.front import OK, OPTIONS, Arguments, Keys, StageGroup, Yaml, load, read_settings

study_app = typer.Typer(**OPTIONS)
ablate_app = typer.Typer(cls=StageGroup, **OPTIONS)


@study_app.callback()
def study() -> None:
    """Run a study, and say which of its claims hold here."""


@study_app.command("acquisition")
def study_acquisition(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Plant facts from a checkpoint on, and follow how they are acquired and forgotten."""
    settings = read_settings(
        "headwater.launch.studies.acquisition.settings:AcquisitionSettings",
        arguments,
        keys,
        yaml,
        preset="study/acquisition",
        command="headwater study acquisition",
    )
    load("headwater.launch.studies.acquisition.study:run_acquisition")(settings)


@study_app.command("storage")
def study_storage(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Write people's biographies in sixteen ways, and see which of them questions can be answered from."""
    settings = read_settings(
        "headwater.launch.studies.storage.settings:StorageSettings",
        arguments,
        keys,
        yaml,
        preset="study/storage",
        command="headwater study storage",
    )
    load("headwater.launch.studies.storage.study:run_storage")(settings)


@study_app.command("overlearnt")
def study_overlearnt(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Trace facts that a model has learnt too well, and train again without the passages that are named."""
    settings = read_settings(
        "headwater.launch.studies.overlearnt.settings:OverlearntSettings",
        arguments,
        keys,
        yaml,
        preset="study/overlearnt",
        command="headwater study overlearnt",
    )
    load("headwater.launch.studies.overlearnt.study:run_overlearnt")(settings)


@study_app.command("lds")
def study_lds(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Train on halves of a corpus, and see which scores foretell what leaving passages out does (LDS)."""
    settings = read_settings(
        "headwater.launch.studies.lds.settings:LdsSettings",
        arguments,
        keys,
        yaml,
        preset="study/lds",
        command="headwater study lds",
    )
    load("headwater.launch.studies.lds.study:run_lds")(settings)


@study_app.command("selection")
def study_selection(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Train on the half of a corpus that was chosen for a task by gradients, by BM25 or by chance, and compare."""
    settings = read_settings(
        "headwater.launch.studies.selection.settings:SelectionSettings",
        arguments,
        keys,
        yaml,
        preset="study/selection",
        command="headwater study selection",
    )
    load("headwater.launch.studies.selection.study:run_selection")(settings)


@study_app.command("pretrained")
def study_pretrained(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Teach a real language model new facts, trace its answers, and train it again without what is named."""
    settings = read_settings(
        "headwater.launch.studies.pretrained.settings:PretrainedSettings",
        arguments,
        keys,
        yaml,
        preset="study/pretrained",
        command="headwater study pretrained",
    )
    load("headwater.launch.studies.pretrained.study:run_pretrained")(settings)


@study_app.command("exposures")
def study_exposures(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Train again without single exposures of facts, and see what foretells the difference."""
    settings = read_settings(
        "headwater.launch.studies.exposures.settings:ExposuresSettings",
        arguments,
        keys,
        yaml,
        preset="study/exposures",
        command="headwater study exposures",
    )
    load("headwater.launch.studies.exposures.study:run_exposures")(settings)


@study_app.command("tracing")
def study_tracing(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Trace models of several sizes and amounts of tokens: what states a fact, what moves the model, of what kind."""
    settings = read_settings(
        "headwater.launch.studies.tracing.settings:TracingSettings",
        arguments,
        keys,
        yaml,
        preset="study/tracing",
        command="headwater study tracing",
    )
    load("headwater.launch.studies.tracing.study:run_tracing")(settings)


@ablate_app.callback()
def ablate() -> None:
    """Run a sweep of cells that differ in a grid of settings, each an ordinary run directory, and compare them."""


@ablate_app.command("run")
def ablate_run(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Run the cells that are not finished, and write the report (`run` may be left out)."""
    settings = read_settings(
        "headwater.launch.ablate.settings:AblateSettings",
        arguments,
        keys,
        yaml,
        command="headwater ablate",
        example="ablation/injection out=runs/injection",
    )
    raise typer.Exit(1 if load("headwater.launch.ablate.run:run_ablation")(settings) else OK)


@ablate_app.command("report")
def ablate_report(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Write the table and the plots of what is finished."""
    settings = read_settings(
        "headwater.launch.ablate.settings:AblateSettings",
        arguments,
        keys,
        yaml,
        command="headwater ablate report",
        example="ablation/injection out=runs/injection",
    )
    load("headwater.launch.ablate.report:write_report")(settings)
