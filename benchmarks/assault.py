"""Attacks on a door, as a process of its own that takes what the others leave of the processor.

    python -m benchmarks.assault PORT form unsigned --seconds 3

All that is sent is made before it says that it is ready; it begins when it is told a line. It prints one JSON object,
how often it got which answer, and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter

from tests import payloads

PATIENCE = 120.0
"""Seconds after which an answer counts as none."""
HELD = 15.0
"""Seconds for which a slow connection goes on."""
PAUSE = 0.2
"""Seconds between two goes, so that many of them are no flood as well."""
FORM, MULTIPART, JSON = b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=b", b"application/json"
LARGE = 25_000_000
SLOW = 400
SLOW_PER_SOURCE = 40
"""Fewer than one address may have: they are to get in."""
PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
PUSH = payloads.encoded(payloads.push(repository=payloads.repository("acme/busy")))
BODIES = {
    "form": (FORM, lambda: b"a&" * 12_000_000),
    "multipart": (
        MULTIPART,
        lambda: b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 200_000 + b"--b--",
    ),
    "keys": (JSON, lambda: _with(b",".join(b'"k%d":0' % number for number in range(1_000_000)))),
    "deep": (JSON, lambda: _with(b'"deep":' + b"[" * 100_000 + b"]" * 100_000)),
    "large": (JSON, lambda: _with(b'"large":"' + b"x" * LARGE + b'"')),
    "slow": (JSON, lambda: _with(b'"large":"' + b"x" * 10_000 + b'"')),
}
"""The media type, and what makes the body."""
AT_ONCE = {"large": 20, "slow": SLOW}


def _with(members: bytes) -> bytes:
    """A push with some members more."""
    return PUSH[:-1] + b"," + members + b"}"


def request(what: str, signature: str) -> bytes:
    """The whole of one; every go sends the same bytes."""
    media_type, made = BODIES[what]
    body = made()
    headers = payloads.headers(b"", content_type=media_type, x_hub_signature=None, x_hub_signature_256=None)
    headers[b"x-github-delivery"] = f"{what}-{signature}".encode()
    if signature != "unsigned":
        secret = payloads.SECRET if signature == "signed" else b"another secret"
        headers[b"x-hub-signature-256"] = payloads.sha256_signature(body, secret)
    lines = [b"POST /hooks/github HTTP/1.1", b"Host: deploy.example.com"]
    lines += [name + b": " + value for name, value in headers.items()]
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


class Assault:
    """Goes at the door, again and again."""

    def __init__(self, port: int, what: str, signature: str) -> None:
        self._port = port
        self._slow = what == "slow"
        self._at_once = AT_ONCE.get(what, 1)
        self._request = memoryview(request(what, signature))
        self.answers: Counter[str] = Counter()

    async def work(self, seconds: float) -> None:
        """Until the time is over; the last go is waited for."""
        over = time.perf_counter() + seconds
        while True:
            async with asyncio.TaskGroup() as group:
                for number in range(self._at_once):
                    group.create_task(
                        self._go(f"127.0.1.{1 + number // SLOW_PER_SOURCE}" if self._slow else "127.0.0.1")
                    )
            if time.perf_counter() > over:
                return
            await asyncio.sleep(PAUSE)

    async def _go(self, source: str) -> None:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.bind((source, 0))
            try:
                async with asyncio.timeout(HELD if self._slow else PATIENCE):
                    answer = (await self._exchange(connection))[9:12].decode() or "closed"
            except TimeoutError:
                answer = "no answer"
            except OSError as error:
                answer = type(error).__name__
            self.answers[answer] += 1

    async def _exchange(self, connection: socket.socket) -> bytes:
        """Send it, and listen meanwhile: a door may answer before it has all."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self._port))
        sending = asyncio.create_task(self._send(connection))
        try:
            return await loop.sock_recv(connection, 65536)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if not self._slow:
            await loop.sock_sendall(connection, self._request)
            return
        head = bytes(self._request).index(b"\r\n\r\n") + 4
        await loop.sock_sendall(connection, self._request[:head])
        for place in range(head, len(self._request)):
            await asyncio.sleep(1)
            await loop.sock_sendall(connection, self._request[place : place + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("what", choices=BODIES)
    parser.add_argument("signature", choices=("unsigned", "wrong", "signed"))
    parser.add_argument("--seconds", type=float, required=True, help="after this, no new go is begun")
    given = parser.parse_args()
    os.nice(19)
    assault = Assault(given.port, given.what, given.signature)
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(assault.work(given.seconds))
    json.dump(assault.answers, sys.stdout)


if __name__ == "__main__":
    main()
