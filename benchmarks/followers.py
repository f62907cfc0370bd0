"""Readers of server-sent events, as a process of its own: some read, some never do.

python -m benchmarks.followers PORT /api/v1/events --token TOKEN --reading 100 --idle 100

It says that it is ready when all have been answered, ends with its standard input, and prints one JSON object: how many
bytes those have read who read, the least and the most of them, and how many connections the server has closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys

ANSWER = 30.0
"""Seconds within which a reader has to be answered."""
SMALL = 4096
"""Bytes that the kernel keeps for one who does not read: so that the server meets him soon."""


class Follower:
    """One connection."""

    def __init__(self, given: argparse.Namespace, *, reads: bool) -> None:
        self._given = given
        self._reads = reads
        self.read = 0
        self.closed = False
        self.begun = asyncio.Event()

    async def follow(self) -> None:
        peer = socket.socket()
        peer.setblocking(False)
        if not self._reads:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(peer, ("127.0.0.1", self._given.port))
            await loop.sock_sendall(peer, self._request())
            head = await loop.sock_recv(peer, SMALL)
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a reader was answered {head[:60]!r}")
            self.begun.set()
            while self._reads and (data := await loop.sock_recv(peer, 65_536)):
                self.read += len(data)
            self.closed = self._reads
            await asyncio.Event().wait()
        finally:
            peer.close()

    def _request(self) -> bytes:
        given = self._given
        lines = (f"GET {given.path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {given.token}")
        return "\r\n".join((*lines, "", "")).encode()


async def follow_until_told(given: argparse.Namespace) -> dict[str, int]:
    """Connect all, say so, and keep on until standard input ends."""
    reading = [Follower(given, reads=True) for _ in range(given.reading)]
    followers = reading + [Follower(given, reads=False) for _ in range(given.idle)]
    work = [asyncio.create_task(each.follow()) for each in followers]
    async with asyncio.timeout(ANSWER):
        await asyncio.gather(*(each.begun.wait() for each in followers))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for each in work:
        each.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    counts = [each.read for each in reading] or [0]
    return {"least": min(counts), "most": max(counts), "closed": sum(each.closed for each in reading)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--token", default="")
    parser.add_argument("--reading", type=int, default=0, help="how many read")
    parser.add_argument("--idle", type=int, default=0, help="how many never read")
    json.dump(asyncio.run(follow_until_told(parser.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
