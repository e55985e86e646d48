"""Two machines on this one: network namespaces with addresses and names of their own, joined by a cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        name: that the other one knows it by.
        namespace: the kernel's name of its network, where `eth` is its end of the cable; empty: it is an address of
            this machine itself, without a cable.
    """

    name: str
    namespace: str

    @property
    def environment(self) -> dict[str, str]:
        """What the torchrun script is told."""
        if self.namespace:
            return {"HEADWATER_HEAD": "first"}
        return {"HEADWATER_HEAD": "127.0.0.1", "HEADWATER_ADDRESS": self.name}

    def command(self, *words: str) -> list[str]:
        """What runs a command on it."""
        if not self.namespace:
            return list(words)
        named = 'hostname "$1"; shift; exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "bash", "-c", named, "-", self.name, *words]

    def cable(self, state: str) -> None:
        """Pulls the cable out (`down`) or puts it back (`up`)."""
        if self.namespace:
            ip("-n", self.namespace, "link", "set", "eth", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """The hosts `first` and `second`; where this user may not make them, two addresses of this machine."""
    addresses = [Host("127.0.0.1", ""), Host("127.0.0.2", "")]
    hosts = [Host(name, f"hw{os.getpid()}-{name}") for name in ("first", "second")]
    lists = [Path("/etc/netns", host.namespace) for host in hosts]
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        yield addresses
        return
    try:
        try:
            for host, place in zip(hosts, lists, strict=True):
                ip("netns", "add", host.namespace)
                place.mkdir(parents=True)  # stands for /etc/hosts there
                (place / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n")
            one, other = (host.namespace for host in hosts)
            ip("link", "add", "eth", "netns", one, "type", "veth", "peer", "name", "eth", "netns", other)
            for number, host in enumerate(hosts, 1):
                ip("-n", host.namespace, "addr", "add", f"10.77.0.{number}/24", "dev", "eth")
                ip("-n", host.namespace, "link", "set", "lo", "up")
                host.cable("up")
        except (OSError, subprocess.CalledProcessError):
            yield addresses
            return
        yield hosts
    finally:
        for host, place in zip(hosts, lists, strict=True):
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False, capture_output=True)
            shutil.rmtree(place, ignore_errors=True)
