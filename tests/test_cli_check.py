"""``hookdeploy check``, and the command that it belongs to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from twisted_hook import __version__
from twisted_hook.cli import COMMANDS, hookdeploy

SECRET = "canary-0123456789abcdef"
GOOD = """
state = "state"
[server]
public_url = "https://deploy.example.com"
[hooks.github]
secrets = [{ file = "hook.secret" }]
[apps.blog]
hook = "github"
repository = "https://github.com/acme/blog.git"
branch = "main"
wsgi = "wsgi:application"
env = { API_TOKEN = "canary-of-the-app" }
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a good configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hook.secret").touch(mode=0o600)
    (tmp_path / "hook.secret").write_text(SECRET)
    (tmp_path / "hookdeploy.toml").touch(mode=0o600)
    (tmp_path / "hookdeploy.toml").write_text(GOOD)
    return tmp_path


def check(*arguments: str, **environ: str) -> Result:
    result = CliRunner().invoke(
        hookdeploy, ["check", *arguments], env={"GITHUB_SECRET": None, "REPO_PATH": None, **environ}
    )
    assert "canary" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_a_good_file_is_summed_up(place: Path) -> None:
    result = check("hookdeploy.toml")
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in (
        "hookdeploy.toml is good",
        f"{place}/state",
        "POST https://deploy.example.com/hooks/github",
        "blog: https://github.com/acme/blog.git, branch main → wsgi:application on 127.0.0.1:8080, 2 workers",
    ):
        assert words in result.stdout


def test_a_command_is_shown_as_one_would_type_it(place: Path) -> None:
    (place / "hookdeploy.toml").write_text(
        GOOD.replace('wsgi = "wsgi:application"', 'command = ["uvicorn", "--fd", "{fd}", "app:app"]\nbind = "[::1]:80"')
    )
    assert "branch main → uvicorn --fd '{fd}' app:app on [::1]:80" in check().stdout


def test_tags_looks_and_tokens_are_shown_as_they_are_understood(place: Path) -> None:
    (place / "github.token").touch(mode=0o600)
    (place / "github.token").write_text("canary-token")
    text = GOOD.replace('branch = "main"', 'tag = "v*"\npoll = "1m"')
    (place / "hookdeploy.toml").write_text(text.replace("[apps", 'token = { file = "github.token" }\n[apps'))
    shown = check().stdout
    assert "the newest tag v* → wsgi:application" in shown
    assert "; looks at the remote every 60 s" in shown
    assert "(github) deploys blog; what fails to arrive is asked for again" in shown
    (place / "hookdeploy.toml").write_text(f'{GOOD}poll = "0"\n')
    assert "2 workers; waits for pushes only" in check().stdout
    (place / "github.token").chmod(0o644)
    (place / "hookdeploy.toml").write_text(GOOD.replace("[apps", 'token = { file = "github.token" }\n[apps'))
    assert "hookdeploy.toml: hooks.github.token: " in check().stderr


def test_who_may_deliver_and_which_paths_count_are_shown(place: Path) -> None:
    text = GOOD.replace('branch = "main"', 'branch = "main"\npaths = ["blog/**", "!*.md"]')
    (place / "hookdeploy.toml").write_text(text.replace("[apps", 'only_from = ["github", "10.0.0.0/8"]\n[apps'))
    shown = check().stdout
    assert "(github) only from github, 10.0.0.0/8 deploys blog" in shown
    assert "branch main, only what changes blog/**, !*.md → wsgi:application" in shown


def test_the_file_in_the_current_directory_is_the_default(place: Path) -> None:
    assert check().stdout == check(str(place / "hookdeploy.toml")).stdout


def test_without_a_public_address_the_path_and_the_endpoint_are_shown(place: Path) -> None:
    (place / "hookdeploy.toml").write_text(GOOD.replace('public_url = "https://deploy.example.com"', ""))
    assert "POST /hooks/github on tcp:8000" in check().stdout


def test_faults_are_printed_one_a_line_and_the_exit_is_1(place: Path) -> None:
    """P93."""
    secret = place / "hook.secret"
    secret.chmod(0o644)
    (place / "hookdeploy.toml").write_text(f'{GOOD}workers = "two"\nworker = 2\n')
    result = check("hookdeploy.toml")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        'hookdeploy.toml: apps.blog.workers: must be an integer, not "two"',
        "hookdeploy.toml: apps.blog.worker: unknown key; did you mean workers?",
        f"hookdeploy.toml: hooks.github.secrets[0]: {secret} can be read by group or others: chmod 600 {secret}",
    ]


def test_checking_changes_nothing(place: Path) -> None:
    before = sorted(place.iterdir())
    check()
    assert sorted(place.iterdir()) == before


def test_warnings_are_shown_and_are_no_failure(place: Path) -> None:
    """T07."""
    (place / "hook.secret").write_text("short")
    result = check()
    assert result.exit_code == 0
    assert "warning: hooks.github.secrets[0]: the secret is only 5 bytes long" in result.stderr


def test_json_tells_a_program_the_same(place: Path) -> None:
    assert json.loads(check("--json").stdout) == {"ok": True, "faults": [], "warnings": []}
    (place / "hookdeploy.toml").write_text(f'{GOOD}workers = "two"\n')
    result = check("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "faults": [{"path": "apps.blog.workers", "message": 'must be an integer, not "two"'}],
        "warnings": [],
    }


def test_a_file_that_is_not_there_is_a_failure_and_no_traceback(place: Path) -> None:
    result = check("nowhere.toml")
    assert (result.exit_code, result.stderr) == (1, "nowhere.toml: cannot be read: No such file or directory\n")


def test_without_a_file_the_environment_is_read(place: Path) -> None:
    """P09."""
    (place / "hookdeploy.toml").unlink()
    result = check(GITHUB_SECRET="", REPO_PATH=str(place))
    assert result.exit_code == 1
    assert "environment: GITHUB_SECRET: is empty" in result.stderr
    assert f"environment: REPO_PATH: {place} is not a git clone" in result.stderr
    assert "hookdeploy init" in result.stderr


def test_a_good_environment_is_summed_up(place: Path) -> None:
    (place / "hookdeploy.toml").unlink()
    clone = place / "blog"
    subprocess.run(["git", "init", "-q", "-b", "trunk", clone], check=True)
    subprocess.run(
        ["git", "-C", clone, "remote", "add", "origin", "https://u:canary-token@h/acme/blog.git"], check=True
    )
    result = check(GITHUB_SECRET=SECRET, REPO_PATH=str(clone))
    assert result.exit_code == 0
    assert "POST /github on tcp:8000" in result.stdout
    assert f"{clone} in place, branch trunk → no server" in result.stdout


def test_escape_sequences_of_the_file_do_not_reach_the_terminal(place: Path) -> None:
    """T27."""
    (place / "hookdeploy.toml").write_text(f'{GOOD}"\\u001b[31m" = "\\u009b"\n')
    result = check()
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "\x9b" not in result.output


def test_wrong_usage_ends_with_2(place: Path) -> None:
    assert check("a", "b").exit_code == 2
    result = CliRunner().invoke(hookdeploy, ["chek"])
    assert result.exit_code == 2
    assert "Did you mean 'check'?" in result.stderr


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(hookdeploy, ["--version"]).stdout == f"hookdeploy, version {__version__}\n"


def test_every_command_is_there_and_in_the_help() -> None:
    assert list(COMMANDS)
    for name, (_, line) in COMMANDS.items():
        assert CliRunner().invoke(hookdeploy, [name, "--help"]).exit_code == 0
        assert line in CliRunner().invoke(hookdeploy, ["--help"], terminal_width=200).stdout


LOADED = """
import sys
from twisted_hook.cli import main
for words in sys.argv[1:]:
    sys.argv = ["hookdeploy", *words.split()]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0
print(sorted(sys.modules), file=sys.stderr)
"""


QUICK = ("status", "history", "deliveries", "log", "why", "open", "deploy", "completion")


@pytest.mark.parametrize(
    ("typed", "unloaded"),
    [
        (
            ["--help", *(f"{name} --help" for name in QUICK)],
            ["pydantic", "twisted.internet", "twisted_hook.config", "httpx", "rich", "msgspec"],
        ),
        (["check"], ["twisted", "klein", "werkzeug", "httpx"]),
        (["init --help"], ["twisted.internet.reactor", "httpx"]),
    ],
)
def test_a_command_loads_only_what_it_needs(place: Path, typed: list[str], unloaded: list[str]) -> None:
    command = [sys.executable, "-c", LOADED, *typed]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place, env=dict(os.environ))
    assert result.stdout
    for module in unloaded:
        assert f"'{module}'" not in result.stderr
