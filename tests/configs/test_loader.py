"""Loading and saving configurations: what is accepted, and what every kind of mistake is told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from headwater.configs import (
    MISSING,
    ConfigError,
    MissingError,
    Problem,
    UserError,
    describe,
    load_config,
    save_config,
    section,
    setting,
    sources,
)


@dataclass(kw_only=True, slots=True)
class Shape:
    layers: int = setting(2, "Layers.", minimum=1)
    heads: int = setting(4, "Attention heads.", minimum=1)
    kv_heads: int | None = setting(None, "Key-value heads.", minimum=1)
    dims: list[int] = setting([1, 2], "Sizes.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        if self.kv_heads and self.heads % self.kv_heads:
            yield Problem("kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}", "use 1, 2 or 4")


@dataclass(kw_only=True, slots=True)
class Source:
    path: str = setting(MISSING, "A file.")
    weight: float = setting(1.0, "Share.", above=0)


@dataclass(kw_only=True, slots=True)
class Settings:
    out: Path = setting(MISSING, "Run directory.")
    name: str = setting("run", "Name.")
    precision: str = setting("fp32", "Number format.", choices=("fp32", "bf16"))
    shuffle: bool = setting(True, "Shuffle.")
    lr: float = setting(1e-3, "Learning rate.", above=0, below=1)
    shape: Shape = section(Shape, layers=3)
    sources: list[Source] = setting([], "Corpora.")
    counts: dict[str, int] = setting({}, "Counts by name.", minimum=0)

    def problems(self) -> Iterator[Problem]:
        if self.shape.layers > 8 and self.precision == "fp32":
            yield Problem("precision", self.precision, "bf16 above 8 layers")


def problems_of(*overrides: str, path: Path | None = None) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        load_config(Settings, path, overrides)
    return {problem.key: problem for problem in caught.value.problems}


def test_defaults_sections_and_overrides_give_plain_objects():
    settings = load_config(
        Settings,
        None,
        ["out=runs/a", "lr=2e-4", "shape.kv_heads=2", "shape.dims=[3, 4]", "sources=[{path: x}]", "sources.0.weight=2"],
    )
    assert type(settings) is Settings
    assert type(settings.shape) is Shape
    assert settings == Settings(
        out=Path("runs/a"),
        lr=2e-4,
        shape=Shape(layers=3, heads=4, kv_heads=2, dims=[3, 4]),
        sources=[Source(path="x", weight=2.0)],
    )
    assert type(settings.shape.dims) is list
    assert load_config(Settings, None, ["out=a", "shape.kv_heads=2", "shape.kv_heads=null"]).shape.kv_heads is None


def test_texts_that_look_like_something_else_stay_texts():
    settings = load_config(Settings, None, ["out=0123", "name=a: b"])
    assert settings.out == Path("0123")
    assert settings.name == "a: b"


def test_every_problem_is_reported_at_once():
    found = problems_of(
        "shape.layrs=3", "shape.heads=x", "precision=bf15", "lr=2", "nonsense", "shape.dims=[1, -2]", "shuffle=3.5"
    )
    assert set(found) == {
        "shape.layrs",
        "shape.heads",
        "precision",
        "lr",
        "nonsense",
        "shape.dims.1",
        "shuffle",
        "out",
    }
    assert found["shape.layrs"].fix == "did you mean shape.layers?"
    assert found["shape.heads"].expected == "int"
    assert found["precision"].expected == "one of fp32, bf16"
    assert found["precision"].fix == "did you mean bf16?"
    assert "> 0" in found["lr"].expected
    assert "< 1" in found["lr"].expected
    assert "out=..." in found["out"].fix


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("shape.heads=4.0", "shape.heads", "int"),
        ("shape.heads=true", "shape.heads", "int"),
        ("shape.heads=null", "shape.heads", "int"),
        ("shape.heads=0", "shape.heads", ">= 1"),
        ("shape.kv_heads=0", "shape.kv_heads", ">= 1"),
        ("shape=3", "shape", "section"),
        ("shape=null", "shape", "section"),
        ("shape.dims=3", "shape.dims", "list[int]"),
        ("shape.dims.0=3", "shape.dims", "list[int]"),
        ("lr=nan", "lr", "> 0"),
        ("lr=", "lr", "float"),
        ("name=null", "name", "str"),
        ("sources=3", "sources", "list of sections"),
        ("sources=[3]", "sources.0", "section"),
        ("sources=[{}]", "sources.0.path", "str"),
        ("sources=[{path: a, weight: 0}]", "sources.0.weight", "> 0"),
        ("counts={a: b}", "counts", "dict[str, int]"),
        ("counts={a: -1}", "counts.a", ">= 0"),
        ("heads=3", "heads", "a key of this configuration"),
        ("name=${nowhere}", "name", "str"),
        ("=3", "=3", "key=value"),
        ("a b=3", "a b=3", "key=value"),
        ("shape..heads=3", "shape..heads=3", "key=value"),
        ("lr=[1", "lr", "a YAML value"),
    ],
)
def test_one_mistake_is_one_problem_that_says_what_is_expected(override: str, key: str, expected: str):
    found = problems_of("out=a", override)
    assert list(found) == [key]
    assert expected in found[key].expected


def test_a_key_in_the_wrong_section_is_pointed_to_its_place():
    assert problems_of("out=a", "kv_heads=2")["kv_heads"].fix == "did you mean shape.kv_heads?"


def test_cross_field_checks_run_with_prefixed_keys_and_beside_other_problems():
    assert list(problems_of("out=a", "shape.kv_heads=3")) == ["shape.kv_heads"]
    assert set(problems_of("out=a", "shape.kv_heads=3", "lr=x", "shape.layrs=1")) == {
        "shape.kv_heads",
        "lr",
        "shape.layrs",
    }
    assert list(problems_of("out=a", "shape.layers=9")) == ["precision"]
    load_config(Settings, None, ["out=a", "shape.layers=9", "precision=bf16"])


def test_bases_are_merged_in_order_and_found_beside_the_file(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.yaml").write_text("shape: {layers: 5, heads: 8}\nlr: 0.1\nname: one\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nshape: {heads: 6}\n")
    (tmp_path / "three.yaml").write_text("lr: 0.2\n")
    (tmp_path / "deep" / "top.yaml").write_text("base: [../two.yaml, ../three]\nout: a\nname: top\n")
    settings = load_config(Settings, tmp_path / "deep" / "top.yaml", ["shape.layers=7"])
    assert settings == Settings(out=Path("a"), name="top", lr=0.2, shape=Shape(layers=7, heads=6))


def test_a_circle_of_bases_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="is its own base"):
        load_config(Settings, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nname: a\nlr: 2\n", r"line 3, column 1: .*duplicate key"),
        ("shape: {layers: 2\nlr: 3\n", r"line 2.*not valid YAML"),
        ("lr: 1\n\tname: a\n", r"line 2.*not valid YAML"),
        ("- a\n- b\n", "is not a configuration"),
        ("just words\n", "unknown|expected a key|is not a configuration"),
        ("3\n", "is not a configuration"),
        ("base: 3\n", "base"),
        ("name: ${x\n", "is not a configuration"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(Settings, path)
    assert "bad.yaml" in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(MissingError, match=r"nowhere\.yaml"):
        load_config(Settings, tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match=r"bytes\.yaml is not a text file"):
        load_config(Settings, tmp_path / "bytes.yaml")


def test_a_preset_has_a_name_and_a_file_a_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    presets = tmp_path / "installed"
    (presets / "pretrain").mkdir(parents=True)
    (presets / "pretrain" / "small.yaml").write_text("out: preset\n")
    monkeypatch.setattr(sources, "PRESETS", presets)
    monkeypatch.chdir(tmp_path)
    assert load_config(Settings, "pretrain/small").out == Path("preset")
    for missing in ("pretrain/small.yaml", "configs/pretrain/small.yaml", "configs/presets/pretrain/small.yaml"):
        with pytest.raises(MissingError, match=r"write pretrain/small for the packaged preset of that name"):
            load_config(Settings, missing)
    with pytest.raises(MissingError, match=r"did you mean pretrain/small\?"):
        load_config(Settings, "pretrain/smal")
    (tmp_path / "pretrain").mkdir()
    for name in ("small", "other"):
        (tmp_path / "pretrain" / f"{name}.yaml").write_text(f"base: pretrain/small\nname: {name}\n")
    assert load_config(Settings, "pretrain/small").name == Settings(out=Path("a")).name
    for mine, name in (("pretrain/small.yaml", "small"), ("./pretrain/small", "small"), ("pretrain/other", "other")):
        settings = load_config(Settings, mine)
        assert (settings.name, settings.out) == (name, Path("preset"))


def test_saved_settings_load_back_equal(tmp_path: Path):
    random.seed(0)
    pieces = ["\\", "${", "}", "a", "1e3", "null", "~", ": ", "#", "'", '"', "yes", " ", "é", "\n", "0x1f"]
    for trial in range(200):
        name = "".join(random.choices(pieces, k=random.randint(1, 6)))
        settings = Settings(
            out=Path("a/b c"),
            name=name,
            lr=random.random() or 0.5,
            shape=Shape(kv_heads=random.choice([None, 2]), dims=[random.randint(0, 9)] * random.randint(0, 3)),
            sources=[Source(path=name or "x", weight=1e-300)],
            counts={"a": 3, "b c": 10**15},
        )
        path = tmp_path / f"{trial}.yaml"
        save_config(settings, path)
        assert load_config(Settings, path) == settings
    assert not list(tmp_path.glob("*.part"))
    assert load_config(Settings, path, ["lr=0.25"]) == replace(settings, lr=0.25)


def test_interpolation_is_resolved_and_checked():
    settings = load_config(Settings, None, ["out=runs/${name}", "shape.heads=${shape.layers}"])
    assert settings.out == Path("runs/run")
    assert settings.shape.heads == 3
    assert list(problems_of("out=a", "counts={a: 0}", "shape.heads=${counts.a}")) == ["shape.heads"]


def test_describe_lists_every_key_with_its_limits():
    rows = {row.key: row for row in describe(Settings)}
    assert list(rows)[:2] == ["out", "name"]
    assert rows["out"].default == "(must be given)"
    assert rows["shape.layers"].default == "3"
    assert rows["shape.kv_heads"].type == "int or null"
    assert rows["precision"].allowed == "one of fp32, bf16"
    assert rows["lr"].help == "Learning rate."


@dataclass(kw_only=True, slots=True)
class Schedule:
    min_lr_ratio: float = setting(0.1, "Learning rate at the end.", minimum=0, maximum=1)
    weight: float | str = setting(0.25, "A number, or a rule's name.", minimum=0, below=1)

    renamed: ClassVar[dict[str, str]] = {"final_lr": "min_lr_ratio"}


@dataclass(kw_only=True, slots=True)
class Renamed:
    optimizer: Schedule = section(Schedule)


def test_a_key_that_is_called_otherwise_now_names_the_new_one():
    with pytest.raises(ConfigError) as caught:
        load_config(Renamed, None, ["optimizer.final_lr=0.5"])
    assert [(each.key, each.fix) for each in caught.value.problems] == [
        ("optimizer.final_lr", "write optimizer.min_lr_ratio")
    ]
    assert [row.key for row in describe(Renamed)] == ["optimizer.min_lr_ratio", "optimizer.weight"]


@pytest.mark.parametrize(("given", "held"), [("0", 0.0), ("0.5", 0.5), ("paper", "paper")])
def test_a_number_or_a_name(given: str, held: float | str, tmp_path: Path):
    settings = load_config(Renamed, None, [f"optimizer.weight={given}"])
    assert settings.optimizer.weight == held
    assert type(settings.optimizer.weight) is type(held)
    save_config(settings, tmp_path / "c.yaml")
    assert load_config(Renamed, tmp_path / "c.yaml") == settings


@pytest.mark.parametrize("given", ["1", "-0.1", "true", "[0.5]"])
def test_neither_a_number_nor_a_name(given: str):
    with pytest.raises(ConfigError) as caught:
        load_config(Renamed, None, [f"optimizer.weight={given}"])
    assert [each.key for each in caught.value.problems] == ["optimizer.weight"]


@dataclass(kw_only=True, slots=True)
class Sweep:
    pretrain: list[str] = setting(["a=1"], "Overrides.")
    seeds: list[int] = setting([0], "Seeds.", minimum=0)
    grid: dict[str, Any] = setting({"x.y": [1]}, "A grid.")
    name: str = setting("n", "A name.")


@pytest.mark.parametrize(
    ("override", "key", "held"),
    [
        ("grid.train.steps=[1,2]", "grid", {"x.y": [1], "train.steps": [1, 2]}),
        ("grid={train.steps: [3]}", "grid", {"x.y": [1], "train.steps": [3]}),
        ("grid.x.y=[2]", "grid", {"x.y": [2]}),
        ("pretrain+=facts.people=0", "pretrain", ["a=1", "facts.people=0"]),
        ("pretrain+=[b=2,c=3]", "pretrain", ["a=1", "b=2", "c=3"]),
        ("pretrain+=7", "pretrain", ["a=1", "7"]),
        ("pretrain=[b=2]", "pretrain", ["b=2"]),
        ("seeds+=3", "seeds", [0, 3]),
        ("seeds=[4,5]", "seeds", [4, 5]),
    ],
)
def test_lists_and_mappings_are_overridden_on_the_command_line(override: str, key: str, held: Any, tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("pretrain: [a=1]\nseeds: [0]\ngrid: {x.y: [1]}\n")
    assert getattr(load_config(Sweep, path, [override]), key) == held


def test_only_lists_can_be_added_to_and_a_lone_value_is_shown_as_a_list():
    with pytest.raises(ConfigError, match=r"name\+ = 'b': expected the key of a list; write name="):
        load_config(Sweep, None, ["name+=b"])
    with pytest.raises(ConfigError, match=r"write seeds=\[3\]"):
        load_config(Sweep, None, ["seeds=3"])


def test_what_is_added_to_a_default_keeps_it():
    assert load_config(Sweep, None, ["pretrain+=b=2", "seeds+=[1,2]"]) == Sweep(
        pretrain=["a=1", "b=2"], seeds=[0, 1, 2]
    )
