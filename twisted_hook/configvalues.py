"""What each value in hookdeploy.toml may be: functions from a value as it is written to the value as it is meant.

Pure: no file is opened and nothing is looked up. A value that cannot be is a ``ValueError`` whose text continues a
sentence that begins with the key. What may hold a password is never repeated in it.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, unquote, urlsplit

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"0|([0-9]{1,9})(ms|s|m|h|d)")
_SECONDS = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0})
_SHORTEST_POLL = 5.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def shown(text: str) -> str:
    """A text in quotes, short and without what a terminal would obey."""
    visible = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text[:60])
    return f'"{visible}{"…" if len(text) > 60 else ""}"'


def text(value: str) -> str:
    """Any text that can be handed to a program."""
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def line(value: str) -> str:
    """A text of one line that is not empty."""
    if not value.strip():
        raise ValueError("must not be empty")
    if _CONTROL.search(value):
        raise ValueError("must be one line without control characters")
    return value


def name(value: str) -> str:
    """The name of a hook or of an app; it becomes part of paths and addresses."""
    if not NAME.fullmatch(value):
        raise ValueError("is not a usable name: up to 64 of a-z, 0-9, _ and -, and the first is a letter or a digit")
    return value


def variable(value: str) -> str:
    """The name of an environment variable."""
    if not VARIABLE.fullmatch(value):
        raise ValueError("is not the name of an environment variable: letters, digits and _ only")
    return value


OWN_VARIABLES = frozenset(
    f"HOOKDEPLOY_{word}" for word in ("APP", "REVISION", "PREVIOUS", "BRANCH", "RELEASE", "DEPLOYMENT")
)


def declared_variable(value: str) -> str:
    """The name of a variable that an app may set for its steps and its server."""
    if value in OWN_VARIABLES:
        raise ValueError("is set by hookdeploy itself")
    if value == "GUNICORN_CMD_ARGS":
        raise ValueError('cannot be set: use gunicorn = ["…"] for arguments of gunicorn')
    return variable(value)


def file_name(value: str) -> str:
    """The name of a systemd credential."""
    if "/" in line(value) or value in {".", ".."}:
        raise ValueError("must be a name without a slash")
    return value


def path(value: str, start: Path) -> Path:
    """A path; a relative one begins at ``start``."""
    if line(value).startswith("~"):
        raise ValueError('"~" is not expanded here: write the whole path')
    return start / value


def inner_path(value: str) -> str:
    """A path inside a release. A slash at its end is kept: it says that the path is a directory."""
    components = line(value).removesuffix("/").split("/")
    if not {"", ".", ".."}.isdisjoint(components):
        raise ValueError(f'must be a path inside the repository, such as "db.sqlite3" or "media/", not {shown(value)}')
    if components[0] == ".git":
        raise ValueError("must not be .git: a release has none")
    return value


def duration(value: object) -> float:
    """Seconds, from ``500ms``, ``30s``, ``5m``, ``2h``, ``90d`` or ``0``."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        said = shown(value) if isinstance(value, str) else "a bare number" if isinstance(value, int | float) else "this"
        raise ValueError(f'must be a duration such as "500ms", "30s", "5m", "2h" or "90d", not {said}')
    return int(match[1]) * _SECONDS[match[2]] if match[1] else 0.0


def limit(value: object) -> float:
    """A duration that is a time limit, so it cannot be nothing."""
    seconds = duration(value)
    if not seconds:
        raise ValueError("must be longer than 0: it is a time limit")
    return seconds


def poll(value: object) -> float:
    """How often a remote is looked at: a duration that does not hammer it, or 0 for never."""
    seconds = duration(value)
    if 0 < seconds < _SHORTEST_POLL:
        raise ValueError(f'must be {_SHORTEST_POLL:g}s or more, or "0" for never: each look asks the remote')
    return seconds


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def network(value: str) -> str:
    """An address or a network of addresses, such as ``127.0.0.1/32``."""
    try:
        found = ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(f'must be a network such as "127.0.0.1/32", not {shown(value)}{_meant(value)}') from None
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):
        plain = ipaddress.ip_network((int(found[0]) & 0xFFFFFFFF, found.prefixlen - 96))
        raise ValueError(f"is of IPv4 addresses: write it as {shown(str(plain))}")
    return value


def _meant(value: str) -> str:
    """The network that an address with bits beyond the prefix lies in, as a hint."""
    try:
        return f": did you mean {shown(str(ipaddress.ip_network(value, strict=False)))}?"
    except ValueError:
        return ""


UNIX = "unix"
"""Stands, among trusted proxies, for what arrives on a unix socket."""
GITHUB = "github"
"""Stands, among those who may deliver, for the networks that GitHub publishes as its own."""


def proxy(value: str) -> str:
    """A network whose word on where a request comes from is believed, or ``unix``."""
    return value if value == UNIX else network(value)


def sender(value: str) -> str:
    """A network from which a hook may be delivered to, or ``github``."""
    return value if value == GITHUB else network(value)


def path_pattern(value: str) -> str:
    """A glob of git's kind for files of a repository; a ``!`` before it takes out what others let in."""
    pattern = line(value).removeprefix("!")
    if not {"", ".", ".."}.isdisjoint(pattern.removesuffix("/").split("/")):
        raise ValueError(f'must be a pattern of paths inside the repository, such as "blog/**", not {shown(value)}')
    return value


def hook_path(value: str) -> str:
    """The path that a forge posts to."""
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~@:+,=-]+)+", value) or {".", ".."} & set(value.split("/")):
        raise ValueError(f'must be a path such as "/github", of plain letters, digits and -._~, not {shown(value)}')
    if value == "/healthz":
        raise ValueError('must not be "/healthz": hookdeploy itself answers there')
    return value


def health_path(value: str) -> str:
    """The path that the health check asks for; it may have a query."""
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise ValueError(f'must be a path such as "/healthz", not {shown(value)}')
    return value


def host_name(value: str) -> str:
    """The name of a host, without a port, in lower case."""
    if len(value) > 253 or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", value):
        raise ValueError(f'must be the name of a host such as "deploy.example.com", not {shown(value)}')
    return value.lower()


def public_url(value: str) -> str:
    """Where the hooks are reached from outside, without a slash at the end."""
    return _web_address(value, such_as="https://deploy.example.com")


def api(value: str) -> str:
    """Where a forge's API is, without a slash at the end. Whoever listens in would have the token."""
    address = _web_address(value, such_as="https://github.example.com/api/v3")
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("must be https://: the token is sent there (it may be this very machine's)")
    return address


def _web_address(value: str, *, such_as: str) -> str:
    parts = _split_url(line(value))
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or " " in value:
        raise ValueError(f"must be an address such as {shown(such_as)}")
    if parts.query or parts.fragment:
        raise ValueError("must end with the host or a path: no ? and no #")
    return value.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this machine; no name but ``localhost`` is known to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split_url(value: str) -> SplitResult:
    try:
        parts = urlsplit(value)
        _ = parts.port  # only asking for it finds a port that is none
    except ValueError:
        raise ValueError("is not a valid URL") from None
    return parts


# --- what to deploy

_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?![:-])[^\s]+")


def is_scp_like(value: str) -> bool:
    """Whether git takes this for ``host:path`` and not for a path: a colon stands before the first slash."""
    head, colon, _ = value.partition(":")
    return bool(colon) and "/" not in head and "://" not in value


def repository(value: str, start: Path) -> str:
    """What git may fetch from. Never an option, a password, or a transport that runs commands (``ext::``)."""
    if line(value).startswith("-"):
        raise ValueError('must not begin with "-": git would take it for an option')
    if re.match(r"[^/:]*::", value):
        raise ValueError("names a transport that git would run as a program: use https, ssh or a path")
    if "://" in value:
        _check_url(value)
    elif is_scp_like(value):
        if not _SCP_LIKE.fullmatch(value):
            raise ValueError('must be like "git@host:owner/name.git"')
    else:
        value = str(path(value, start))
    if not name_of(value):
        raise ValueError("does not name a repository")
    return value


def _check_url(value: str) -> None:
    parts = _split_url(value)
    host = parts.hostname or ""
    if parts.scheme not in {"https", "http", "ssh", "file"}:
        raise ValueError("must be https://…, ssh://…, git@host:path or a local path")
    if parts.password is not None or ("@" in parts.netloc and parts.scheme != "ssh"):
        raise ValueError("must not hold a user name or password: they would end up in logs and process lists")
    if parts.query or parts.fragment or re.search(r"\s", value):
        raise ValueError("must not contain spaces, ? or #")
    if parts.scheme == "file":
        if host not in {"", "localhost"}:
            raise ValueError('must be like "file:///srv/git/blog.git"')
    elif not re.fullmatch(r"[a-z0-9_][a-z0-9._-]*|[0-9a-f:.]+", host) or (parts.username or "").startswith("-"):
        raise ValueError("needs a host name")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("must be https://: what comes over http:// is not protected (it may be this very machine's)")


def name_of(url: str) -> str:
    """What a forge most likely calls the repository: the last two components of the URL's path, without .git."""
    return "/".join(path_of(url)[-2:])


def path_of(url: str) -> list[str]:
    """The components of the path of a repository's URL, without .git."""
    if "://" in url:
        where = unquote(url.partition("://")[2].partition("/")[2])
    else:
        where = url.partition(":")[2] if is_scp_like(url) else url
    components = [component for component in where.split("/") if component]
    if components and components[-1] == ".git":
        components.pop()
    if components:
        components[-1] = components[-1].removesuffix(".git")
    return components


def repository_name(value: str) -> str:
    """What deliveries call a repository."""
    if re.search(r"\s", line(value)) or "://" in value:
        raise ValueError(f'must be a name such as "acme/blog", not {shown(value)}')
    return value.strip("/")


def branch(value: str) -> str:
    """A branch name that git takes (git-check-ref-format), without ``refs/heads/``."""
    if value.startswith("refs/"):
        raise ValueError(f"must be the branch's short name, such as {shown(value.rpartition('/')[2])}")
    if _is_no_ref(value) or re.search(r"[?*\[]", value) or value in {"@", "HEAD"}:
        raise ValueError(f"is not a branch name that git allows: {shown(value)}")
    return line(value)


def tag(value: str) -> str:
    """A pattern of tag names, as ``fnmatch`` and git-ls-remote read it, without ``refs/tags/``."""
    if value.startswith("refs/"):
        raise ValueError(f"must be of the tags' short names, such as {shown(value.rpartition('/')[2])}")
    if _is_no_ref(value):
        raise ValueError(f"is no pattern that the name of a tag could match: {shown(value)}")
    if not re.fullmatch(r"(?:[^\[]|\[!?[^\[\]!/]+\])+", value):
        raise ValueError(f'has a "[" that no "]" ends, or nothing or a "/" between them: {shown(value)}')
    return line(value)


def _is_no_ref(value: str) -> bool:
    """Whether git refuses this, whatever its wildcards stand for (git-check-ref-format)."""
    return (
        not value
        or re.search(r"[\x00-\x20\x7f~^:\\]|\.\.|@\{", value) is not None
        or value.startswith("-")
        or value.endswith(".")
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in value.split("/"))
    )


# --- what to run

_WSGI = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\(.*\))?")


def wsgi(value: str) -> str:
    """``module:attribute``, or ``module:factory()``, as gunicorn takes it."""
    module = value.partition(":")[0]
    if not _WSGI.fullmatch(value) or module.endswith(".py"):
        hint = module.removesuffix(".py").strip("./").replace("/", ".")
        example = f"{hint}:application" if re.fullmatch(r"[\w.]+", hint) else "wsgi:application"
        raise ValueError(f"must be module:attribute, such as {shown(example)}, not {shown(value)}")
    return value


_GUNICORN_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "--bind": "use bind: hookdeploy owns the socket",
        "--workers": "use workers",
        "--config": "gunicorn.conf.py in the repository is read already",
        "--daemon": "hookdeploy could not watch it any more",
        "--reload": "every deployment starts a new server anyway",
        "--reuse-port": "it would not use hookdeploy's socket",
        "--pid": "hookdeploy keeps track of the process itself",
        "--chdir": "the server starts in the release",
        "--user": "hookdeploy decides who it runs as",
        "--group": "hookdeploy decides who it runs as",
        "--check-config": "gunicorn would end at once",
        "--print-config": "gunicorn would end at once",
        "--version": "gunicorn would end at once",
        "--help": "gunicorn would end at once",
        "--": "gunicorn would take hookdeploy's own arguments for names of apps",
    }
)
_GUNICORN_SHORT: Mapping[str, str] = MappingProxyType(
    {
        "b": "--bind",
        "w": "--workers",
        "c": "--config",
        "D": "--daemon",
        "p": "--pid",
        "u": "--user",
        "g": "--group",
        "v": "--version",
        "h": "--help",
    }
)


def gunicorn_argument(value: str) -> str:
    """An argument of gunicorn that leaves hookdeploy in charge of socket, process and workers."""
    option = _refused_option(text(value))
    if option is not None:
        raise ValueError(f"{option} cannot be set here: {_GUNICORN_REFUSED[option]}")
    return value


def _refused_option(value: str) -> str | None:
    if value == "--":
        return value
    if value.startswith("--"):
        # gunicorn's argparse takes any beginning that is unique: --bin is --bind.
        written = value.partition("=")[0]
        return next((known for known in _GUNICORN_REFUSED if len(written) > 2 and known.startswith(written)), None)
    if value.startswith("-"):
        letters = value[1:].lstrip("R")  # the one short option without a value that is allowed, so others may follow
        return _GUNICORN_SHORT.get(letters[:1])
    return None


def argv(run: object, *, shell: bool) -> tuple[str, ...]:
    """The argument list of a step, from a string or a list. A shell is only ever asked for by name."""
    match run:
        case str():
            words = _shell_words(run) if not shell else ["/bin/sh", "-c", run]
        case [*items] if all(isinstance(item, str) for item in items):
            if shell:
                raise ValueError("with shell = true the command must be a string")
            words = [item for item in items if isinstance(item, str)]
        case _:
            raise ValueError("must be a command: a string, a list of strings, or a table with run")
    if not words or not words[0].strip() or (shell and not words[2].strip()):
        raise ValueError("must not be an empty command")
    for word in words:
        text(word)
    return tuple(words)


def _shell_words(run: str) -> list[str]:
    try:
        return shlex.split(run)
    except ValueError as error:
        problem = "a quotation mark is not closed" if "quotation" in str(error) else "it ends with a backslash"
        raise ValueError(f"cannot be split into words: {problem}") from None


FD = "{fd}"
"""What the number of the listening socket takes the place of."""


def server_command(run: object) -> tuple[str, ...]:
    """The argument list of a server that takes the listening socket as the descriptor ``{fd}``."""
    if not isinstance(run, str | list):
        raise ValueError(f'must be a command: a string or a list, such as ["uvicorn", "--fd", "{FD}", "app:app"]')
    words = argv(run, shell=False)
    if not any(FD in word for word in words):
        raise ValueError(f"must have {FD} in it: the number of the listening socket, which the server inherits")
    return words


def joined(words: Sequence[str]) -> str:
    """An argument list as one would type it."""
    return shlex.join(words)


def looks_like_shell(words: Sequence[str]) -> str | None:
    """The first word that only a shell would understand, in a step that has no shell."""
    if words[0] == "/bin/sh":
        return None
    return next((word for word in words if word in {"&&", "||", "|", ";", ">", ">>", "<", "2>&1"}), None)
