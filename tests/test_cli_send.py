"""``hookdeploy send``: what it sends, to whom, and what it says about the answer."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests import payloads
from tests.certs import Authority
from tests.installed import Origin, free_port, git
from twisted_hook.cli.send import send
from twisted_hook.forges import github
from twisted_hook.model import Push

SECRET = b"0123456789abcdef-send"
ACCEPTED = {"status": "accepted", "delivery": "d1", "deployments": ["x1", "x2"]}


@dataclass
class Receiver:
    """A server that takes what comes and answers as it is told."""

    answer: object = field(default_factory=lambda: ACCEPTED)
    code: int = 202
    requests: list[tuple[str, list[tuple[str, str]], bytes]] = field(default_factory=list)

    def headers(self, name: bytes) -> list[bytes]:
        """The headers of the last request, as a forge reads them."""
        return [value.encode() for key, value in self.requests[-1][1] if key.lower().encode() == name]

    @property
    def path(self) -> str:
        return self.requests[-1][0]

    @property
    def body(self) -> bytes:
        return self.requests[-1][2]

    @property
    def push(self) -> Push:
        """What the last request says, once the forge's own rules have found it genuine."""
        github.screen(self.headers, allow_sha1=False)
        github.verify(self.headers, self.body, secrets=(SECRET,), allow_sha1=False, now=0.0)
        [push] = github.read(self.headers, self.body).pushes
        return push


def serving(receiver: Receiver, server: type[socketserver.BaseServer], address: Any) -> Iterator[Any]:
    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((self.path, self.headers.items(), body))
            told = receiver.answer if isinstance(receiver.answer, bytes) else payloads.encoded(receiver.answer)
            self.send_response(receiver.code)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing to say."""

        def address_string(self) -> str:
            return ""

    with server(address, Answering) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def port(receiver: Receiver) -> Iterator[int]:
    """The port on which the receiver listens."""
    for server in serving(receiver, socketserver.TCPServer, ("127.0.0.1", 0)):
        yield server.server_address[1]


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


APP = """
[apps.{name}]
hook = "{hook}"
repository = "{origin}"
names = ["acme/{name}"]
{more}
"""


def configured(
    directory: Path, listen: str, *apps: str, hooks: tuple[str, ...] = ("github",), server: str = ""
) -> Path:
    """A configuration with these tables of apps; gives its path."""
    secret = directory / "hook.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(SECRET + b"\n")
    tables = [f'[hooks.{name}]\nsecrets = [{{ file = "hook.secret" }}]\n' for name in hooks]
    head = f'state = "state"\n[server]\nlisten = ["{listen}"]\n{server}\n'
    path = directory / "hookdeploy.toml"
    path.write_text("\n".join([head, *tables, *apps]))
    return path


def app(name: str, origin: Path | str, *, hook: str = "github", more: str = "") -> str:
    return APP.format(name=name, hook=hook, origin=origin, more=more)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(send, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path, port: int, origin: Origin) -> Path:
    """One hook and one app, whose server is the receiver."""
    return configured(tmp_path, f"tcp:{port}:interface=127.0.0.1", app("web", origin.path))


# --- what is sent


def test_a_push_is_genuine_to_the_rules_of_the_forge_and_tells_of_the_remotes_tip(
    config: Path, receiver: Receiver, origin: Origin
) -> None:
    tip = origin.push({"a": "1"})
    result = run("--config", config)
    assert result.exit_code == 0, result.output
    assert receiver.path == "/hooks/github"
    assert receiver.push == Push("acme/web", "refs/heads/main", tip, "main")
    assert receiver.headers(b"x-github-event") == [b"push"]


def test_a_payload_has_what_a_receiver_may_look_for_in_one_of_github(config: Path, receiver: Receiver) -> None:
    run("--config", config)
    payload, real = json.loads(receiver.body), payloads.push()
    assert set(real) - set(payload) == {"compare"}
    for name in ("id", "name", "full_name", "default_branch", "clone_url"):
        assert type(payload["repository"][name]) is type(real["repository"][name])
    assert set(payload["head_commit"]) <= set(payloads.commit())


def test_a_ping_is_genuine_and_asks_for_nothing(config: Path, receiver: Receiver) -> None:
    receiver.answer = {"status": "ignored", "reason": "ping"}
    result = run("--config", config, "--event", "ping")
    assert result.exit_code == 0
    assert result.output == "202 ignored: ping; nothing is deployed\n"
    github.verify(receiver.headers, receiver.body, secrets=(SECRET,), allow_sha1=False, now=0.0)
    assert github.read(receiver.headers, receiver.body).reason == "ping"


def test_no_two_deliveries_are_alike_unless_the_id_says_so(config: Path, receiver: Receiver) -> None:
    """A server knows a delivery again by its id and by its body."""
    run("--config", config, "--after", "a" * 40)
    first = receiver.body, receiver.headers(b"x-github-delivery")
    run("--config", config, "--after", "a" * 40)
    second = receiver.body, receiver.headers(b"x-github-delivery")
    assert first[0] != second[0]
    assert first[1] != second[1]
    run("--config", config, "--delivery", "72d3162e")
    assert receiver.headers(b"x-github-delivery") == [b"72d3162e"]


def test_options_say_what_was_pushed(config: Path, receiver: Receiver) -> None:
    run("--config", config, "--branch", "dev", "--after", "b" * 40, "--repository", "Acme/Web")
    assert receiver.push == Push("Acme/Web", "refs/heads/dev", "b" * 40, "main")
    run("--config", config, "--ref", "refs/tags/v1")
    assert receiver.push.ref == "refs/tags/v1"


def test_a_commit_is_made_up_where_the_remote_cannot_be_asked(tmp_path: Path, port: int, receiver: Receiver) -> None:
    config = configured(tmp_path, f"tcp:{port}", app("web", "/nowhere/acme/web.git"))
    assert run("--config", config).exit_code == 0
    assert len(receiver.push.after or "") == 40


def test_the_default_branch_is_the_remotes_where_none_is_configured(
    config: Path, receiver: Receiver, origin: Origin
) -> None:
    tip = origin.push({"a": "1"})
    git(origin.path, "branch", "--move", "main", "trunk")
    run("--config", config)
    assert receiver.push == Push("acme/web", "refs/heads/trunk", tip, "trunk")


# --- where to


def test_it_finds_the_configuration_in_the_directory_where_one_stands(
    config: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config.parent)
    assert run().exit_code == 0
    assert receiver.push.repository == "acme/web"


def test_it_finds_a_server_that_is_configured_by_the_environment(
    tmp_path: Path, port: int, receiver: Receiver, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    tip = origin.push({"a": "1"})
    git(tmp_path, "clone", "--quiet", str(origin.path), "clone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name, value in {
        "GITHUB_SECRET": SECRET.decode(),
        "REPO_PATH": str(tmp_path / "clone"),
        "HOOK_LISTEN": f"tcp:{port}:interface=127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run().exit_code == 0
    assert receiver.path == "/github"
    assert receiver.push == Push(f"{tmp_path.name}/origin", "refs/heads/main", tip, "main")


def test_it_speaks_to_a_unix_socket(tmp_path: Path, receiver: Receiver, origin: Origin) -> None:
    path = tmp_path / "hooks:1.sock"
    config = configured(tmp_path, f"unix:{str(path).replace(':', chr(92) * 2 + ':')}:mode=660", app("web", origin.path))
    for _ in serving(receiver, socketserver.UnixStreamServer, str(path)):
        result = run("--config", config)
        assert result.exit_code == 0, result.output
    assert receiver.push.repository == "acme/web"


def test_the_path_of_an_url_is_the_hooks_unless_it_has_one(config: Path, port: int, receiver: Receiver) -> None:
    run("--config", config, "--url", f"http://127.0.0.1:{port}")
    assert receiver.path == "/hooks/github"
    run("--config", config, "--url", f"http://127.0.0.1:{port}/elsewhere?x=1")
    assert receiver.path == "/elsewhere?x=1"


def test_it_needs_no_configuration_if_it_is_told_all(
    tmp_path: Path, port: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_SECRET", raising=False)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\r\n")
    url = f"http://127.0.0.1:{port}/hooks/web"
    result = run("--url", url, "--secret-file", secret, "--repository", "acme/web")
    assert result.exit_code == 0, result.output
    assert receiver.push.ref == "refs/heads/main"


def test_several_apps_need_a_name(tmp_path: Path, port: int, receiver: Receiver, origin: Origin) -> None:
    config = configured(
        tmp_path,
        f"tcp:{port}",
        app("web", origin.path, more='branch = "live"'),
        app("api", origin.path, hook="second"),
        app("site", origin.path, hook="second"),
        hooks=("github", "second"),
    )
    result = run("--config", config)
    assert result.exit_code == 2
    assert "say which one: --app web or --app api or --app site" in result.output
    assert run("--config", config, "--app", "web").exit_code == 0
    assert (receiver.path, receiver.push.ref) == ("/hooks/github", "refs/heads/live")
    assert run("--config", config, "--hook", "github").exit_code == 0
    assert receiver.push.repository == "acme/web"
    assert run("--config", config, "--repository", "acme/site").exit_code == 0
    assert (receiver.path, receiver.push.repository) == ("/hooks/second", "acme/site")
    assert "--app api or --app site" in run("--config", config, "--hook", "second").output


def test_a_hook_of_another_forge_is_not_delivered_to_as_github(tmp_path: Path, port: int, origin: Origin) -> None:
    path = configured(tmp_path, f"tcp:{port}", app("web", origin.path))
    path.write_text(path.read_text().replace("[hooks.github]\n", '[hooks.github]\nforge = "gitlab"\n'))
    result = run("--config", path)
    assert result.exit_code == 2
    assert "the hook github believes gitlab only" in result.output


def test_a_hook_can_be_sent_what_none_of_its_apps_is_called(config: Path, receiver: Receiver) -> None:
    """P17: to see that it is refused."""
    assert run("--config", config, "--hook", "github", "--repository", "evil/web").exit_code == 0
    assert receiver.push.repository == "evil/web"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--app", "wbe"), "there is no app wbe; there is web"),
        (("--hook", "gihtub"), "there is no hook gihtub; there is github"),
        (("--ref", "refs/heads/main", "--branch", "main"), "say --ref or --branch, not both"),
        (("--event", "release"), "'release' is not one of"),
        (("--repository", "evil/web"), "no app has that hook and that repository"),
        (("--secret-file", "/nowhere"), "/nowhere: No such file or directory"),
    ],
)
def test_wrong_usage_is_explained(config: Path, receiver: Receiver, arguments: tuple[str, ...], complaint: str) -> None:
    result = run("--config", config, *arguments)
    assert result.exit_code == 2
    assert complaint in result.output
    assert receiver.requests == []


def test_an_address_that_only_a_certificate_knows_must_be_told(tmp_path: Path, origin: Origin) -> None:
    listen = "systemd:domain=INET:index=0"
    result = run("--config", configured(tmp_path, listen, app("web", origin.path)))
    assert result.exit_code == 2
    assert f"{listen} does not tell the address: say --url https://…/hooks/github" in result.output


def test_the_public_address_is_the_last_resort(tmp_path: Path, port: int, receiver: Receiver, origin: Origin) -> None:
    config = configured(
        tmp_path,
        "systemd:domain=INET:index=0",
        app("web", origin.path),
        server=f'public_url = "http://127.0.0.1:{port}/deploy"',
    )
    assert run("--config", config).exit_code == 0
    assert receiver.path == "/deploy/hooks/github"


def test_a_faulty_configuration_is_explained(tmp_path: Path, origin: Origin) -> None:
    config = configured(tmp_path, "tcp:8000", app("web", origin.path, more="wrokers = 2"))
    result = run("--config", config)
    assert result.exit_code == 1
    assert "apps.web.wrokers" in result.output


# --- what is said


@pytest.mark.parametrize(
    ("code", "answer", "said", "status"),
    [
        (202, ACCEPTED, "202 accepted as delivery d1: deployment x1, x2; the tip of refs/heads/main is queued", 0),
        (
            202,
            {**ACCEPTED, "status": "duplicate", "deployments": ["x1"]},
            "202 duplicate: it was here before; deployment x1 stands for it",
            0,
        ),
        (
            202,
            {"status": "ignored", "reason": "no app deploys this branch"},
            "202 ignored: no app deploys this branch; nothing is deployed",
            0,
        ),
        (401, {"error": "no valid signature"}, "401 refused: no valid signature; is that the secret of this hook?", 1),
        (403, {"error": "not served"}, "403 refused: not served", 1),
        (503, {"error": "try again later"}, "503 refused: try again later", 1),
        (404, b"<html>\x1b[31mnginx", "404 Not Found: <html>nginx", 1),
        (200, b"[1]", "200 OK: [1]", 0),
    ],
)
def test_the_answer_is_told_in_plain_words(
    config: Path, receiver: Receiver, code: int, answer: object, said: str, status: int
) -> None:
    receiver.code, receiver.answer = code, answer
    result = run("--config", config)
    assert (result.output, result.exit_code) == (f"{said}\n", status)


def test_of_a_tag_the_newest_is_what_is_queued(config: Path, receiver: Receiver) -> None:
    """The app deploys the newest tag that matches, whichever the delivery tells of."""
    receiver.code, receiver.answer = 202, ACCEPTED
    said = "202 accepted as delivery d1: deployment x1, x2; the newest tag is queued\n"
    assert run("--config", config, "--ref", "refs/tags/v1").output == said


def test_json_tells_the_answer_as_it_came(config: Path, port: int, receiver: Receiver) -> None:
    result = run("--config", config, "--json", "--delivery", "g1")
    assert json.loads(result.output) == {
        "url": f"http://127.0.0.1:{port}/hooks/github",
        "event": "push",
        "delivery": "g1",
        "status": 202,
        "body": ACCEPTED,
    }
    receiver.code, receiver.answer = 502, b"no JSON"
    result = run("--config", config, "--json")
    assert (json.loads(result.output)["body"], result.exit_code) == ("no JSON", 1)


def test_where_nothing_listens_the_exit_is_3_and_says_where_it_looked(tmp_path: Path, origin: Origin) -> None:
    port = free_port()
    result = run("--config", configured(tmp_path, f"tcp:{port}", app("web", origin.path)))
    assert result.exit_code == 3
    assert f"Nothing listens on http://127.0.0.1:{port}/hooks/github" in result.output
    unix = run("--config", configured(tmp_path, f"unix:{tmp_path}/no.sock", app("web", origin.path)))
    assert unix.exit_code == 3
    assert f"Nothing listens on {tmp_path}/no.sock (/hooks/github)" in unix.output


def test_a_certificate_that_nobody_vouches_for_is_named_as_such(
    tmp_path: Path, receiver: Receiver, config: Path
) -> None:
    """There is a server, and it does run."""
    Authority().write(tmp_path / "certs", 3, "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certs" / "fullchain.pem", tmp_path / "certs" / "privkey.pem")

    class WithTls(socketserver.TCPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True), address

    for server in serving(receiver, WithTls, ("127.0.0.1", 0)):
        result = run("--config", config, "--url", f"https://localhost:{server.server_address[1]}/hooks/github")
    assert (result.exit_code, receiver.requests) == (1, [])
    assert "certificate verify failed" in result.output
    assert "SSL_CERT_FILE" in result.output
    assert "othing listens" not in result.output


def test_a_state_directory_without_a_server_is_an_exit_of_3(tmp_path: Path) -> None:
    result = run("--state", tmp_path)
    assert result.exit_code == 3
    assert f"nothing listens on {tmp_path}/api.sock" in result.output


def test_the_secret_is_never_shown(config: Path, receiver: Receiver) -> None:
    receiver.code = 401
    shown = run("--config", config).output + run("--config", config, "--json").output
    assert SECRET.decode() not in shown
    assert SECRET not in receiver.body
