"""torchrun, but for how it ends: what a person must mend is not tried again, and being told to stop is no failure.

    python -m headwater.launch.jobs.agent --standalone --nproc-per-node 2 -m headwater.train pretrain/tiny out=runs/a

Options are torchrun's. Its exit status is 0; 2 where a process ended with 2 (an error in what it was given, which it
has said); 130 or 143 after Ctrl-C or SIGTERM, when all processes have saved and gone (0 in a job that reads it
elsewhere, see `headwater.train.ending`); 1 otherwise.
"""

from __future__ import annotations

import logging
import platform
import signal
import sys
from collections.abc import Mapping
from typing import Any

from headwater.train.ending import FINISHED, REFUSED, STOPPED, note_ending, note_ending_unless_noted, report_ending
from headwater.train.lifetime import die_with_parent

USER_ERROR = 2


def main(arguments: list[str]) -> int:
    die_with_parent()
    report_ending()
    try:
        return run_agent(arguments)
    except KeyboardInterrupt:  # before torchrun has taken the signal over
        return 128 + signal.SIGINT


def run_agent(arguments: list[str]) -> int:
    """torchrun's work; returns the exit status."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

    watch_failures()
    quieten()
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        if is_refusal(error.failures):
            note_ending(REFUSED)
            return USER_ERROR
        say("given up: no restarts are left")
        return 1
    except RendezvousClosedError:
        say("ended, since another machine of the job has ended it")
        return 1
    except RendezvousTimeoutError:
        say("ended: the other machines of the job did not come")
        return 1
    except SignalException as told:
        say(f"told to stop ({told.sigval.name}); its processes are gone")
        # srun would take a status for a failure, and kill those that still save.
        return 0 if note_ending_unless_noted(STOPPED) else 128 + told.sigval
    note_ending_unless_noted(FINISHED)
    return 0


def watch_failures() -> None:
    """Makes torchrun's agent say what failed, and not start again what a person must mend.

    torch has no public place for either: these are its private names (2.13).
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    look = LocalElasticAgent._monitor_workers

    def look_and_say(agent: Any, group: Any) -> Any:
        result = look(agent, group)
        if result.is_failed():
            if is_refusal(result.failures):
                agent._remaining_restarts = 0
            else:
                say(failure_lines(result.failures, agent._remaining_restarts))
        return result

    LocalElasticAgent._monitor_workers = look_and_say  # type: ignore[method-assign]


def is_refusal(failures: Mapping[int, Any]) -> bool:
    """Whether a process ended with the status of what a person must mend. Its peers may have failed for want of it."""
    return any(failure.exitcode == USER_ERROR for failure in failures.values())


def failure_lines(failures: Mapping[int, Any], restarts: int) -> str:
    """Which rank ended, and how; and what is done about it."""
    first = min(failures, key=lambda rank: (failures[rank].timestamp, rank))
    code = failures[first].exitcode
    how = f"ended with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    left = "no restarts are left" if not restarts else f"starting all again, {restarts} restarts are left"
    return f"rank {first} {how}{more}: {left}"


def quieten() -> None:
    """torch's own lines say the same in several times as many, with a traceback of torchrun."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def say(text: str) -> None:
    print(f"torchrun on {platform.node()}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
