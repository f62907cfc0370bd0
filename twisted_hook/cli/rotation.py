"""The next secret of a hook: what it looks like, where it is written in a hookdeploy.toml, and what is to be done then.

Pure: text goes in, text comes out. What is written comes back only if the whole file then means what it meant before,
and the new secret; comments and layout stay as they are.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Array

from twisted_hook.cli.forgepages import PAGES
from twisted_hook.cli.starter import toml_string
from twisted_hook.config import Config, HookConfig, SecretSource, read
from twisted_hook.forges.standard import PREFIX

_ENDS_IN_COMMENT = re.compile(r"\n([ \t]*)#[^\n]*\s*\]$")
"""A list whose last line is a comment: there tomlkit 0.15 forgets the comma before what it appends."""


class CannotBeWritten(Exception):
    """The file is written in a way that only its author can add to."""


def new_secret(forge: str, present: Sequence[bytes]) -> str:
    """A secret of 256 random bits, of the kind that the forge wants, or that the hook has."""
    signs = forge == "standard" or (forge == "gitlab" and any(each.startswith(PREFIX) for each in present))
    if signs:
        return PREFIX.decode() + b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)


def with_secret(text: str, base: Path, hook: HookConfig, file: str) -> str:
    """The text of a good hookdeploy.toml with one more secret of this hook, which is last. Raises ``CannotBeWritten``.

    ``file`` is its path as it is to be written, and ``base`` the directory of the hookdeploy.toml.
    """
    try:
        document = tomlkit.parse(text)
        _add(document, hook, file)
        written = tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CannotBeWritten from error
    before, after = read(text, base).config, read(written, base).config
    if before is None or after is None or _meaning(after) != _meaning(_expected(before, hook.name, base / file)):
        raise CannotBeWritten
    return written


def _add(document: Mapping[str, Any], hook: HookConfig, file: str) -> None:
    """Put the file behind the other secrets of the hook, in the way in which they are written."""
    own = hook.secrets[0].where.startswith("apps.")
    table, key = (document["apps"][hook.name], "secret") if own else (document["hooks"][hook.name], "secrets")
    source = tomlkit.value(f"{{ file = {toml_string(file)} }}")
    match table[key]:
        case AoT() as tables:
            tables.append(tomlkit.item({"file": file}))
        case Array() as listed:
            if comment := _ENDS_IN_COMMENT.search(listed.as_string()):
                listed.add_line(source, indent=comment[1])
            else:
                listed.append(source)
        case single:
            first = tomlkit.inline_table()
            first.update(single.unwrap())
            table[key] = tomlkit.array()
            table[key].extend([first, source])


def _expected(config: Config, name: str, file: Path) -> Config:
    new = SecretSource(file=file)
    hooks = (replace(hook, secrets=(*hook.secrets, new)) if hook.name == name else hook for hook in config.hooks)
    return replace(config, hooks=tuple(hooks))


def _meaning(config: Config) -> Config:
    """The configuration without where in the file each secret is written."""
    return replace(
        config,
        hooks=tuple(
            replace(hook, secrets=tuple(replace(secret, where="") for secret in hook.secrets)) for hook in config.hooks
        ),
    )


# --- what to do then


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new secret that stands in the configuration."""

    hook: HookConfig
    secret: str = field(repr=False)
    file: Path
    config: Path
    address: str
    """What the forge calls the webhook by."""
    pid: int | None
    """Of the server, if it runs."""

    def steps(self) -> Iterator[str]:
        """What a person does next, in this order, so that no delivery is refused meanwhile."""
        pages = PAGES[self.hook.forge]
        label = pages.secret
        if self.hook.forge == "gitlab" and self.secret.startswith(PREFIX.decode()):
            label = "Signing token"
        kept = ", ".join(source.words for source in self.hook.secrets)
        yield f"{self.file} holds the new secret of the hook {self.hook.name}, and {self.config} names it."
        yield f"What was there stays valid: {kept}."
        yield ""
        yield "1. Let the server read it:"
        if self.pid is None:
            yield "     it does not run, and its next start reads it"
        else:
            yield f"     sudo systemctl reload hookdeploy   (or kill -HUP {self.pid})"
        yield f"2. At {pages.name}, {pages.editing}, of every webhook that delivers to {self.address}:"
        yield f"     {label}   {self.secret}"
        yield "3. After the next push, or a redelivery, see that it has taken over:"
        yield f"     hookdeploy status --config {self.config}"
        yield f"4. Then remove the old one ({kept}) from {self.config}, and reload once more."
