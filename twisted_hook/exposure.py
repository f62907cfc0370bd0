"""Whether the door is open to the world without TLS, and to whom it is shut by mistake: a look at oneself.

Pure: it reads the configuration and warns; it refuses nothing, connects to nothing and looks no name up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from twisted_hook.addresses import is_of_this_machine, is_open_and_plain
from twisted_hook.config import DashboardConfig, ServerConfig
from twisted_hook.configvalues import UNIX
from twisted_hook.forges.standard import PREFIX
from twisted_hook.hooks import Hook

_CURE = (
    'Put a proxy with TLS in front and set public_url = "https://…", or listen on ssl: or tls:, '
    "or add :interface=127.0.0.1 if nobody else is to reach it"
)
_CURE_WITHOUT_FILE = (
    "Put a proxy with TLS in front and set HOOK_LISTEN=tcp:8000:interface=127.0.0.1, or listen on ssl: or tls:"
)


def warnings_of_dashboard(dashboard: DashboardConfig, *, from_file: bool) -> Iterator[str]:
    """The same of the dashboard's port."""
    where = "dashboard.listen" if from_file else "DASHBOARD_LISTEN"
    if plain := [listen for listen in dashboard.listen if is_open_and_plain(listen)]:
        yield (
            f"{where}: {', '.join(plain)} is plain HTTP, open to any network: whoever reads along can do all that you "
            "can. Add :interface=127.0.0.1 and come by ssh -L or through a proxy with TLS, or listen on ssl: or tls:"
        )


def warnings(server: ServerConfig, hooks: Iterable[Hook], *, from_file: bool) -> Iterator[str]:
    """What a person should know, in words; without a file the environment is the configuration."""
    where, cure = ("server.listen", _CURE) if from_file else ("HOOK_LISTEN", _CURE_WITHOUT_FILE)
    plain = [listen for listen in server.listen if is_open_and_plain(listen)]
    behind_tls = (server.public_url or "").startswith("https://")
    if plain and not behind_tls:
        yield (
            f"{where}: {', '.join(plain)} is plain HTTP, open to any network: what is pushed can be "
            f"read on its way, and a delivery be sent again by whoever has read it. {cure}"
        )
    if named := _plain_public(server.public_url):
        yield (
            f"server.public_url: forges are to deliver to {named} in clear, where others can read along; "
            "make it https:// once there is TLS"
        )
    if named or (plain and not behind_tls):
        yield from _readable_secrets(hooks)
    if any(proxy != UNIX and ip_network(proxy).prefixlen == 0 for proxy in server.trusted_proxies):
        yield "server.trusted_proxies: with all addresses trusted, anybody may claim any address; name the proxies only"
    yield from _unseen_senders(server, hooks)


def _unseen_senders(server: ServerConfig, hooks: Iterable[Hook]) -> Iterator[str]:
    """What comes through a proxy on this machine comes from there, or from nowhere, unless the proxy is believed."""
    local = [listen for listen in server.listen if is_of_this_machine(listen)]
    for hook in hooks:
        here = any(network.is_loopback for network in hook.networks)
        if local and not server.trusted_proxies and not here and (hook.networks or hook.published):
            yield (
                f"hooks.{hook.name}.only_from: at {', '.join(local)} no sender's own address is seen; name the proxy "
                'that passes it on in server.trusted_proxies ("127.0.0.1/32", or "unix")'
            )


def _plain_public(url: str | None) -> str | None:
    """The address, if it is plain HTTP and not known to be on this machine or in a private network."""
    parts = urlsplit(url or "")
    if url is None or parts.scheme != "http" or parts.hostname in (None, "localhost"):
        return None
    try:
        return url if ip_address(parts.hostname or "").is_global else None
    except ValueError:
        return url


def _readable_secrets(hooks: Iterable[Hook]) -> Iterator[str]:
    """GitLab's secret token is sent with each delivery; all other secrets only sign."""
    for hook in hooks:
        if hook.forge == "gitlab" and not all(key.startswith(PREFIX) for key in hook.keys):
            yield (
                f"hooks.{hook.name}: GitLab sends the secret token itself with each delivery, so whoever reads along "
                "has it and can deliver what they like; take a signing token (whsec_…) until there is TLS"
            )
