"""A real ssh server on 127.0.0.1 with keys of its own, to which one key may log in, for as long as a test needs it."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.installed import free_port, is_listened_on
from tests.waiting import until

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


def needs_sshd() -> None:
    """Skips, or fails where every test is to run."""
    if SSHD is None:
        if os.environ.get("HOOKDEPLOY_ALL_TESTS"):
            pytest.fail("sshd is not installed")
        pytest.skip("sshd is not installed")


@dataclass(frozen=True)
class Sshd:
    """One that runs."""

    port: int
    directory: Path
    key: Path
    """The private key that may log in."""

    def url(self, path: Path) -> str:
        """The address of a repository on this machine."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    @property
    def known_hosts(self) -> str:
        """The line that lets a client know it."""
        public = (self.directory / "host_key.pub").read_text()
        return f"[127.0.0.1]:{self.port} {public}"


def new_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", path], check=True)
    return path


@contextmanager
def serving(directory: Path) -> Iterator[Sshd]:
    """Runs it; what it says is in ``<directory>/log``."""
    needs_sshd()
    directory.mkdir()
    new_key(directory / "host_key")
    key = new_key(directory / "key")
    shutil.copyfile(directory / "key.pub", directory / "authorized_keys")
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": directory / "host_key",
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (directory / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself in, on Debian
    command = [str(SSHD), "-D", "-E", str(directory / "log"), "-f", str(directory / "config")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until(lambda: is_listened_on(port) or process.poll() is not None, "sshd")
        assert process.poll() is None, (directory / "log").read_text()
        yield Sshd(port, directory, key)
    finally:
        process.terminate()
        process.wait()
