"""What a shell completes, and that the guide tells of every command."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.test_floors import ROOT
from twisted_hook.cli import COMMANDS, hookdeploy


def completed(*words: str) -> list[str]:
    """What a bash would offer for the last of these words."""
    environ = {
        "_HOOKDEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("hookdeploy", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(hookdeploy, [], prog_name="hookdeploy", env=environ)
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.split()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOOKDEPLOY_STATE", "REPO_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_their_options_are_completed(place: Path) -> None:
    assert set(completed("de")) == {"demo", "deliveries", "deploy"}
    assert completed("log", "--fol") == ["--follow"]
    assert completed("completion", "z") == ["zsh"]


def test_the_names_of_apps_are_completed_from_the_file(place: Path) -> None:
    (place / "hookdeploy.toml").write_text("[apps.blog]\n[apps.docs]\nno_such_key = 1\n")
    for command in ("status", "history", "deploy", "rollback", "pin", "unpin", "pause", "resume"):
        assert completed(command, "b") == ["blog"]
    (place / "other.toml").write_text("[apps.shop]\n")
    assert completed("deploy", "--config", "other.toml", "") == ["shop"]


def test_where_nothing_can_be_told_nothing_is_said(place: Path) -> None:
    for words in (("status", ""), ("status", "--state", str(place), ""), ("status", "--config", "nowhere.toml", "")):
        assert completed(*words) == []
    (place / "hookdeploy.toml").write_text("[apps")
    assert completed("status", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_hookdeploy(shell: str) -> None:
    script = CliRunner().invoke(hookdeploy, ["completion", shell]).stdout
    assert f"_HOOKDEPLOY_COMPLETE={shell}_complete" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert CliRunner().invoke(hookdeploy, ["completion", "csh"]).exit_code == 2


def test_every_command_is_in_the_guide() -> None:
    guide = (ROOT / "docs/commands.md").read_text()
    told = set(re.findall(r"`hookdeploy ([a-z]+)", guide))
    assert set(COMMANDS) - told == set()
