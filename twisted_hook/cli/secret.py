"""``hookdeploy secret``: the next secret of a hook, and when each of them has verified last.

``new`` writes a file of its own and names it in the configuration: nothing is overwritten, no old secret is removed,
and where anything is in the way, all is as it was before.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from twisted_hook.cli import FAILED
from twisted_hook.cli.check import hook_url
from twisted_hook.cli.client import (
    Api,
    ApiError,
    NotRunning,
    config_option,
    fail,
    json_option,
    running_server,
    server_options,
    which,
)
from twisted_hook.cli.rotation import CannotBeWritten, Rotation, new_secret, with_secret
from twisted_hook.cli.status import hooks_table, removal_notes
from twisted_hook.cli.tables import show_tables
from twisted_hook.config import Config, ConfigError, HookConfig, Mentions, read
from twisted_hook.configfile import DEFAULT_NAME
from twisted_hook.redaction import clean
from twisted_hook.survey import Survey, content

MOST = 1000
"""So many names are tried for the new file."""
_BOM = "\ufeff"


@click.group()
def secret() -> None:
    """Make the next secret of a hook, and see which ones verify."""


@secret.command("list")
@click.argument("hook", required=False)
@server_options
def list_(*, hook: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show when each secret of all hooks, or of HOOK, has last verified a delivery. Never shows a secret."""
    with running_server(config, state, as_json=as_json) as api:
        hooks = api.get("/hooks")
    if hook is not None:
        known = [each["name"] for each in hooks]
        if hook not in known:
            raise click.UsageError(clean(which("hook", hook, known)))
        hooks = [each for each in hooks if each["name"] == hook]
    if as_json:
        click.echo(json.dumps(hooks))
    else:
        show_tables(hooks_table(hooks, datetime.now(UTC)), notes=[*removal_notes(hooks)])


@secret.command()
@click.argument("hook")
@config_option
@json_option
def new(*, hook: str, config: Path | None, as_json: bool) -> None:
    """Make the next secret of HOOK, which may be an app with a secret of its own; the present ones stay valid.

    Writes a new file beside the configuration, names it there, and says what to paste at the forge and what to do
    then. Needs no running server.
    """
    config = config or Path(DEFAULT_NAME)
    if config == Path(DEFAULT_NAME) and not config.exists():
        raise click.UsageError(
            f"there is no ./{DEFAULT_NAME}: name the configuration with --config. The environment (GITHUB_SECRET) has "
            "room for one secret only; hookdeploy init writes a file, which has room for several"
        )
    try:
        made = _rotate(config.absolute(), hook)
    except _Stopped as problem:
        fail(clean(str(problem)), FAILED, as_json=as_json)
    except OSError as error:
        fail(clean(f"{error.filename or config} cannot be written: {error.strerror}"), FAILED, as_json=as_json)
    if as_json:
        told = {"hook": made.hook.name, "file": str(made.file), "config": str(made.config), "url": made.address}
        click.echo(json.dumps({"ok": True, **told, "secret": made.secret}))
    else:
        click.echo("\n".join(made.steps()))


class _Stopped(Exception):
    """Nothing was changed, for this reason."""


def _rotate(path: Path, name: str) -> Rotation:
    """Make a secret, and name it in the configuration. Two who do this at once come one after the other."""
    with _alone_in(Path(os.path.realpath(path)).parent):
        before = _read(path)
        text = before.decode().removeprefix(_BOM)
        config = _understood(text, path)
        hook = _hook(config, name)
        secret = new_secret(hook.forge, _present(hook))
        with _new_file(path.parent, hook, secret, _server_account(config)) as file:
            named = str(file) if path.is_symlink() else file.name  # a link's target may be read by its own name too
            try:
                written = with_secret(text, path.parent, hook, named)
            except CannotBeWritten:
                raise _Stopped(_by_hand(path, hook)) from None
            bom = _BOM if before.decode().startswith(_BOM) else ""
            _replace(path, before, (bom + written).encode())
    return Rotation(hook, secret, file, path, hook_url(config, hook), _pid(config.state))


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others of us out meanwhile; editors know nothing of it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        text = content(path)
        text.decode()
    except OSError as error:
        raise _Stopped(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _Stopped(f"{path} is not UTF-8 text") from None
    except ValueError as error:
        raise _Stopped(f"{path} {error}") from None
    return text


def _understood(text: str, path: Path) -> Config:
    reading = read(text, path.parent)
    if reading.config is None:
        raise _Stopped(str(ConfigError(reading.faults, str(path))))
    return reading.config


def _hook(config: Config, name: str) -> HookConfig:
    known = {hook.name: hook for hook in config.hooks}
    if name in known:
        return known[name]
    if name in config.apps:
        hook = config.apps[name].hook
        raise click.UsageError(f"the app {name} is reached by the hook {hook}: hookdeploy secret new {hook}")
    raise click.UsageError(clean(which("hook", name, [*known])))


def _present(hook: HookConfig) -> list[bytes]:
    """The secrets that can be read here; those of the server's own environment cannot."""
    survey = Survey(os.environ)
    survey.look(Mentions(secrets=hook.secrets))
    return [*survey.secrets.values()]


# --- the files


def _server_account(config: Config) -> os.stat_result | None:
    """To whom the state directory belongs, if it is there: the server must be able to read its secret."""
    try:
        return config.state.stat()
    except OSError:
        return None


@contextmanager
def _new_file(directory: Path, hook: HookConfig, secret: str, account: os.stat_result | None) -> Iterator[Path]:
    """A new file with the secret, for the server alone to read. It goes again if what follows fails."""
    file, descriptor = _created(directory, hook)
    try:
        with os.fdopen(descriptor, "w") as opened:
            if account is not None and account.st_uid != os.geteuid():
                _give(opened.fileno(), account, "the state directory")
            opened.write(f"{secret}\n")
            opened.flush()
            os.fsync(opened.fileno())
        yield file
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _created(directory: Path, hook: HookConfig) -> tuple[Path, int]:
    for number in range(len(hook.secrets) + 1, MOST):
        file = directory / f"{hook.name}.secret.{number}"
        with suppress(FileExistsError):
            return file, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    raise _Stopped(f"{directory} is full of files {hook.name}.secret.…: remove those that are not used")


def _give(descriptor: int, to: os.stat_result, what: str) -> None:
    try:
        os.fchown(descriptor, to.st_uid, to.st_gid)
    except PermissionError:
        raise _Stopped(
            f"{what} belongs to the user {to.st_uid}, and this is {os.geteuid()}: run it as that user, or as root"
        ) from None


def _replace(path: Path, before: bytes, after: bytes) -> None:
    """Put the new text in the place of the old at once, behind a link too; mode and owner stay."""
    real = Path(os.path.realpath(path))
    status = real.stat()
    beside = real.with_name(f".{real.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                _give(file.fileno(), status, str(path))
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        if _read(path) != before:
            raise _Stopped(f"{path} was changed meanwhile, and is left as it is: once more, please")
        beside.replace(real)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _by_hand(path: Path, hook: HookConfig) -> str:
    keys = hook.secrets[0].where.partition("[")[0]
    return (
        f"{path} is written in a way that {keys} cannot be added to here, and is left as it is. By hand: write it as "
        f'{keys.rpartition(".")[2]} = [{{ … }}], or put the output of "openssl rand -hex 32" into a file (chmod 600) '
        "and name it there"
    )


def _pid(state: Path) -> int | None:
    """Of the server that works there, if one can be asked."""
    with closing(Api(state)) as api:
        try:
            return int(api.get("/server")["pid"])
        except (NotRunning, ApiError):
            return None
