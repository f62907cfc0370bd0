"""A secret is rotated as a person does it, by commands, and no delivery is refused meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.installed import Hookdeploy
from tests.waiting import until
from twisted_hook.cli import hookdeploy as command

AGAIN = "the configuration was read again"


def hookdeploy(*words: str) -> str:
    """What the command says; it must be content. In this process: a dozen of new ones would take most of the time."""
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def reload(server: Hookdeploy) -> None:
    times = server.log.count(AGAIN)
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: server.log.count(AGAIN) > times, "reload")


def ping(*words: str) -> None:
    """A test delivery that is taken; the command fails if it is not."""
    hookdeploy("send", "--event", "ping", *words)


def seen() -> list[str | None]:
    """When each of the hook's secrets has verified last."""
    [hook] = json.loads(hookdeploy("secret", "list", "--json"))
    return [secret["last_verified_at"] for secret in hook["secrets"]]


def test_a_secret_is_rotated_without_a_gap_and_its_end_can_be_seen(
    release: Hookdeploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(release.directory)  # where a person finds the configuration
    release.start()
    release.first()
    ping()
    made = json.loads(hookdeploy("secret", "new", "github", "--json"))
    ping()  # what it signs with is what the running server knows
    reload(release)
    first, second = seen()
    assert (first is not None, second) == (True, None)
    assert "never" in hookdeploy("status")
    ping("--secret-file", made["file"])
    assert "can be removed" in hookdeploy("status")
    first, second = seen()
    assert first is not None
    assert second is not None
    assert first < second
    config = release.directory / "hookdeploy.toml"
    config.write_text(config.read_text().replace('{ file = "hook.secret" }, ', ""))
    reload(release)
    assert seen() == [second]
    ping()
    everything = release.log + hookdeploy("status") + json.dumps(release.api("/hooks"))
    assert Path(made["file"]).read_text().strip() not in everything
