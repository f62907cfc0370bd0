"""Deliveries as fast as they are answered, over connections that are kept where the server keeps them.

    python -m benchmarks.barrage PORT --connections 16 --requests 5000 --seconds 3 ...

They are signed, or lack in the one thing that they are to be refused for. Each connection sends its next delivery
when it has the answer to the last (closed loop), until there is none left or the time is over; whatever is sent is
waited for. All are made before the clock starts. One process, raw sockets and epoll, because it shares two cores with
what it measures. It prints one JSON object and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from benchmarks import rig
from tests import payloads

PATIENCE = 10.0
"""Seconds without any answer after which those that are missing count as none."""
SIGNATURE = b"x-hub-signature-256"
KINDS = ("genuine", "unsigned", "wrong", "unknown")
"""Signed, without a signature, with the signature of another secret, and to a path that is no hook's."""
_BIND_ADDRESS_NO_PORT = 24
"""``IP_BIND_ADDRESS_NO_PORT`` of Linux: the port is chosen at the connect, so that each address has all of them."""


@dataclass
class Found:
    """What became of the deliveries."""

    milliseconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """How many deliveries got which status; what got none is ``no answer``."""
    sent: int = 0
    seconds: float = 0.0
    """From the first delivery to the last answer."""
    cpu: float = 0.0
    """Seconds of processor time that this process has used meanwhile."""


class Sender:
    """One connection; it is made anew where the server ends it after an answer, as gunicorn's sync workers do."""

    def __init__(self, port: int, sources: Iterator[str]) -> None:
        self._port = port
        self._sources = sources
        self._got = b""
        self.open()

    def open(self) -> None:
        self.sent = 0
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((next(self._sources), 0))
        self.socket.connect(("127.0.0.1", self._port))

    def send(self, request: bytes) -> None:
        self.sent += 1
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bool] | None:
        """The status of an answer that is here in full, and whether the connection lasts. Raises ``OSError``."""
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("closed without an answer")
        self._got += more
        head, end, body = self._got.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if not end or len(body) < length:
            return None
        self._got = b""
        return int(head[9:12]), b"connection: close" not in lines


class Barrage:
    """All the connections, and what is still to be sent."""

    def __init__(
        self, port: int, requests: Iterator[bytes], seconds: float, *, most: int | None, sources: Iterator[str]
    ) -> None:
        """``most`` is how many requests a connection lives for, and each connection comes from the next source."""
        self._port = port
        self._requests = requests
        self._seconds = seconds
        self._most = most
        self._sources = sources
        self._poll = select.epoll()
        self._senders: dict[int, Sender] = {}
        self._over = 0.0
        self.found = Found()

    def run(self, connections: int) -> Found:
        ready = [Sender(self._port, self._sources) for _ in range(connections)]
        used, began = time.process_time(), time.perf_counter()
        self._over = began + self._seconds
        for sender in ready:
            self._begin(sender)
        while self._senders:
            events = self._poll.poll(PATIENCE)
            if not events:
                self.found.answers["no answer"] += len(self._senders)
                break
            for descriptor, _ in events:
                self._read(descriptor)
        self.found.seconds = time.perf_counter() - began
        self.found.cpu = time.process_time() - used
        return self.found

    def _begin(self, sender: Sender) -> None:
        """Send the next delivery over this connection, if there is one and still time."""
        request = next(self._requests, None) if time.perf_counter() < self._over else None
        if request is None:
            sender.socket.close()
            return
        self._senders[sender.socket.fileno()] = sender
        self._poll.register(sender.socket, select.EPOLLIN)
        self.found.sent += 1
        sender.send(request)

    def _read(self, descriptor: int) -> None:
        sender = self._senders[descriptor]
        try:
            answer = sender.receive()
        except OSError:
            answer = (0, False)
        if answer is None:
            return
        status, lasts = answer
        self.found.milliseconds.append(1000 * (time.perf_counter() - sender.began))
        self.found.answers[str(status) if status else "no answer"] += 1
        self._poll.unregister(descriptor)
        del self._senders[descriptor]
        if not lasts or sender.sent == self._most:
            sender.socket.close()
            sender.open()
        self._begin(sender)


def delivery(given: argparse.Namespace, number: int) -> bytes:
    """A whole request: a push of a commit of its own, with an id of its own."""
    after, guid = f"{number + 1:040x}", f"{given.name}-{number}"
    headers, body = rig.signed_push(given.repository, given.ref, after, guid, commits=given.commits)
    if given.kind == "wrong":
        headers[SIGNATURE] = payloads.sha256_signature(body, b"another secret")
    elif given.kind == "unsigned":
        del headers[SIGNATURE]
    path = f"{given.path}/unknown" if given.kind == "unknown" else given.path
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: deploy.example.com"]
    lines += [name + b": " + value for name, value in headers.items()]
    return b"\r\n".join((*lines, b"Content-Length: %d" % len(body), b"", body))


def addresses(number: int) -> Iterator[str]:
    """So many addresses of this machine, again and again; one is the address that everybody has."""
    for each in count():
        yield "127.0.0.1" if number == 1 else f"127.1.{each % number // 250}.{each % number % 250 + 1}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--path", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True, help="the most that are sent")
    parser.add_argument("--seconds", type=float, required=True, help="after this, nothing is sent any more")
    parser.add_argument("--repository", required=True)
    parser.add_argument("--name", required=True, help="how the ids of the deliveries begin")
    parser.add_argument("--ref", default=rig.BRANCH)
    parser.add_argument("--kind", choices=KINDS, default="genuine")
    parser.add_argument("--commits", type=int, default=10, help="how many each tells of: 10 are 7 kB, 400 are 256 kB")
    parser.add_argument("--most", type=int, help="requests after which a connection is made anew")
    parser.add_argument("--sources", type=int, default=1, help="addresses from which the connections come, in turn")
    given = parser.parse_args()
    requests = iter([delivery(given, number) for number in range(given.requests)])
    sources = addresses(given.sources)
    found = Barrage(given.port, requests, given.seconds, most=given.most, sources=sources).run(given.connections)
    json.dump(vars(found), sys.stdout)


if __name__ == "__main__":
    main()
