"""Real programs in front of a hookdeploy, and a forge that delivers over TLS."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import payloads
from tests.installed import is_listened_on
from tests.waiting import PATIENCE, until

GUIDE = (Path(__file__).parent.parent / "docs/tls-and-proxies.md").read_text()
ALL = os.environ.get("HOOKDEPLOY_ALL_TESTS") == "1"


def snippet(marker: str) -> str:
    """The block of the guide after this marker."""
    found = re.search(rf"<!-- {marker} -->\n+```\w*\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None, marker
    return found[1]


def program(name: str) -> str:
    """Where it is; the test is skipped without it, and fails where all are to be run."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None and not ALL:
        pytest.skip(f"{name} is not installed")
    assert found is not None, f"{name} is not installed"
    return found


@contextmanager
def running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """A program in the foreground, which listens on that port; its output is shown to a test that fails."""
    output = directory / f"{Path(command[0]).name}.log"
    with output.open("ab") as log:
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: is_listened_on(port) or process.poll() is not None, f"{command[0]} on its port")
        assert process.poll() is None, output.read_text()
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)
        print(output.read_text())


def beginning_with(directory: Path, lines: str) -> dict[str, str]:
    """The environment of a Python that executes these lines before anything else."""
    (directory / "sitecustomize.py").write_text(lines)
    return {"PYTHONPATH": str(directory)}


def deliver(
    url: str, guid: str, *, trust: ssl.SSLContext | None = None, source: str = "127.0.0.1", **replaced: bytes | None
) -> httpx.Response:
    """Post a signed push on a connection of its own, from one of the loopback addresses."""
    body = payloads.encoded(payloads.push(repository=payloads.repository("acme/web"), number=guid))
    headers = payloads.headers(body, **{"x_github_delivery": guid.encode(), **replaced})
    transport = httpx.HTTPTransport(verify=trust or True, local_address=source)
    with httpx.Client(transport=transport, timeout=PATIENCE, trust_env=False) as client:
        return client.post(url, content=body, headers=list(headers.items()))


class Stream:
    """A forge that delivers one signed push after the other over TLS, each on a new connection."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        self._url, self._trust = url, trust
        self.accepted: list[str] = []
        self.failed: list[object] = []
        self._over = threading.Event()

    @contextmanager
    def flowing(self, senders: int = 2) -> Iterator[None]:
        with ThreadPoolExecutor(senders) as forge:
            flows = [forge.submit(self._flow, number) for number in range(senders)]
            try:
                yield
            finally:
                self._over.set()
        for flow in flows:
            flow.result()

    def goes_on(self) -> None:
        """Wait until some more have been answered."""
        count = len(self.accepted) + len(self.failed)
        until(lambda: len(self.accepted) + len(self.failed) > count + 5, "answers")

    def _flow(self, sender: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            guid = f"{sender}-{number}"
            try:
                answer = deliver(self._url, guid, trust=self._trust)
            except (httpx.HTTPError, OSError) as error:
                self.failed.append(error)
            else:
                told: Any = answer.json()
                if answer.status_code == 202 and told["status"] == "accepted":
                    self.accepted.append(told["delivery"])
                else:
                    self.failed.append(told)
