"""The load of the benchmarks, as a process of its own, so that it does not disturb the one that starts and watches.

    python -m benchmarks.load deliveries PORT ...    # open loop: each delivery leaves when its time has come
    python -m benchmarks.load requests PORT ...      # closed loop: each client asks again when it has its answer

It prints one JSON object and judges nothing. It never tries anything a second time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks import rig

LIMIT = 10.0
"""Seconds after which an answer counts as none."""
HOST = "127.0.0.1"
LONGEST_BODY = 100
"""Bytes shown of an answer that is a failure."""


class Failed(Exception):
    """Anything but a complete answer."""


class Connection:
    """One connection of a client that speaks plain HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._closing = False

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection(HOST, port))

    @property
    def usable(self) -> bool:
        """Whether the server has not said, by now, that it is done with this connection."""
        return not self._closing and not self._reader.at_eof()

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """The status and the whole body of the answer to a request. Raises ``Failed``."""
        self._writer.write(request)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, headers = _parsed(head)
            self._closing = headers.get("connection", "").lower() == "close"
            return status, await self._reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            what = "an incomplete answer" if error.partial else "no answer"
            raise Failed(f"closed with {what}") from error
        except KeyError as error:
            raise Failed("an answer without a length") from error

    def close(self) -> None:
        self._writer.close()


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


# --- deliveries


@dataclass
class Deliveries:
    """What became of the deliveries: the answers' times in ms since each was due, and the answers by kind."""

    milliseconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


async def deliver(given: argparse.Namespace) -> Deliveries:
    """Send signed pushes at times that do not depend on the answers: at random, as many a second as was asked for."""
    dice = random.Random(given.seed)  # noqa: S311 - the same arrivals for every side of a comparison
    due = sorted(dice.uniform(0, given.seconds) for _ in range(round(given.rate * given.seconds)))
    requests = [_delivery(given, number) for number in range(len(due))]
    found = Deliveries()
    idle: list[Connection] = []
    start = time.perf_counter() + 0.5
    async with asyncio.TaskGroup() as group:
        for at, request in zip(due, requests, strict=True):
            await asyncio.sleep(start + at - time.perf_counter())
            group.create_task(_send(given, request, start + at, found, idle))
    for connection in idle:
        connection.close()
    return found


def _delivery(given: argparse.Namespace, number: int) -> bytes:
    guid = f"{given.name}-{number}"
    headers, body = rig.signed_push(given.repository, given.ref, f"{number + 1:040x}", guid)
    lines = [f"POST {given.path} HTTP/1.1".encode(), b"Host: deploy.example.com"]
    lines += [name + b": " + value for name, value in headers.items()]
    lines += [b"Content-Length: %d" % len(body), *([] if given.keep else [b"Connection: close"])]
    return b"\r\n".join((*lines, b"", body))


async def _send(
    given: argparse.Namespace, request: bytes, due: float, found: Deliveries, idle: list[Connection]
) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            idle[:] = [connection for connection in idle if connection.usable]
            connection = idle.pop() if idle else await Connection.open(given.port)
            status, body = await connection.exchange(request)
    except (Failed, OSError) as error:  # TimeoutError is an OSError
        found.answers[_words(error)] += 1
        return
    found.milliseconds.append(1000 * (time.perf_counter() - due))
    found.answers[f"{status} {_status(body)}".strip()] += 1
    if given.keep and connection.usable:
        idle.append(connection)
    else:
        connection.close()


def _status(body: bytes) -> str:
    """What an answer of ours says of a delivery; nothing for another's."""
    with contextlib.suppress(ValueError):
        return str(json.loads(body).get("status", ""))
    return ""


# --- requests


@dataclass
class Requests:
    """What became of the requests: times of the fast ones in ms, each failure, and how often each page was seen."""

    milliseconds: list[float] = field(default_factory=list)
    asked: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    """When, in seconds since the epoch, and what: of an answer other than 200 the status and the body."""
    pages: Counter[str] = field(default_factory=Counter)


async def ask_until_told(given: argparse.Namespace) -> Requests:
    """Keep asking, until standard input ends."""
    found = Requests()
    over = asyncio.Event()
    think = given.clients / given.rate
    async with asyncio.TaskGroup() as group:
        for number in range(given.clients):
            group.create_task(Client(given.port, "/", found, keep=number % 2 == 0).work(think, over))
        group.create_task(Client(given.port, "/slow", found, keep=False).work(think, over))  # its answers take longer
        await asyncio.to_thread(sys.stdin.read)
        over.set()
    return found


class Client:
    """Asks for one path, one request after the other, over a connection that it keeps, or a new one each time."""

    def __init__(self, port: int, path: str, found: Requests, *, keep: bool) -> None:
        lines = (f"GET {path} HTTP/1.1", f"Host: {HOST}:{port}", f"Connection: {'keep-alive' if keep else 'close'}")
        self._request = "\r\n".join((*lines, "", "")).encode()
        self._port = port
        self._slow = path == "/slow"
        self._found = found
        self._keep = keep
        self._connection: Connection | None = None

    async def work(self, think: float, over: asyncio.Event) -> None:
        """``think`` is how many seconds, on average, lie between the starts of two requests."""
        dice = random.Random()  # noqa: S311 - it decides about pauses
        while not over.is_set():
            started = time.perf_counter()
            await self._ask(started)
            pause = dice.uniform(0.5 * think, 1.5 * think)
            await asyncio.sleep(max(0.0, started + pause - time.perf_counter()))
        self._hang_up()

    async def _ask(self, started: float) -> None:
        self._found.asked += 1
        try:
            async with asyncio.timeout(LIMIT):
                page = await self._page()
        except (Failed, OSError) as error:
            self._found.failures.append((time.time(), _words(error)))
            self._hang_up()
            return
        self._found.pages[page] += 1
        if not self._slow:
            self._found.milliseconds.append(1000 * (time.perf_counter() - started))

    async def _page(self) -> str:
        """The body of a complete answer 200."""
        if self._connection is None or not self._connection.usable:
            self._hang_up()
            self._connection = await Connection.open(self._port)
        status, body = await self._connection.exchange(self._request)
        if status != 200:
            raise Failed(f"status {status}: {body[:LONGEST_BODY].decode('utf-8', 'replace')}")
        if not self._keep:
            self._hang_up()
        return body.decode()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {LIMIT:g} s"
    return str(error) if isinstance(error, Failed) else type(error).__name__


# --- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    deliveries = kinds.add_parser("deliveries")
    deliveries.add_argument("port", type=int)
    deliveries.add_argument("--path", default="/hooks/github")
    deliveries.add_argument("--rate", type=float, required=True)
    deliveries.add_argument("--seconds", type=float, required=True)
    deliveries.add_argument("--repository", required=True)
    deliveries.add_argument("--ref", required=True)
    deliveries.add_argument("--name", required=True, help="how the ids of the deliveries begin")
    deliveries.add_argument("--keep", action="store_true", help="keep connections")
    deliveries.add_argument("--seed", type=int, default=1)
    requests = kinds.add_parser("requests")
    requests.add_argument("port", type=int)
    requests.add_argument("--rate", type=float, required=True)
    requests.add_argument("--clients", type=int, required=True)
    given = parser.parse_args()
    found = asyncio.run(deliver(given) if given.kind == "deliveries" else ask_until_told(given))
    json.dump(vars(found), sys.stdout)


if __name__ == "__main__":
    main()
