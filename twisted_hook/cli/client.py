"""The server, as the command line sees it: where it is, what it was told, and what its API answers.

Speaks to the unix socket in the state directory, and nothing else. It never starts a server and never changes a file.

httpx and pydantic cost half a second, so they are imported by who needs them: ``--help`` does not.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, suppress
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote

import click

from twisted_hook import DEFAULT_NAME
from twisted_hook.cli import FAILED, NOT_RUNNING, USAGE
from twisted_hook.redaction import clean

if TYPE_CHECKING:
    import httpx

    from twisted_hook.config import Reading
    from twisted_hook.configfile import Settings

TIMEOUT = 10.0
SILENCE = 60.0
"""Seconds without a word after which a stream of events is taken for dead; it says something every fifteen."""
HURRY = 1.0
"""Seconds for which somebody waits who has typed a tabulator."""

config_option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The server's configuration.  [default: ./{DEFAULT_NAME}, else the environment]",
)
state_option = click.option(
    "--state", metavar="DIR", type=click.Path(path_type=Path), help="The server's state directory."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """The options of every command that asks a running server."""
    return config_option(state_option(json_option(command)))


def app_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of apps that begin so, for a shell that completes: those in the file, or else the running server's.

    Whatever goes wrong, it is quick and says nothing.
    """
    given = {key: context.params.get(key) for key in ("config", "state")}
    with suppress(Exception), redirect_stderr(StringIO()):
        return [name for name in _known_apps(**given) if name.startswith(incomplete)]
    return []


def _known_apps(config: Path | None, state: Path | None) -> Iterable[str]:
    file = config or Path(DEFAULT_NAME)
    if state is None and file.exists():
        return tuple(tomllib.loads(file.read_text("utf-8-sig"))["apps"])
    with closing(Api(state_of(config, state), timeout=HURRY)) as api:
        return tuple(str(app["name"]) for app in api.get("/apps"))


app_argument = click.argument("app", required=False, shell_complete=app_names)


class NotRunning(Exception):
    """No server answers; the text says where it was looked for."""


class ApiError(Exception):
    """The server answers, and not with what was asked for; ``status`` is None if that is no HTTP either."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """The API of one running server. Its answers are decoded JSON, as the interface describes them."""

    def __init__(self, state: Path, *, timeout: float = TIMEOUT) -> None:
        self.state = state
        self._timeout = timeout
        self._socket = state / "api.sock"
        self._client: httpx.Client | None = None

    def get(self, path: str, **parameters: str | int) -> Any:
        """The answer to ``GET /api/v1<path>``. Raises ``NotRunning`` or ``ApiError``."""
        return self._ask("GET", path, params=parameters).json()

    def text(self, path: str, **parameters: str | int) -> bytes:
        """The body of the answer to ``GET /api/v1<path>``, where that is no JSON. Raises as ``get`` does."""
        return bytes(self._ask("GET", path, params=parameters).content)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to ``POST /api/v1<path>``. Raises ``NotRunning`` or ``ApiError``."""
        return self._ask("POST", path, json=body).json()

    def events(self, path: str, **parameters: str | int) -> Iterator[tuple[str, Any, str]]:
        """Each event that ``GET /api/v1<path>`` sends: its name, its data, its id. Raises as ``get`` does."""
        with self._explained():
            client = self._client = self._client or self._connected()
            with client.stream("GET", path, params=parameters, timeout=SILENCE) as answer:
                self._check(answer, path)
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    if line:
                        name, _, value = line.partition(": ")
                        fields[name] = value
                    elif "data" in fields:
                        yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
                        fields = {}

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        with self._explained():
            self._client = self._client or self._connected()
            answer = self._client.request(method, path, **given)
            self._check(answer, path)
            return answer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, OSError) as error:
            if "Permission denied" in str(error):  # all that httpx keeps of it
                raise ApiError(f"{self._socket} may not be used by this user: {_whose(self.state)}") from error
            raise NotRunning(f"hookdeploy does not run: nothing listens on {self._socket}") from error
        except httpx.HTTPError as error:
            raise ApiError(f"{self._socket} does not answer: {error}") from error

    @staticmethod
    def _check(answer: httpx.Response, path: str) -> None:
        if not answer.is_success:
            answer.read()
            raise ApiError(clean(_reason(answer) or f"{path}: {answer.status_code} {answer.text}"), answer.status_code)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _connected(self) -> httpx.Client:
        """Raises ``FileNotFoundError`` if there is no state directory, and its path is long."""
        import httpx

        from twisted_hook.cli.transport import over_socket

        transport = over_socket(self._socket)
        return httpx.Client(transport=transport, base_url="http://localhost/api/v1", timeout=self._timeout)


def _reason(answer: httpx.Response) -> str:
    """Why the server refuses, in its own words."""
    try:
        return str(answer.json()["error"])
    except (ValueError, LookupError, TypeError):
        return ""


def _whose(state: Path) -> str:
    try:
        return f"hookdeploy works there as {state.owner()}"
    except (OSError, KeyError):
        return f"{state} cannot be looked into"


@contextmanager
def running_server(config: Path | None, state: Path | None, *, as_json: bool) -> Iterator[Api]:
    """The API of the running server. What it refuses ends the command."""
    with closing(Api(state_of(config, state))) as api:
        try:
            yield api
        except NotRunning as error:
            fail(str(error), NOT_RUNNING, as_json=as_json)
        except ApiError as error:
            fail(str(error), USAGE if error.status == 400 else FAILED, as_json=as_json)


def fail(reason: str, code: int, *, as_json: bool) -> NoReturn:
    """End the command with this exit code, and say why."""
    if as_json:
        click.echo(json.dumps({"error": reason}))
    else:
        click.echo(reason, err=True)
    raise click.exceptions.Exit(code)


def app_path(api: Api, name: str | None) -> str:
    """The path of the app that is meant; of the only one if none is named."""
    return path_of(app_meant(api, name))


def app_meant(api: Api, name: str | None) -> str:
    """The name of the app that is meant; of the only one if none is named."""
    known = [str(app["name"]) for app in api.get("/apps")]
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        raise click.UsageError(clean(which("app", name, known)))
    return name


def which(kind: str, name: str | None, known: Sequence[str]) -> str:
    """What to say where none of that name, or no name, is known."""
    if name is None:
        return f"say which {kind}: {', '.join(known)}" if known else f"there is no {kind}"
    near = get_close_matches(name, known)
    wrong = f"there is no {kind} {name}"
    return f"{wrong}; did you mean {' or '.join(near)}?" if near else f"{wrong}; {which(kind, None, known)}"


def path_of(app: str) -> str:
    return f"/apps/{quote(app, safe='')}"


def state_of(config: Path | None, state: Path | None) -> Path:
    """The state directory of the server that is meant. Says what is wrong and ends the command if it cannot be told.

    Asks no more of a configuration than that: a server runs on though its file is being edited, and its secrets may be
    out of our reach.
    """
    if state is not None:
        return state
    from twisted_hook.config import ConfigError, read_environment

    if config is None and Path(DEFAULT_NAME).exists():
        config = Path(DEFAULT_NAME)
    reading = read_environment(os.environ, Path.cwd()) if config is None else _read_file(config)
    if reading.mentions.state is not None:
        return reading.mentions.state.path
    if config is None:
        _say(f"There is no ./{DEFAULT_NAME} here: name the server's configuration with --config, or --state.")
    else:
        _say(clean(str(ConfigError(reading.faults, str(config)))))
    raise click.exceptions.Exit(FAILED)


def _read_file(path: Path) -> Reading:
    from twisted_hook.config import read
    from twisted_hook.survey import content

    try:
        return read(content(path).decode("utf-8-sig"), path.absolute().parent)
    except OSError as error:
        _say(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        _say(clean(f"{path}: {error}"))
    raise click.exceptions.Exit(FAILED)


def settings_of(config: Path | None, state: Path | None) -> Settings:
    """The settings of the server that is meant. Says what is wrong and ends the command if there are none.

    A state directory alone tells no secret: the server that works in it is asked for its configuration.
    """
    from twisted_hook.config import ConfigError
    from twisted_hook.configfile import load

    try:
        return load(_config_of(state) if state and not config else config, os.environ)
    except ConfigError as error:
        _say(clean(str(error)))
        if error.source == "environment":
            _say(f"There is no ./{DEFAULT_NAME}, so the environment was read: name a configuration with --config.")
        raise click.exceptions.Exit(FAILED) from None


def _config_of(state: Path) -> Path | None:
    with closing(Api(state)) as api:
        try:
            source = api.get("/server")["config"]
        except NotRunning as error:
            _say(str(error))
            raise click.exceptions.Exit(NOT_RUNNING) from None
        except ApiError as error:
            _say(str(error))
            raise click.exceptions.Exit(FAILED) from None
    return Path(source) if source else None


def _say(text: str) -> None:
    click.echo(text, err=True)
