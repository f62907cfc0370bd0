"""``hookdeploy send``: a correctly signed test delivery to a running server.

It finds address, path and secret where the server finds them; what a delivery looks like is said in ``delivery``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click
import httpx

from twisted_hook import addresses
from twisted_hook.cli import FAILED, NOT_RUNNING
from twisted_hook.cli.client import config_option, json_option, settings_of, state_option
from twisted_hook.cli.delivery import Pushed, Target, deliver, ping, push
from twisted_hook.commands import Ambient, Git, protocols_of
from twisted_hook.config import AppConfig
from twisted_hook.configfile import Settings
from twisted_hook.configvalues import name_of
from twisted_hook.hooks import Hook
from twisted_hook.localgit import NotUsable, look_at_clone
from twisted_hook.redaction import clean
from twisted_hook.refs import HEADS, TAGS

T = TypeVar("T")

ASKING = 10.0
"""Seconds for the question which commit the ref names."""
LONGEST_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options as they were given."""

    hook: str | None
    app: str | None
    ref: str | None
    branch: str | None
    repository: str | None
    after: str | None
    url: str | None
    secret_file: Path | None


@click.command()
@click.option("--event", type=click.Choice(("push", "ping")), default="push", show_default=True)
@config_option
@state_option
@click.option("--hook", metavar="NAME", help="The hook to deliver to, where there are several.")
@click.option("--app", metavar="NAME", help="The app that it is about, where there are several.")
@click.option("--branch", metavar="NAME", help="The branch that was pushed.  [default: the app's, else main]")
@click.option("--ref", metavar="REF", help="The full ref instead, such as refs/tags/v1.")
@click.option("--repository", metavar="OWNER/NAME", help="What the forge calls it.  [default: the app's first name]")
@click.option("--after", metavar="SHA", help="The pushed commit.  [default: what the remote says, else made up]")
@click.option("--delivery", "guid", metavar="GUID", help="The delivery's id; a used one makes it a redelivery.")
@click.option("--url", help="Where to deliver.  [default: where the configuration says that the server listens]")
@click.option(
    "--secret-file", metavar="FILE", type=click.Path(path_type=Path), help="The secret.  [default: the hook's first]"
)
@json_option
def send(
    *, event: str, config: Path | None, state: Path | None, guid: str | None, as_json: bool, **wishes: Any
) -> None:
    """Send a correctly signed test delivery to a running server, as GitHub does after a push.

    With --url, --secret-file and --repository it needs no configuration. Exits with 0 if the delivery was taken, with 1
    if it was not, and with 3 if nothing listens there.
    """
    target, pushed = _plan(Wishes(**wishes), config, state)
    guid = guid or str(uuid.uuid4())
    try:
        answer = deliver(target, event, push(pushed) if event == "push" else ping(pushed), guid)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "SSL" in str(error):  # httpx has no class of its own for it
            hint = "For a certificate of your own set SSL_CERT_FILE to it"
            click.echo(f"{target} listens, but TLS fails: {error}. {hint}", err=True)
            raise click.exceptions.Exit(FAILED) from None
        click.echo(f"Nothing listens on {target} ({error}). Does the server run? twistd -n hookdeploy", err=True)
        raise click.exceptions.Exit(NOT_RUNNING) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = str(error) or type(error).__name__
        click.echo(f"{target} gave no answer: {problem}. If hookdeploy is down, its next start takes this up", err=True)
        raise click.exceptions.Exit(FAILED) from None
    if as_json:
        told = {"url": target.url, "event": event, "delivery": guid, "status": answer.status_code}
        click.echo(json.dumps({**told, "body": _decoded(answer)}))
    else:
        click.echo(in_words(answer, pushed))
    if not answer.is_success:
        raise click.exceptions.Exit(FAILED)


# --- the answer


def in_words(answer: httpx.Response, pushed: Pushed) -> str:
    """What the server has answered, and what happens now."""
    body, code = _decoded(answer), answer.status_code
    match body:
        case {"status": "accepted", "delivery": delivery, "deployments": [*ids]}:
            wanted = "the newest tag" if pushed.ref.startswith(TAGS) else f"the tip of {pushed.ref}"
            made = f"deployment {', '.join(map(str, ids))}; {wanted} is queued"
            return _shown(f"{code} accepted as delivery {delivery}: {made}")
        case {"status": "duplicate", "deployments": [*ids]}:
            return _shown(f"{code} duplicate: it was here before; deployment {', '.join(map(str, ids))} stands for it")
        case {"status": "ignored", "reason": str(reason)}:
            return _shown(f"{code} ignored: {reason}; nothing is deployed")
        case {"error": str(error)}:
            hint = "; is that the secret of this hook?" if code == 401 else ""
            return _shown(f"{code} refused: {error}{hint}")
    return _shown(f"{code} {answer.reason_phrase}: {answer.text}")


def _decoded(answer: httpx.Response) -> Any:
    """The body as JSON; as text where it is none, so where something else than hookdeploy answers."""
    try:
        return answer.json()
    except ValueError:
        return answer.text[:LONGEST_SHOWN]


def _shown(text: str) -> str:
    return clean(text[:LONGEST_SHOWN])


# --- where to, and what about


def _plan(wishes: Wishes, config: Path | None, state: Path | None) -> tuple[Target, Pushed]:
    """What the options and the configuration mean together. Ends the command if they do not suffice."""
    if wishes.ref and wishes.branch:
        raise click.UsageError("say --ref or --branch, not both")
    needs_none = wishes.url and wishes.secret_file and wishes.repository
    if needs_none and not (config or state or wishes.hook or wishes.app):
        return Target(wishes.url or "", _secret_in(wishes.secret_file)), _pushed(wishes, None)
    settings = settings_of(config, state)
    hook, app = _chosen(settings, wishes)
    if hook.forge != "github":
        raise click.UsageError(f"it delivers as GitHub does, and the hook {hook.name} believes {hook.forge} only")
    return _target(settings, hook, wishes), _pushed(wishes, app)


def _chosen(settings: Settings, wishes: Wishes) -> tuple[Hook, AppConfig | None]:
    """The hook and the app that are meant; no app where several are, and the options say all that it would tell."""
    hooks, apps = {hook.name: hook for hook in settings.hooks}, settings.config.apps
    app = _named("app", wishes.app, apps) if wishes.app else None
    hook = _named("hook", wishes.hook, hooks) if wishes.hook else None
    fitting = [
        each
        for each in ([app] if app else apps.values())
        if (hook is None or each.hook == hook.name) and _is_called(each, wishes.repository)
    ]
    if len(fitting) == 1:
        return hooks[fitting[0].hook], fitting[0]
    if hook is not None and wishes.repository is not None:
        return hook, None
    if not fitting:
        raise click.UsageError("no app has that hook and that repository; the configuration says what belongs together")
    raise click.UsageError(f"say which one: {' or '.join(f'--app {each.name}' for each in fitting)}")


def _named(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise click.UsageError(f"there is no {kind} {name}; there is {', '.join(known)}")
    return known[name]


def _target(settings: Settings, hook: Hook, wishes: Wishes) -> Target:
    secret = _secret_in(wishes.secret_file) if wishes.secret_file else hook.keys[0]
    if wishes.url is not None:
        parts = urlsplit(wishes.url)
        return Target(urlunsplit(parts._replace(path=hook.path)) if parts.path in ("", "/") else wishes.url, secret)
    server = settings.config.server
    for listen in server.listen:
        url, socket = _address(listen)
        if url is not None:
            return Target(url + hook.path, secret, socket)
    if server.public_url is not None:
        return Target(server.public_url + hook.path, secret)
    raise click.UsageError(f"{', '.join(server.listen)} does not tell the address: say --url https://…{hook.path}")


def _address(listen: str) -> tuple[str | None, Path | None]:
    """How to reach a Twisted endpoint from this machine: a URL without a path, and a unix socket.

    Neither is known for tls: and ssl:, where the certificate names the host, nor for systemd:.
    """
    kind = listen.partition(":")[0]
    if kind == "unix" and (found := re.search(r":address=((?:[^\\:]|\\.)*)", listen)):
        return "http://localhost", Path(re.sub(r"\\(.)", r"\1", found[1]))
    address = addresses.endpoint_address(listen)
    if kind not in ("tcp", "tcp6") or address is None or address[1] == 0:
        return None, None
    host = address[0] or ("127.0.0.1" if kind == "tcp" else "::1")
    return f"http://{f'[{host}]' if ':' in host else host}:{address[1]}", None


def _secret_in(file: Path | None) -> bytes:
    """The secret in a file, read as the server reads it."""
    try:
        secret = (file or Path()).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--secret-file") from None
    if not secret:
        raise click.BadParameter(f"{file} is empty", param_hint="--secret-file")
    return secret


def _is_called(app: AppConfig, repository: str | None) -> bool:
    names = [name.lower() for name in app.names]
    return repository is None or not names or repository.lower() in names


def _pushed(wishes: Wishes, app: AppConfig | None) -> Pushed:
    branch = wishes.branch or (app.branch if app else None)
    ref = wishes.ref or (f"{HEADS}{branch}" if branch else None)
    origin = _Origin.of(app)
    tips = origin.ask(ref or "HEAD") if origin else {}
    default_branch = tips.get("default") or (app.branch if app else None) or "main"
    return Pushed(
        repository=wishes.repository or _first_name(app, origin),
        ref=ref or f"{HEADS}{default_branch}",
        after=wishes.after or tips.get(ref or "HEAD") or secrets.token_hex(20),
        default_branch=default_branch,
    )


def _first_name(app: AppConfig | None, origin: _Origin | None) -> str:
    if app is not None and app.names:
        return app.names[0]
    return name_of(origin.url) if origin else "acme/web"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where an app's commits come from."""

    ambient: Ambient
    url: str
    clone: Path | None

    @classmethod
    def of(cls, app: AppConfig | None) -> _Origin | None:
        if app is None:
            return None
        ambient = replace(Ambient.from_environ(os.environ), deploy_key=app.deploy_key)
        if app.path is None:
            return cls(ambient, app.repository, None) if app.repository else None
        try:
            clone = look_at_clone(ambient, app.path)
        except NotUsable:
            return None
        return cls(ambient, clone.origin, clone.top) if clone.origin else None

    def ask(self, ref: str) -> dict[str, str]:
        """What HEAD and the ref name there, and the ``default`` branch; nothing if it cannot be asked."""
        git = Git(self.ambient, self.clone or Path("/"), protocols_of(self.url), in_place=True)
        where = "origin" if self.clone else self.url
        command = git.command("ls-remote", "--symref", "--end-of-options", where, "HEAD", ref, timeout=ASKING)
        try:
            said = subprocess.run(
                command.argv,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=command.timeout,
                check=False,
            ).stdout.decode("utf-8", "replace")
        except (OSError, subprocess.TimeoutExpired):
            return {}
        tips = {name: tip for tip, name in re.findall(r"^([0-9a-f]{40,64})\t(.+)$", said, re.MULTILINE)}
        default = re.match(r"ref: refs/heads/(.+)\tHEAD", said)
        return {**tips, "default": default[1]} if default else tips
