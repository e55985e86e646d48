"""Kills and faults at random moments: what was lost?

    headwater bench survive --kills 20 --faults 9 --json survive.json
    headwater bench survive --kills 5 --faults 0 --only training

A training (with captured rows and checkpoints written behind it), the build of a corpus, of an index, a small study and
a sweep are broken off, each by -9 or -15 to all of its processes, to the first or to one of the others; then started
again with another number of processes and another layout, and held against the same work that nothing broke off:
losses, ledger, probes, weights, captured sums, bytes. Faults are a full disk, a disk that fails, a quota, a read-only
mount, a share that is gone, a file system without locks, a clock that jumps, a full /dev/shm, a rank that is ended for
want of memory: the work must end soon, say once what and where, and go on when it is mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = ("kind", "what", "kills", "tried", "survived", "lost")


def main(
    kills: int = 20, faults: int = 9, seed: int = 0, only: Sequence[str] = (), out: str = "runs/survive"
) -> dict[str, Any]:
    """How many of so many kills, and of so many faults, lost something; prints each, and a table.

    --kills, --faults: trials; a campaign that was stopped goes on with those that are not made, and one may be made
    longer. --only: kinds of work (training, corpus, index, study, sweep) and names of faults. --out: where it works;
    table.md there is the table in Markdown. The exit status is 1 if anything was lost.
    """
    from headwater.launch.bench.survival.campaign import Campaign, as_markdown, table
    from headwater.launch.jobs.processes import sigterm_interrupts
    from headwater.train.artifacts import write_bytes
    from headwater.train.locks import file_lock

    home = Path(out)
    with file_lock(home / "campaign", patience=0), sigterm_interrupts():
        campaign = Campaign(home, seed=seed, only=only, say=lambda line: print(line, flush=True))
        outcomes = campaign.run(kills, faults)
        lines = table(outcomes)
        write_bytes(home / "table.md", as_markdown(lines).encode())
    show(lines)
    lost = [each.name for each in outcomes if each.lost]
    return {"seed": seed, "table": lines, "lost": lost, "trials": [each.as_json() for each in outcomes]}


def show(lines: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*SHOWN, box=None, header_style="bold", pad_edge=False)
    for line in lines:
        drawn.add_row(*(str(line[name]) for name in SHOWN))
    Console(highlight=False).print(drawn)
