"""What ``hookdeploy init`` does at GitHub with a token: the webhook, the deploy key; and what ssh has to know of it.

Each step asks first, and can be repeated: what is there already is left, or brought up to date.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from twisted_hook.cli.forge import GitHubRepository
from twisted_hook.model import ForgeFailed
from twisted_hook.outward.redeliveries import leads_to

May = Callable[[str], bool]
"""Asks a person."""


@dataclass
class Outcome:
    """What came of it."""

    webhook: str = ""
    """``created`` or ``updated``; empty if it is still to be made by hand."""
    key_added: bool = False
    failures: list[str] = field(default_factory=list)


def set_up(
    github: GitHubRepository, *, payload_url: str, path: str, secret: str, key: tuple[str, str] | None, may: May
) -> Outcome:
    """Make the webhook, and add the ``key``, a title and a public key, for reading alone."""
    outcome = Outcome()
    try:
        outcome.webhook = _webhook(github, payload_url, path, secret, may)
    except (ForgeFailed, LookupError, ValueError, TypeError) as failed:
        outcome.failures.append(f"the webhook was not made: {failed}")
    try:
        outcome.key_added = key is not None and _key(github, *key, may=may)
    except ForgeFailed as failed:
        outcome.failures.append(f"the deploy key was not added: {failed}")
    return outcome


def _webhook(github: GitHubRepository, payload_url: str, path: str, secret: str, may: May) -> str:
    config = {"url": payload_url, "content_type": "json", "secret": secret, "insecure_ssl": "0"}
    public_url = payload_url.removesuffix(path)
    for webhook in github.webhooks():
        if leads_to(str((webhook.get("config") or {}).get("url", "")), path, public_url):
            if not may(f"{github.name} has a webhook for {payload_url} already. Give it the new secret"):
                return ""
            github.change_webhook(int(webhook["id"]), config)
            return "updated"
    if not may(f"Make the webhook of {github.name}, which delivers to {payload_url}"):
        return ""
    github.make_webhook(config)
    return "created"


def _key(github: GitHubRepository, title: str, public: str, *, may: May) -> bool:
    known = [str(key.get("key", "")).split()[:2] for key in github.deploy_keys()]
    if public.split()[:2] in known:
        return True
    if not may(f"Add the deploy key to {github.name}, for reading alone"):
        return False
    github.add_deploy_key(title, public)
    return True


# --- ssh


def make_key(path: Path, comment: str) -> str:
    """A new key pair without a passphrase; its public half. Raises ``OSError``."""
    command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(0, done.stderr.strip() or "ssh-keygen failed", str(path))
    return path.with_name(f"{path.name}.pub").read_text().strip()


def known_hosts() -> Path:
    """ssh goes by the account, and not by ``$HOME`` (ssh(1), FILES)."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir, ".ssh", "known_hosts")


def is_known(host: str, known: Path) -> bool:
    """Whether ssh knows a key of this host; names in the file may be hashed."""
    command = ("ssh-keygen", "-F", host, "-f", str(known))
    return known.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def introduce(host: str, github: GitHubRepository, known: Path) -> None:
    """Let ssh know the host keys that GitHub publishes over TLS. Raises ``ForgeFailed`` or ``OSError``."""
    keys = github.host_keys()
    if not keys:
        raise ForgeFailed("GitHub publishes no host keys")
    known.parent.mkdir(mode=0o700, exist_ok=True)
    before = known.read_bytes() if known.exists() else b""
    with os.fdopen(os.open(known, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        file.write("\n" * (bool(before) and not before.endswith(b"\n")))
        file.writelines(f"{host} {key}\n" for key in keys)
