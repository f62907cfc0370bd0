"""A systemd of a test's own: the real one, as process 1 of name spaces of its own, with no units but the test's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.waiting import PATIENCE, until

SYSTEMD = Path("/lib/systemd/systemd")
BOOT = """
echo $$ > "$CGROUP/cgroup.procs"
exec unshare --pid --fork --kill-child=KILL --mount-proc --mount --cgroup sh -euc '
    mount --make-rprivate /
    umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs tmpfs /run
    mkdir -p /run/systemd/system
    mount --bind "$UNITS" /run/systemd/system
    touch "$CONSOLE"
    mount --bind "$CONSOLE" /dev/console
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=test.target --log-target=console'
"""


def reason_against() -> str:
    """Why there can be none on this machine; empty if there can."""
    if not SYSTEMD.exists() or shutil.which("nsenter") is None:
        return "systemd and util-linux are not installed"
    if os.geteuid() != 0 or _unified() is None:
        return "name spaces and cgroups need root, and a unified hierarchy"
    tried = subprocess.run(
        ("unshare", "--pid", "--fork", "--mount", "--cgroup", "mount", "-t", "tmpfs", "tmpfs", "/mnt"),
        capture_output=True,
        check=False,
    )
    return "" if tried.returncode == 0 else "name spaces are not to be had"


def _unified() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None


class PrivateSystemd:
    """Runs from ``start`` to ``end``; nothing of what it has started outlives it."""

    def __init__(self, directory: Path) -> None:
        self.units = directory / "units"
        self.units.mkdir()
        self.console = directory / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup = (_unified() or Path("/")) / f"hookdeploy-test-{os.getpid()}"
        (self.units / "test.target").write_text("[Unit]\nDefaultDependencies=no\n")
        # Nothing of the machine's own is to be started.
        (self.units / "network-online.target").symlink_to("/dev/null")

    def add(self, name: str, text: str) -> None:
        """A unit that needs nothing of the machine's."""
        (self.units / name).write_text(text)
        drop_in = self.units / f"{name}.d"
        drop_in.mkdir()
        (drop_in / "alone.conf").write_text("[Unit]\nDefaultDependencies=no\n")

    def start(self) -> None:
        self._cgroup.mkdir()
        given = {"CGROUP": str(self._cgroup), "UNITS": str(self.units), "CONSOLE": str(self.console)}
        self._process = subprocess.Popen(
            ("sh", "-c", BOOT), env={**os.environ, **given}, stdin=subprocess.DEVNULL, start_new_session=True
        )
        until(lambda: self._pid() and self.ask("is-active", "test.target") == "active", "a systemd")

    def _pid(self) -> int | None:
        """Of its process 1, as we see it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``systemctl`` with these."""
        return subprocess.run(
            ("nsenter", "-t", str(self._pid()), "-m", "-p", "-C", "systemctl", "--no-pager", *arguments),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def do(self, *arguments: str) -> None:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr

    def ask(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        return self.ask("show", unit, "--value", f"--property={name}")

    def end(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # unshare's end is that of its process 1, and of all in there
        self._process.wait(PATIENCE)
        self._process = None
        until(self._has_gone, "end of its processes")

    def _has_gone(self) -> bool:
        groups = [Path(place) for place, _, _ in os.walk(self._cgroup, topdown=False)]
        try:
            for group in groups:
                group.rmdir()
        except OSError:
            return False
        return not self._cgroup.exists()
