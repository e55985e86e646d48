"""Where a run's figures are shown while it trains: TensorBoard, and Weights & Biases beside it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headwater.configs.errors import UserError
from headwater.train import parallel
from headwater.train.callbacks.base import Callback, Training


class Boards(Callback):
    """Shows what other callbacks give it, on rank 0.

    Args:
        run: the run directory; Weights & Biases keeps its files there, under wandb/.
        tensorboard: where events are written, or None.
        project: of Weights & Biases; none if it is empty.
    """

    name = "boards"
    priority = -10  # before those that show something

    def __init__(self, run: Path, tensorboard: Path | None, project: str = "") -> None:
        self.run, self.tensorboard, self.project = run, tensorboard, project
        self._id = ""
        self._events: Any = None
        self._wandb: Any = None

    def start(self, trainer: Training, step: int) -> None:
        parallel.on_main(trainer.world, lambda: self._open(asdict(trainer.settings), step))

    def _open(self, settings: dict[str, Any], step: int) -> None:
        if self.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.tensorboard), purge_step=step + 1)
        if self.project:
            self._wandb = self._open_wandb(settings)

    def _open_wandb(self, settings: dict[str, Any]) -> Any:
        import wandb

        self._id = self._id or secrets.token_hex(4)
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_job_creation=True)
        try:
            run = wandb.init(
                project=self.project,
                id=self._id,
                name=self.run.resolve().name,
                dir=str(self.run),
                resume="allow",
                config=settings,
                settings=quiet,
            )
            # Steps after a stop may be shown twice; wandb's own count would refuse those that it has seen.
            run.define_metric("*", step_metric="step")
        except Exception as error:  # no account, no network: it raises several kinds
            raise UserError(
                "Weights & Biases cannot be started",
                got=f"{type(error).__name__}: {error}",
                fix="run `wandb login`, or set WANDB_MODE=offline (kept in the run) or callbacks.metrics.wandb=''",
            ) from None
        return run

    def show(self, figures: Mapping[str, float], step: int) -> None:
        """Shows figures by name, `train/loss`, at a step; on other ranks nothing happens."""
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({**figures, "step": step})

    def flush(self, trainer: Training, step: int) -> None:
        if self._events is not None:
            self._events.flush()

    def state_dict(self) -> dict[str, Any]:
        return {"wandb": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = state.get("wandb", "")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish(quiet=True)
        self._events = self._wandb = None
