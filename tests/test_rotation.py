"""A secret is rotated as a person does it, by the installed program, and no delivery is refused meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.installed import Hookdeploy, until

AGAIN = "the configuration was read again"
HOOKDEPLOY = (sys.executable, "-c", "from twisted_hook.cli import main; main()")


def hookdeploy(server: Hookdeploy, *words: str) -> str:
    """What the command says, run where the configuration lies; it must be content."""
    done = subprocess.run(
        (*HOOKDEPLOY, *words), cwd=server.directory, env=server.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def reload(server: Hookdeploy) -> None:
    times = server.log.count(AGAIN)
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: server.log.count(AGAIN) > times, "reload")


def ping(server: Hookdeploy, *words: str) -> None:
    """A test delivery that is taken; the command fails if it is not."""
    hookdeploy(server, "send", "--event", "ping", *words)


def seen(server: Hookdeploy) -> list[str | None]:
    """When each of the hook's secrets has verified last."""
    [hook] = json.loads(hookdeploy(server, "secret", "list", "--json"))
    return [secret["last_verified_at"] for secret in hook["secrets"]]


def test_a_secret_is_rotated_without_a_gap_and_its_end_can_be_seen(release: Hookdeploy) -> None:
    release.start()
    release.first()
    ping(release)
    made = json.loads(hookdeploy(release, "secret", "new", "github", "--json"))
    ping(release)  # what it signs with is what the running server knows
    reload(release)
    first, second = seen(release)
    assert (first is not None, second) == (True, None)
    assert "never" in hookdeploy(release, "status")
    ping(release, "--secret-file", made["file"])
    assert "can be removed" in hookdeploy(release, "status")
    first, second = seen(release)
    assert first is not None
    assert second is not None
    assert first < second
    config = release.directory / "hookdeploy.toml"
    config.write_text(config.read_text().replace('{ file = "hook.secret" }, ', ""))
    reload(release)
    assert seen(release) == [second]
    ping(release)
    everything = release.log + hookdeploy(release, "status") + json.dumps(release.api("/hooks"))
    assert Path(made["file"]).read_text().strip() not in everything
