"""The shape of hookdeploy.toml: one model a table, and the translation of what does not fit into words.

Pure: a mapping goes in, with the directory at which relative paths begin; a ``File`` or every fault comes out. What
depends on two keys at once is decided in ``config``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from twisted_hook import addresses
from twisted_hook import configvalues as values


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, as a key path such as ``apps.blog.workers``, and what, in words."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def _start(info: ValidationInfo) -> Path:
    """Where relative paths begin: the context of the validation."""
    start = info.context
    return start if isinstance(start, Path) else Path()


def _placed(check: Callable[[str, Path], object]) -> AfterValidator:
    """A validator of a value that may hold a relative path."""

    def validate(value: str, info: ValidationInfo) -> object:
        return check(value, _start(info))

    return AfterValidator(validate)


Text = Annotated[str, AfterValidator(values.text)]
Line = Annotated[str, AfterValidator(values.line)]
Name = Annotated[str, AfterValidator(values.name)]
Variable = Annotated[str, AfterValidator(values.variable)]
Environment = dict[Annotated[str, AfterValidator(values.declared_variable)], Text]
Duration = Annotated[float, BeforeValidator(values.duration)]
Limit = Annotated[float, BeforeValidator(values.limit)]
Poll = Annotated[float, BeforeValidator(values.poll)]


def _file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str):
        raise ValueError("must be a path: a string")
    return values.path(value, _start(info))


File = Annotated[Path, BeforeValidator(_file)]


class Table(BaseModel):
    """A table of the file: no key that is not known, no type that is nearly right."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SecretTable(Table):
    file: File | None = None
    env: Variable | None = None
    credential: Annotated[str, AfterValidator(values.file_name)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_literal(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError('must be one of { file = "…" }, { env = "…" } and { credential = "…" }')
        return value

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if sum(source is not None for source in (self.file, self.env, self.credential)) != 1:
            raise ValueError("must name exactly one of file, env and credential")
        return self


class StepTable(Table):
    """A step; written as a string or a list it has a command only."""

    run: Any
    name: Line | None = None
    timeout: Limit | None = None
    env: Environment = {}
    shell: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"run": value}

    @model_validator(mode="after")
    def _has_command(self) -> Self:
        values.argv(self.run, shell=self.shell)
        return self


def _auto_is_none(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        raise ValueError('must be "auto" or a list of steps: put the step into [ ]')
    return None if value == "auto" else value


class ServerTable(Table):
    listen: Annotated[list[Annotated[str, _placed(addresses.endpoint)]], Field(min_length=1)] = ["tcp:8000"]
    public_url: Annotated[str, AfterValidator(values.public_url)] | None = None
    trusted_proxies: list[Annotated[str, AfterValidator(values.proxy)]] = []
    max_body: Annotated[int, Field(ge=1)] = 26_214_400
    min_free: Annotated[int, Field(ge=0)] | None = None
    max_builds: Annotated[int, Field(ge=1)] | None = None
    history: Limit = 90 * 86_400.0
    history_rows: Annotated[int, Field(ge=100)] = 10_000


class DashboardTable(Table):
    listen: list[Annotated[str, _placed(addresses.endpoint)]] = []
    hosts: list[Annotated[str, AfterValidator(values.host_name)]] = []


class HookTable(Table):
    forge: Literal["github", "gitlab", "gitea", "forgejo", "bitbucket", "bitbucket-server", "standard"] = "github"
    path: Annotated[str, AfterValidator(values.hook_path)] | None = None
    secrets: Annotated[list[SecretTable], Field(min_length=1)]
    allow_sha1: bool = False
    token: SecretTable | None = None
    api: Annotated[str, AfterValidator(values.api)] | None = None
    only_from: Annotated[list[Annotated[str, AfterValidator(values.sender)]], Field(min_length=1)] | None = None


def _in_a_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class AppTable(Table):
    hook: Line | None = None
    secret: Annotated[list[SecretTable], Field(min_length=1), BeforeValidator(_in_a_list)] | None = None
    repository: Annotated[str, _placed(values.repository)] | None = None
    names: Annotated[list[Annotated[str, AfterValidator(values.repository_name)]], Field(min_length=1)] | None = None
    deploy_key: File | None = None
    branch: Annotated[str, AfterValidator(values.branch)] | None = None
    tag: Annotated[str, AfterValidator(values.tag)] | None = None
    paths: list[Annotated[str, AfterValidator(values.path_pattern)]] = []
    poll: Poll = 300.0
    mode: Literal["release", "in-place"] = "release"
    path: File | None = None
    update: Literal["rebase", "ff-only", "reset"] | None = None
    build: Annotated[list[StepTable] | None, BeforeValidator(_auto_is_none)] = None
    migrate: list[StepTable] = []
    wsgi: Annotated[str, AfterValidator(values.wsgi)] | None = None
    command: Annotated[tuple[str, ...], BeforeValidator(values.server_command)] = ()
    bind: Annotated[str, _placed(addresses.bind)] = "127.0.0.1:8080"
    workers: Annotated[int, Field(ge=1, le=1024)] = 2
    gunicorn: list[Annotated[str, AfterValidator(values.gunicorn_argument)]] = []
    env: Environment = {}
    env_file: File | None = None
    health: Annotated[str, AfterValidator(values.health_path)] | None = None
    health_timeout: Limit = 30.0
    probation: Duration = 5.0
    probation_deaths: Annotated[int, Field(ge=0)] = 1
    probation_errors: Annotated[int, Field(ge=0)] = 3
    drain: Duration = 30.0
    keep: Annotated[int, Field(ge=1)] = 5
    step_timeout: Limit = 900.0
    shared: list[Annotated[str, AfterValidator(values.inner_path)]] = []
    user: Line | None = None
    nice: Annotated[int, Field(ge=0, le=19)] = 10


class FileTable(Table):
    """The whole file."""

    state: File
    server: ServerTable = ServerTable()
    dashboard: DashboardTable = DashboardTable()
    hooks: dict[Name, HookTable] = {}
    apps: Annotated[dict[Name, AppTable], Field(min_length=1)]


def validate(raw: Mapping[str, object], start: Path) -> FileTable | tuple[Fault, ...]:
    """The file as it is meant, or everything in it whose shape is wrong."""
    try:
        return FileTable.model_validate(raw, context=start)
    except ValidationError as error:
        return tuple(_fault(details, raw) for details in error.errors(include_url=False))


# --- faults in words

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
_MISSING = {
    "state": 'the directory for the journal, releases and logs, e.g. state = "/var/lib/hookdeploy"',
    "apps": "at least one [apps.<name>]",
    "secrets": 'e.g. secrets = [{ file = "hook.secret" }]',
    "run": "the command of the step",
}
_MAY_HOLD_SECRETS = frozenset({"secret", "secrets", "token", "api", "env", "repository", "build", "migrate"})


def key_path(keys: tuple[str | int, ...]) -> str:
    """``apps.blog.build[0]``; keys that TOML would have in quotes are in quotes."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
            path += f"{'.' if path else ''}{key if plain else values.shown(key)}"
    return path


def _fault(details: ErrorDetails, raw: Mapping[str, object]) -> Fault:
    keys = details["loc"][:-1] if details["loc"][-1:] == ("[key]",) else details["loc"]
    written = key_path(_as_written(keys, raw))
    return Fault(written, _message(details["type"], keys, details["input"], details.get("ctx", {})))


def _as_written(keys: tuple[str | int, ...], raw: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Without the place in a list that the file does not have: one secret of an app may stand alone."""
    match keys:
        case ("apps", app, "secret", 0, *rest) if not isinstance(raw["apps"][app]["secret"], list):
            return ("apps", app, "secret", *rest)
        case _:
            return keys


def _message(kind: str, keys: tuple[str | int, ...], found: object, context: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one case, one answer
    found_words = _described(found, secret=not _MAY_HOLD_SECRETS.isdisjoint(keys))
    match kind:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"unknown key{_suggestion(keys)}"
        case "missing":
            return f"is missing: {_MISSING.get(str(keys[-1]), 'it is required')}"
        case "literal_error":
            return f"must be {context['expected'].replace(chr(39), chr(34))}, not {found_words}"
        case "greater_than_equal":
            return f"must be {context['ge']} or more, not {found_words}"
        case "less_than_equal":
            return f"must be {context['le']} or less, not {found_words}"
        case "too_short":
            return "must not be empty"
        case _ if kind in _EXPECTED:
            return f"must be {_EXPECTED[kind]}, not {found_words}"
        case _:
            return "is not a valid value"


def _described(found: object, *, secret: bool) -> str:  # noqa: PLR0911 - one case, one answer
    """A wrong value in words; only what cannot be a secret is repeated."""
    match found:
        case bool():
            return str(found).lower()
        case dict():
            return "a table"
        case list():
            return "a list"
        case str():
            return "a string" if secret else values.shown(found)
        case int() | float() if secret:
            return "a number"
        case int() if abs(found) >= 10**18:  # Python refuses to print those of more than 4300 digits
            return "so large a number"
        case int() | float():
            return str(found)
        case _:
            return "a date or time"


def _suggestion(keys: tuple[str | int, ...]) -> str:
    table = _table_of(keys[:-1])
    near = difflib.get_close_matches(str(keys[-1]), table.model_fields, n=1) if table else []
    return f"; did you mean {near[0]}?" if near else ""


def _table_of(keys: tuple[str | int, ...]) -> type[Table] | None:  # noqa: PLR0911 - one case, one answer
    match keys:
        case ():
            return FileTable
        case ("server",):
            return ServerTable
        case ("dashboard",):
            return DashboardTable
        case ("hooks", _):
            return HookTable
        case ("apps", _):
            return AppTable
        case (*_, "build" | "migrate", int()):
            return StepTable
        case (*_, "secret" | "secrets", int()) | (*_, "token"):
            return SecretTable
        case _:
            return None
