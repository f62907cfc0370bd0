"""What ``hookdeploy init`` writes: the text of a first hookdeploy.toml and of a systemd unit.

Pure: answers go in, text comes out; nothing is asked, looked up or written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twisted_hook import addresses

SECRET_FILE = "hook.secret"  # noqa: S105 - the name of a file
HOOK_PATH = "/hooks/github"
_STOP_SECONDS = 90  # above the default drain of 30 s, with room for a step to be ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the user wants. Exactly one of ``repository`` and ``in_place`` is set."""

    app: str
    repository: str | None
    in_place: Path | None
    branch: str | None
    wsgi: str | None
    bind: str
    listen: str
    public_url: str | None
    state: Path

    @property
    def payload_url(self) -> str:
        """Where GitHub is to deliver, as far as it can be told."""
        if self.public_url:
            return self.public_url + HOOK_PATH
        address = addresses.endpoint_address(self.listen)
        return f"http://<this server>{f':{address[1]}' if address else ''}{HOOK_PATH}"


def toml_string(text: str) -> str:
    """A TOML basic string: as in JSON, but for U+007F, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def configuration(answers: Answers) -> str:
    """A hookdeploy.toml that says what a newcomer needs to know about it."""
    return "\n".join([*_general_part(answers), *_app_part(answers), *_server_part(answers)]) + "\n"


def _setting(key: str, value: str | None, example: str = "") -> str:
    return f"{key} = {toml_string(value)}" if value else f"# {key} = {toml_string(example)}"


def _general_part(answers: Answers) -> Iterator[str]:
    yield "# hookdeploy: somebody pushes, and the site is new. hookdeploy check reads this file and names every fault."
    yield ""
    yield "# The journal, the releases and the logs; made with mode 0700."
    yield _setting("state", str(answers.state))
    yield ""
    yield "[server]"
    yield "# Where the forge delivers, as Twisted endpoint strings. Put a proxy with TLS in front, or use tls: itself."
    yield f"listen = [{toml_string(answers.listen)}]"
    yield _setting("public_url", answers.public_url, "https://deploy.example.com")
    yield ""
    yield f"[hooks.github]  # POST {HOOK_PATH}"
    yield "# Several secrets may be valid at a time, so that a new one can follow the old one without a gap."
    yield f"secrets = [{{ file = {toml_string(SECRET_FILE)} }}]"
    yield ""


def _app_part(answers: Answers) -> Iterator[str]:
    yield f"[apps.{answers.app}]"
    yield 'hook = "github"'
    if answers.in_place is not None:
        yield "# This clone itself is kept up to date: a fetch from its origin, and a rebase."
        yield 'mode = "in-place"'
        yield _setting("path", str(answers.in_place))
    else:
        yield _setting("repository", answers.repository)
    if answers.branch is None:
        yield "# Without a branch it is the remote's default branch."
    yield _setting("branch", answers.branch, "main")
    yield ""
    yield '# Steps run without a shell. "auto" installs what uv.lock, requirements.txt or pyproject.toml ask for.'
    yield 'build = "auto"'
    yield "# Steps that run once in a deployment, when it is built and before the old release goes."
    yield '# migrate = ["python manage.py migrate --no-input"]'
    if answers.in_place is None:
        yield "# What all releases have in common, such as uploads."
        yield '# shared = ["media/"]'
    yield ""


def _server_part(answers: Answers) -> Iterator[str]:
    if answers.wsgi is None:
        yield "# Without wsgi there is no server: the code is fetched and built only."
    yield _setting("wsgi", answers.wsgi, "wsgi:application")
    yield "# hookdeploy owns this socket and hands it from one release to the next, so no request is lost."
    yield _setting("bind", answers.bind)
    yield "workers = 2"
    yield "# Asked of a new release before it gets any traffic, and while it proves itself beside the old one."
    yield _setting("health", None, "/healthz")
    yield "# KEY=value lines for the steps and the server, read again at every deployment."
    yield _setting("env_file", None, f"{answers.app}.env")


def unit(answers: Answers, *, config: Path, twistd: Path, user: str) -> str:
    """A systemd unit that keeps the server running; all paths are absolute."""
    start = [str(twistd), "-n", "--pidfile=", "hookdeploy", "--config", str(config)]
    lines = [
        "[Unit]",
        f"Description=hookdeploy for {answers.app}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=simple",
        f"User={user}",
        *(
            ["# Better a user of its own: whoever may push to the branch runs code as this user."]
            if user == "root"
            else []
        ),
        f"WorkingDirectory={_unit_path(config.parent)}",
        f"ExecStart={' '.join(_unit_word(word) for word in start)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "RestartSec=1",
        "KillMode=process",
        "# At a restart the apps serve on (systemd 244 and later).",
        "RestartKillSignal=SIGQUIT",
        f"TimeoutStopSec={_STOP_SECONDS}",
        *_state_lines(answers.state),
        "",
        *_hardening(answers),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _state_lines(state: Path) -> Iterator[str]:
    """systemd makes the directory where only root may."""
    if state.parent == Path("/var/lib"):
        yield f"StateDirectory={_unit_path(Path(state.name))}"
        yield "StateDirectoryMode=0700"


def _hardening(answers: Answers) -> Iterator[str]:
    """What neither git, nor a build, nor gunicorn needs is taken away."""
    yield "NoNewPrivileges=true"
    yield "ProtectSystem=full"
    for path in filter(None, (answers.state, answers.in_place)):
        if path.is_relative_to("/etc") or path.is_relative_to("/usr"):
            yield f"ReadWritePaths=-{_unit_path(path)}"
    for name in ("KernelTunables", "KernelModules", "KernelLogs", "ControlGroups"):
        yield f"Protect{name}=true"
    yield "RestrictRealtime=true"
    yield "LockPersonality=true"
    listening = (addresses.endpoint_address(answers.listen), addresses.bound_address(answers.bind))
    if any(address and 0 < address[1] < 1024 for address in listening):
        yield "AmbientCapabilities=CAP_NET_BIND_SERVICE"


def _unit_path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _unit_word(word: str) -> str:
    """A word of a command line as systemd reads it (systemd.service(5), "Command lines")."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if escaped == word and not any(letter in word for letter in " \t';#") else f'"{escaped}"'
