"""The look at oneself: a door without TLS that the world can reach, and words that are believed too easily."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.addresses import is_open_and_plain
from twisted_hook.config import ServerConfig
from twisted_hook.configfile import load
from twisted_hook.exposure import warnings
from twisted_hook.hooks import Hook, Secret


def hook(forge: str = "github", secret: bytes = b"x" * 32) -> Hook:
    return Hook(name="main", path="/x", forge=forge, secrets=(Secret(secret),), subscriptions=())


def told(*listen: str, url: str | None = None, trusted: tuple[str, ...] = (), by: Hook | None = None) -> list[str]:
    server = ServerConfig(listen=listen, public_url=url, trusted_proxies=trusted)
    return list(warnings(server, [by or hook()], from_file=True))


class ExposureTests(SynchronousTestCase):
    """What is warned of, and what is not."""

    def test_what_is_plain_and_on_a_public_address_is_told_from_what_is_not(self) -> None:
        for listen in (
            "tcp:8000", "tcp6:8000", "tcp:80:interface=0.0.0.0", r"tcp6:80:interface=\:\:", "haproxy:tcp:8000",
            "tcp:80:interface=8.8.8.8", r"tcp6:80:interface=2606\:4700\:\:1111", "tcp:80:interface=deploy.example.com",
            r"tcp6:80:interface=\:\:ffff\:8.8.8.8",
        ):  # fmt: skip
            self.assertTrue(is_open_and_plain(listen), listen)
        for listen in (
            "tcp:80:interface=127.0.0.1", "tcp:80:interface=localhost", r"tcp6:80:interface=\:\:1", "unix:/run/x",
            "tcp:80:interface=10.1.2.3", "tcp:80:interface=192.168.0.1", r"tcp6:80:interface=fe80\:\:1%eth0",
            "haproxy:tcp:80:interface=127.0.0.1", "ssl:443:privateKey=a", "tls:certs", "systemd:domain=INET:index=0",
            r"tcp6:80:interface=\:\:ffff\:127.0.0.1", r"tcp6:80:interface=fd00\:\:1", "haproxy:tls:certs",
        ):  # fmt: skip
            self.assertFalse(is_open_and_plain(listen), listen)

    def test_a_plain_door_is_told_of_once_with_what_to_do(self) -> None:
        [said] = told("tcp:8000", "tcp6:8000", "tcp:1:interface=127.0.0.1")
        self.assertTrue(said.startswith("server.listen: tcp:8000, tcp6:8000 is plain HTTP"), said)
        for words in ("read on its way", "sent again", 'public_url = "https://…"', "ssl:", "interface=127.0.0.1"):
            self.assertIn(words, said)

    def test_without_a_file_it_is_told_by_the_variable(self) -> None:
        [said] = warnings(ServerConfig(), [hook()], from_file=False)
        self.assertTrue(said.startswith("HOOK_LISTEN: tcp:8000 is plain HTTP"), said)
        self.assertNotIn("public_url", said)

    def test_a_proxy_with_tls_is_believed_to_be_there_where_the_public_url_says_so(self) -> None:
        self.assertEqual(told("tcp:8000", url="https://deploy.example.com"), [])
        self.assertEqual(len(told("tcp:8000", url="http://deploy.example.com")), 2)

    def test_a_public_url_in_clear_warns_but_not_of_this_machine_or_a_private_network(self) -> None:
        [said] = told("unix:/x", url="http://deploy.example.com")
        self.assertTrue(said.startswith("server.public_url: "))
        for url in ("http://localhost:8000", "http://127.0.0.1", "http://10.0.0.1/x", "http://[::1]:8000", None):
            self.assertEqual(told("unix:/x", url=url), [], url)

    def test_that_a_secret_itself_can_be_read_is_told_separately(self) -> None:
        """GitLab's token travels with each delivery; a signing token, and every other forge's secret, does not."""
        [_, said] = told("tcp:8000", by=hook("gitlab"))
        self.assertTrue(said.startswith("hooks.main: GitLab sends the secret token itself"), said)
        self.assertEqual(len(told("tcp:8000", by=hook("gitlab", b"whsec_" + b"A" * 32))), 1)
        self.assertEqual(len(told("tcp:8000", by=hook("gitea"))), 1)
        self.assertEqual(told("tcp:8000", url="https://x", by=hook("gitlab")), [])

    def test_who_trusts_everybody_is_told_so(self) -> None:
        for everybody in ("0.0.0.0/0", "::/0"):
            [said] = told("unix:/x", trusted=("unix", everybody))
            self.assertTrue(said.startswith("server.trusted_proxies: "))
        self.assertEqual(told("unix:/x", trusted=("unix", "10.0.0.0/8")), [])


def test_the_smallest_configuration_is_warned_once_and_starts(tmp_path: Path) -> None:
    """The door of the quick start is plain, on every address."""
    (tmp_path / "hook.secret").touch(mode=0o600)
    (tmp_path / "hook.secret").write_text("x" * 32)
    text = 'state = "state"\n[hooks.github]\nsecrets = [{ file = "hook.secret" }]\n'
    text += f"[apps.blog]\nhook = 'github'\nrepository = {json.dumps(str(tmp_path))}\n"
    (tmp_path / "hookdeploy.toml").write_text(text)
    (said,) = load(tmp_path / "hookdeploy.toml", {"PATH": "/usr/bin:/bin"}).warnings
    assert said.startswith("server.listen: tcp:8000 is plain HTTP")
