"""`headwater doctor`: what it looks at, and that what is broken is told and does not stop it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.launch import doctor


def test_this_machine_will_do(capsys: pytest.CaptureFixture[str]):
    assert doctor.run_doctor(as_json=True) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert {"headwater", "torch", "C compiler", "/dev/shm", "open files", "disk", "network", "fonts"} <= set(found)
    assert "relative error" in found["self-test: kernels"]["found"]
    assert all(each["advice"] for each in found.values() if each["state"] != "ok")


def test_what_is_broken_is_told_and_the_rest_still_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def fonts():
        raise RuntimeError("no font [bold]")
        yield

    monkeypatch.setattr(doctor, "fonts", fonts)
    monkeypatch.setattr(doctor, "_kernels", lambda: "skipped")
    monkeypatch.setattr(doctor, "_process_group", lambda: "skipped")
    assert doctor.run_doctor() == 1
    printed = capsys.readouterr().out
    assert "broken" in printed
    assert "no font [bold]" in printed
    assert "self-test: files" in printed
