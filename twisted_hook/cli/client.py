"""The server, as the command line sees it: where it is, what it was told, and what its API answers.

Asks the unix socket in the state directory, and nothing else. It never starts a server and never changes a file.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import httpx

from twisted_hook.cli import FAILED, NOT_RUNNING
from twisted_hook.config import ConfigError
from twisted_hook.configfile import DEFAULT_NAME, Settings, load
from twisted_hook.redaction import clean
from twisted_hook.sockets import unix_address

TIMEOUT = 10.0

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


class NotRunning(Exception):
    """No server answers; the text says where it was looked for."""


class ApiError(Exception):
    """The server answers, and not with what was asked for."""


class Api:
    """The API of one running server. Its answers are decoded JSON, as the interface describes them."""

    def __init__(self, state: Path) -> None:
        self._socket = state / "api.sock"
        self._client: httpx.Client | None = None

    def get(self, path: str, **parameters: str | int) -> Any:
        """The answer to ``GET /api/v1<path>``. Raises ``NotRunning`` or ``ApiError``."""
        try:
            self._client = self._client or self._connected()
            answer = self._client.get(path, params=parameters)
        except (httpx.ConnectError, FileNotFoundError) as error:
            raise NotRunning(f"hookdeploy does not run: nothing listens on {self._socket}") from error
        except httpx.HTTPError as error:
            raise ApiError(f"{self._socket} does not answer: {error}") from error
        if not answer.is_success:
            raise ApiError(f"{path}: {answer.status_code} {clean(answer.text)}")
        return answer.json()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _connected(self) -> httpx.Client:
        """Raises ``FileNotFoundError`` if there is no state directory, and its path is long."""
        transport = httpx.HTTPTransport(uds=unix_address(self._socket))
        return httpx.Client(transport=transport, base_url="http://localhost/api/v1", timeout=TIMEOUT)


def settings_of(config: Path | None, state: Path | None) -> Settings:
    """The settings of the server that is meant. Says what is wrong and ends the command if there are none.

    A state directory alone tells no secret: the server that works in it is asked for its configuration.
    """
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
