"""The keeper: a process of its own that holds every listening socket, so that none closes when hookdeploy dies.

A program of the standard library alone, run as ``python keeper.py <path>`` with a listening unix socket at that path as
its standard input: it serves one client at a time there, takes descriptors under names, and hands out copies. It never
reads from the sockets that it holds. It ends when it is told to, or when its client leaves and there is nothing to
hold; who starts it is its first client already, so that none waits for somebody who has died.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any

LONGEST = 65536


def main(path: str, inode: int) -> None:
    """Serve until there is nothing left to do; the inode is that of our door."""
    door = socket.socket(fileno=0)
    held: dict[str, int] = {}
    wanted = True
    while wanted:
        client, _ = door.accept()
        with client:
            wanted = serve(client, held)
    # pathlib would be most of what this process has in memory.
    if os.stat(path).st_ino == inode:  # noqa: PTH116 - else it was given up, and the name is that of the next one
        os.unlink(path)  # noqa: PTH108


def serve(client: socket.socket, held: dict[str, int]) -> bool:
    """Answer one client until it leaves; False if there is no more use for a keeper."""
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(client, LONGEST, 1)
            if not data:
                return bool(held)
            request = json.loads(data)
            if request["do"] == "end":
                return False
            answer(client, request, descriptors, held)
        # json raises RecursionError, which is no ValueError, on a thousand nested lists.
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return bool(held)


def answer(client: socket.socket, request: dict[str, Any], descriptors: list[int], held: dict[str, int]) -> None:
    names = request["names"]
    given: list[int] = []
    if request["do"] == "hold":
        [name], [listener] = names, descriptors
        let_go(held, [name])
        held[name] = listener
    elif request["do"] == "keep only":
        let_go(held, held.keys() - names)
    elif request["do"] == "take":
        given = [held[name] for name in names if name in held]
    socket.send_fds(client, [b"done"], given)


def let_go(held: dict[str, int], names: Iterable[str]) -> None:
    for name in list(names):
        if name in held:
            os.close(held.pop(name))


if __name__ == "__main__":
    main(sys.argv[1], int(os.environ["INODE"]))
