"""The `headwater` command: how fast it answers, where it dispatches, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from headwater.configs import UserError, setting
from headwater.launch.cli import commands as cli
from headwater.launch.cli import front, stages

COMMAND = [sys.executable, "-c", "from headwater.launch.cli import main; main()"]


def run(*arguments: str) -> SimpleNamespace:
    result = CliRunner().invoke(cli.app, list(arguments))
    return SimpleNamespace(status=result.exit_code, out=result.stdout, err=result.stderr, exception=result.exception)


def commands() -> list[str]:
    """Every command, and its subcommands."""
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    for group in cli.app.registered_groups:
        names.append(group.name)
        names += [f"{group.name} {command.name}" for command in group.typer_instance.registered_commands]
    return names


@dataclass(kw_only=True, slots=True)
class FakeSettings:
    steps: int = setting(3, "Steps of the thing.", minimum=1)
    out: str = setting("runs/fake", "Where it goes.")


TRACED = {
    f"{end}{field}": value
    for end in ("proponent", "opponent")
    for field, value in {
        "s": ["the\ntext"],
        "_ids": ["a#1"],
        "_scores": [0.5],
        "_seen_steps": [[1, 2, 3, 4, 5]],
    }.items()
}
RETURNS = {
    "verify": SimpleNamespace(passages=1, shards=2, bytes=3),
    "run_trace": [TRACED],
    "evaluate": {"methods": {}},
    "console_tables": ["THE TABLE"],
}
"""What the stand-ins of the entry points give back."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list:
    """Stands in for every stage: settings classes become FakeSettings, entry points record how they were called."""
    made: list = []

    class StandIn:
        def __init__(self, module: str) -> None:
            self.module = module

        def __getattr__(self, name: str):
            if name.endswith("Settings"):
                return FakeSettings

            def entry(*arguments, **options):
                made.append((f"{self.module}:{name}", arguments, options))
                return RETURNS.get(name)

            return entry

    monkeypatch.setattr(front, "import_module", StandIn)
    return made


def test_help_of_everything_works_without_the_heavy_libraries():
    assert {"demo", "pretrain", "index verify", "corpus inspect"} <= set(commands())
    for name in commands():
        if name.startswith("bench "):
            continue  # a benchmark parses its own options
        assert run(*name.split(), "--help").status == 0, name
    code = (
        "import sys; from typer.testing import CliRunner; from headwater.launch.cli import commands as cli;"
        "result = CliRunner().invoke(cli.app, ['pretrain', '--help']); assert result.exit_code == 0;"
        "heavy = {'torch', 'numpy', 'omegaconf', 'deepspeed', 'transformers', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_answers_in_under_a_second():
    def seconds() -> float:
        # Processor time: what it takes on a machine that is not busy with something else.
        before = os.times()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 1.0


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["demo"], "headwater.launch.demo:run_demo"),
        (["index"], "headwater.attribution.index.build:build_index"),
        (["evaluate"], "headwater.attribution.evaluation.evaluate:evaluate"),
        (["report"], "headwater.attribution.report.build:build_report"),
    ],
)
def test_stages_get_their_settings(calls: list, tmp_path: Path, arguments: list[str], target: str):
    config = tmp_path / "a.yaml"
    config.write_text("steps: 5\n")
    result = run(*arguments, str(config), "out=x")
    assert result.status == 0, result.err
    assert calls[0] == (target, (FakeSettings(steps=5, out="x"),), {})
    assert ("THE TABLE" in result.out) == (arguments == ["evaluate"])


def test_a_configuration_may_be_left_out(calls: list):
    assert run("evaluate", "steps=9").status == 0
    assert calls[0][1] == (FakeSettings(steps=9),)


def test_trace_takes_a_prompt_and_its_target_together(calls: list):
    traced = run("trace", "steps=2", "--prompt", "a b", "--target", "c")
    assert traced.status == 0
    assert "1, 2, 3, 4, ..." in traced.out
    assert "the text" in traced.out
    assert calls == [
        (
            "headwater.attribution.tracing.run:run_trace",
            (FakeSettings(steps=2),),
            {"prompt": "a b", "target": "c", "against": None},
        )
    ]
    assert run("trace", "--prompt", "a", "--target", "c", "--against", "d").status == 0
    assert calls[-1][2]["against"] == "d"
    assert "--prompt" in run("trace", "--against", "d").err
    result = run("trace", "--prompt", "a")
    assert result.status == 2
    assert "--target" in result.err


def test_corpus_is_built_and_inspected(calls: list, tmp_path: Path):
    for words in (["corpus"], ["corpus", "run"]):
        assert run(*words, "steps=4").status == 0
    assert [call[:2] for call in calls] == [("headwater.train.corpus.build:build_corpus", (FakeSettings(steps=4),))] * 2
    assert run("corpus", "inspect", str(tmp_path), "--count", "1").status == 0
    assert calls[2][1:] == ((tmp_path,), {"sequence": 0, "count": 1, "passage": None})


def test_index_verify_is_not_taken_for_a_configuration(calls: list, tmp_path: Path):
    assert run("index", "verify", str(tmp_path)).status == 0
    assert calls[0][1] == (tmp_path,)
    assert "verify" in calls[0][0]


def test_pretrain_returns_the_trainers_status_or_becomes_torchrun(
    calls: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = tmp_path / "a.yaml"
    config.write_text("steps: 5\n")
    assert run("pretrain", str(config)).status == 0
    assert calls[0][0] == "headwater.train.__main__:pretrain"
    executed: list = []
    monkeypatch.setattr(stages.os, "execv", lambda path, command: executed.append(command))
    run("pretrain", "--nproc", "2", str(config), "steps=7")
    assert executed[0][1:4] == ["-m", "headwater.launch.jobs.agent", "--standalone"]
    assert executed[0][-4:] == ["-m", "headwater.train", str(config), "steps=7"]
    assert executed[0][executed[0].index("--nproc-per-node") + 1] == "2"
    assert run("pretrain", "--nproc", "2", "steps=7").status == 2
    assert run("pretrain", "--nproc", "2", str(config), "stesp=7").status == 2, "checked before any process is started"
    assert len(executed) == 1


def test_keys_lists_every_setting(calls: list):
    result = run("evaluate", "--keys")
    assert result.status == 0
    assert "steps" in result.out
    assert "Steps of the thing" in result.out
    assert calls == []


def test_what_a_user_can_mend_is_printed_without_a_traceback():
    result = subprocess.run(
        [*COMMAND, "pretrain", "train.stops=3", "model.layers=x", "no_value"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: the configuration has 3 problems:")
    assert "did you mean train.steps?" in result.stderr
    missing = run("pretrain", "nowhere.yaml")
    assert missing.status == 2
    assert "nowhere.yaml" in missing.err


def test_a_bug_keeps_its_traceback_and_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def fails_with(error: BaseException):
        def entry(*_):
            raise error

        stand_in = SimpleNamespace(EvaluateSettings=FakeSettings, evaluate=entry)
        monkeypatch.setattr(front, "import_module", lambda module: stand_in)
        return run("evaluate", "steps=3")

    interrupted = fails_with(KeyboardInterrupt())
    assert interrupted.status == 130
    assert interrupted.err.count("\n") == 1
    mended = fails_with(UserError("the thing [bold]", got="[/x]", fix="do it"))
    assert mended.status == 2
    assert "the thing [bold]" in mended.err, "brackets are text, not markup"
    assert isinstance(fails_with(ZeroDivisionError()).exception, ZeroDivisionError)


def test_options_of_a_benchmark_are_its_parameters(monkeypatch: pytest.MonkeyPatch):
    seen: list = []

    def main(rows: Sequence[int] = (5,), dims: int = 3, json_path: str | None = None, quiet: bool = False) -> None:
        """Measures something."""
        seen.append((tuple(rows), dims, json_path, quiet))

    module = ModuleType("headwater.launch.bench.search")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert run("bench", "search").status == 0
    assert run("bench", "search", "--rows", "20", "30", "--json-path", "a", "--quiet").status == 0
    assert seen == [((5,), 3, None, False), ((20, 30), 3, "a", True)]
    wrong = run("bench", "search", "--dims", "x")
    assert wrong.status == 2
    assert "invalid int value" in wrong.err
    assert "Measures something." in run("bench", "search", "--help").out


def test_unknown_commands_and_options_are_refused():
    assert run("pretrian").status == 2
    assert run("pretrain", "--nprocs", "2").status == 2
    assert run("--version").out.startswith("headwater ")


@pytest.mark.parametrize(
    "words",
    [
        "corpus run",
        "pretrain",
        "index run",
        "queries",
        "trace",
        "evaluate",
        "report",
        "ablate run",
        "ablate report",
        "plan",
        "launch",
    ],
)
def test_a_bare_command_says_what_it_wants_and_does_nothing(words: str, calls: list):
    result = run(*words.split())
    assert result.status == 2
    assert f"headwater {words.removesuffix(' run')} wants a configuration" in result.err
    assert "for example `headwater" in result.err
    assert calls == []


def test_keys_are_listed_below_prefixes_in_full_and_with_a_files_values(tmp_path: Path):
    every = run("pretrain", "--keys").out
    assert all(" (" in line and ") = " in line for line in every.splitlines() if not line.startswith(" "))
    assert "corpus.tokenizer.vocab_size (int) = " in every
    some = run("pretrain", "--keys", "optimizer", "train.steps").out
    assert {line.split(".")[0] for line in some.splitlines() if not line.startswith(" ")} == {"optimizer", "train"}
    assert "train.steps (int) = 60" in run("pretrain", "pretrain/tiny", "--keys", "train.steps").out
    assert "train.steps (int) = 7" in run("pretrain", "pretrain/tiny", "train.steps=7", "--keys", "train.steps").out
    wrong = run("pretrain", "--keys", "optimiser")
    assert wrong.status == 2
    assert "did you mean optimizer?" in wrong.err


def test_a_printed_configuration_is_one_that_loads(tmp_path: Path):
    from headwater.attribution.settings import IndexSettings
    from headwater.configs import load_config
    from headwater.launch.ablate.settings import AblateSettings
    from headwater.launch.studies.lds.settings import LdsSettings
    from headwater.train.settings import PretrainSettings

    printed = {
        PretrainSettings: ["pretrain", "pretrain/tiny", "train.steps=7", "facts.people=0"],
        IndexSettings: ["index", "index/hf", "model.path=a:b", "corpus.path=c # d", "out=a'b"],
        LdsSettings: ["study", "lds", "study/lds", "again=6"],
        AblateSettings: ["ablate", "ablation/trackstar"],
    }
    for schema, words in printed.items():
        result = run(*words, "--yaml")
        assert result.status == 0, result.err
        path = tmp_path / f"{schema.__name__}.yaml"
        path.write_text(result.out)
        place = 2 if words[0] == "study" else 1
        assert load_config(schema, path) == load_config(schema, words[place], words[place + 1 :])
        assert result.out.count("#") > 5


def test_a_word_that_is_nearly_a_tools_name_is_not_taken_for_a_configuration(calls: list):
    result = run("corpus", "inspec", "runs/a")
    assert result.status == 2
    assert "did you mean headwater corpus inspect?" in result.err
    assert "did you mean headwater index verify?" in run("index", "verfy").err
    assert "did you mean" not in run("corpus", "nowhere").err


def test_a_users_missing_file_is_not_a_packaged_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list):
    monkeypatch.chdir(tmp_path)
    result = run("pretrain", "configs/pretrain/tiny.yaml")
    assert result.status == 2
    assert "write pretrain/tiny for the packaged preset" in result.err
    assert "there is no configuration file" in run("pretrain", "").err, "a shell's variable that is not set"
    assert calls == []


def test_shells_are_offered_presets_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pre.yaml").write_text("a: 1\n")
    (tmp_path / "pre.txt").write_text("a")
    assert "pretrain/tiny" in front.complete("pre")
    assert "pre.yaml" in front.complete("pre")
    assert "pre.txt" not in front.complete("pre")
    assert front.complete("no such") == []
    assert "demo" in front.complete("demo")
