"""Somebody who uses the door while others attack it, as a process of its own: how long each answer takes.

    python -m benchmarks.onlooker PORT probe    # asks for /healthz every 20 ms over a kept connection, from 127.0.0.3
    python -m benchmarks.onlooker PORT deliver  # now and then a signed push, a connection each, from 127.0.0.2

It says that it is ready, begins when it is told a line, ends with its standard input, prints one JSON object, and
judges nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks import rig

EVERY = {"probe": 0.02, "deliver": 0.25}
"""Seconds between two requests, unless an answer takes longer."""
SOURCES = {"probe": "127.0.0.3", "deliver": "127.0.0.2"}


@dataclass
class Found:
    """What became of the requests: the answers' times in ms since each was due, and the answers by status."""

    milliseconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


class Onlooker:
    """Asks one thing after the other."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._connection = self._connect()
        self._number = 0
        self.found = Found()

    def _connect(self) -> http.client.HTTPConnection:
        source = (SOURCES[self._given.what], 0)
        return http.client.HTTPConnection("127.0.0.1", self._given.port, timeout=rig.PATIENCE, source_address=source)

    def work(self, over: threading.Event) -> None:
        due = time.perf_counter()
        while not over.wait(max(0.0, due - time.perf_counter())):
            self._ask(due)
            due = max(due + EVERY[self._given.what], time.perf_counter())
        self._connection.close()

    def _ask(self, due: float) -> None:
        try:
            self.found.answers[str(self._exchange())] += 1
        except (OSError, http.client.HTTPException) as error:
            self.found.answers[type(error).__name__] += 1
            self._connection.close()
        self.found.milliseconds.append(1000 * (time.perf_counter() - due))  # of those that failed, too

    def _exchange(self) -> int:
        if self._given.what == "probe":
            self._connection.request("GET", "/healthz")
        else:
            self._number += 1
            self._connection.close()
            headers, body = rig.signed_push(
                self._given.repository, rig.BRANCH, f"{time.time_ns():040x}", f"{self._given.name}-{self._number}"
            )
            self._connection.request(
                "POST", "/hooks/github", body, {name.decode(): value.decode() for name, value in headers.items()}
            )
        answer = self._connection.getresponse()
        answer.read()
        return answer.status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("what", choices=EVERY)
    parser.add_argument("--repository", default="acme/busy")
    parser.add_argument("--name", default="genuine", help="how the ids of the deliveries begin")
    onlooker = Onlooker(parser.parse_args())
    over = threading.Event()
    print("ready", flush=True)
    sys.stdin.readline()
    work = threading.Thread(target=onlooker.work, args=(over,))
    work.start()
    sys.stdin.read()
    over.set()
    work.join()
    json.dump(vars(onlooker.found), sys.stdout)


if __name__ == "__main__":
    main()
