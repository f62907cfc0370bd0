"""The visitors of a site while something is done to it: the load generator, started and ended around a block."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import rig

CLIENTS = 16
"""Half of them keep their connections; one more always has a request of 1 s in flight."""


@dataclass
class Load:
    """What the load generator has seen, once it has ended."""

    found: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def failures(self) -> list[tuple[float, str]]:
        """When, in seconds since the epoch, and what."""
        return [(at, words) for at, words in self.found["failures"]]

    @property
    def p99(self) -> float:
        return rig.percentile(self.found["milliseconds"], 99)

    def failures_in_words(self) -> str:
        return ", ".join(
            f"{words} ({count})" for words, count in Counter(words for _, words in self.failures).most_common()
        )

    def cells(self) -> list[str]:
        times = self.found["milliseconds"]
        return [str(self.found["asked"]), str(self.failed), *(f"{rig.percentile(times, p):.1f}" for p in (50, 99, 100))]


@contextlib.contextmanager
def visiting(port: int, rate: float) -> Iterator[Load]:
    """Requests on this port for as long as the block lasts."""
    load = Load()
    command = rig.module("load", "requests", str(port), "--rate", str(rate), "--clients", str(CLIENTS))
    with subprocess.Popen(command, cwd=rig.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            time.sleep(1)  # so that the interpreter's own start is over, and the slow request is in flight
            yield load
            said, _ = process.communicate(timeout=rig.PATIENCE)  # the end of its input ends it
            load.found = json.loads(said)
        finally:
            process.kill()
