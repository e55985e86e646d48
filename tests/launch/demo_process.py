"""What a demo's process does: the `headwater` command, which pretrains in the process itself instead of another one."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

from ..attribution.killed_builds import command


def pretrain_here(module: str, arguments: Sequence[str], *, processes: int = 1, what: str = "pretraining") -> None:
    """Stands in for `run_module`, at no start-up cost."""
    from headwater.configs import load_config
    from headwater.train.__main__ import pretrain
    from headwater.train.settings import PretrainSettings

    assert (module, processes) == ("headwater.train", 1)
    assert pretrain(load_config(PretrainSettings, arguments[0], arguments[1:])) == 0, what


def demo(arguments: list[str], directory: str) -> int:
    """`headwater demo ARGUMENTS`; what it prints goes to files `out` and `err`."""
    with mock.patch("headwater.launch.demo.run_module", pretrain_here):
        return command(["demo", *arguments], directory)
