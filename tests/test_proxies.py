"""nginx, Caddy and HAProxy in front of hookdeploy: pushes arrive as they were sent, and from where they were sent.

The configurations are those of docs/tls-and-proxies.md, with other names and ports.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.certs import Authority
from tests.installed import RELEASE, Hookdeploy, Origin, free_port, put_away
from tests.proxied import beginning_with, deliver, program, running, snippet
from tests.waiting import PATIENCE

TRUSTED = 'trusted_proxies = ["127.0.0.1/32"]'
SENDER = "127.0.0.2"
SOON_TOO_OFTEN = """
from twisted_hook.rates import Rate, Refusals
begin = Refusals.__init__
Refusals.__init__ = lambda self, rate: begin(self, Rate(burst=20, per_second=0.1))
"""
"""A rate that is exceeded however slow the machine is."""


def listening(directory: Path, endpoint: str) -> Hookdeploy:
    """A hookdeploy whose second endpoint is for the proxy."""
    plain = 'listen = ["tcp:HOOK_PORT:interface=127.0.0.1"'
    config = RELEASE.replace(f"{plain}]", f'{plain}, "{endpoint}"]\n{TRUSTED}')
    return Hookdeploy(directory, config=config, environ=beginning_with(directory, SOON_TOO_OFTEN))


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def started(tmp_path: Path, origin: Origin, request: pytest.FixtureRequest) -> Iterator[tuple[Hookdeploy, int]]:
    """A running hookdeploy, and the port that is for the proxy alone."""
    port = free_port()
    with put_away(listening(tmp_path, request.param.replace("PORT", str(port)))) as hookdeploy:
        hookdeploy.start()
        hookdeploy.first()
        yield hookdeploy, port


def nginx(directory: Path, port: int, behind: int) -> list[str]:
    server = (
        snippet("nginx").replace("443 ssl", f"127.0.0.1:{port} ssl").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    )
    server = server.replace("deploy.example.com", "localhost").replace(
        "/etc/letsencrypt/live/localhost", str(directory / "certs")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n"
        f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n{server}}}\n"
    )
    return [program("nginx"), "-p", str(directory), "-c", str(directory / "nginx.conf")]


def caddy(directory: Path, port: int, behind: int) -> list[str]:
    certs = f"{directory}/certs/fullchain.pem {directory}/certs/privkey.pem"
    beginning = f"https://localhost:{port} {{\n bind 127.0.0.1\n tls {certs}"
    site = snippet("caddy").replace("deploy.example.com {", beginning)
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    (directory / "Caddyfile").write_text(f"{{\n admin off\n auto_https disable_redirects\n}}\n{site}")
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]


def haproxy(directory: Path, port: int, behind: int, *, send: str = "send-proxy-v2") -> list[str]:
    text = (
        snippet("haproxy").replace(":443 ssl", f"127.0.0.1:{port} ssl").replace("127.0.0.1:8000", f"127.0.0.1:{behind}")
    )
    text = text.replace("/etc/haproxy/deploy.example.com.pem", f"{directory}/certs/both.pem").replace(
        "send-proxy-v2", send
    )
    both = (directory / "certs/fullchain.pem").read_bytes() + (directory / "certs/privkey.pem").read_bytes()
    (directory / "certs/both.pem").write_bytes(both)
    (directory / "haproxy.cfg").write_text(
        f"defaults\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n{text}"
    )
    return [program("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")]


def haproxy_v1(directory: Path, port: int, behind: int) -> list[str]:
    return haproxy(directory, port, behind, send="send-proxy")


def refused_until_it_is_too_often(url: str, trust: ssl.SSLContext) -> bool:
    """Deliver without a signature on one connection, from ``SENDER``."""
    transport = httpx.HTTPTransport(verify=trust, local_address=SENDER)
    with httpx.Client(transport=transport, timeout=PATIENCE, trust_env=False) as client:
        for _ in range(200):
            status = client.post(url, content=b"{}", headers={"content-type": "application/json"}).status_code
            if status == 429:
                return True
            assert status == 401
    return False


TCP = "tcp:PORT:interface=127.0.0.1"


@pytest.mark.parametrize(
    ("started", "front"),
    [
        pytest.param(TCP, nginx, id="nginx"),
        pytest.param(TCP, caddy, id="caddy"),
        pytest.param(f"haproxy:{TCP}", haproxy, id="haproxy"),
        pytest.param(f"haproxy:{TCP}", haproxy_v1, id="haproxy-v1"),
    ],
    indirect=["started"],
)
def test_pushes_arrive_through_a_proxy_and_each_sender_counts_for_itself(
    tmp_path: Path, started: tuple[Hookdeploy, int], front: object, authority: Authority
) -> None:
    """P36 through a proxy: who is refused too often is refused at once, and nobody else is."""
    hookdeploy, behind = started
    assert callable(front)
    authority.write(tmp_path / "certs", 1, "localhost")
    port, trust = free_port(), authority.client()
    url = f"https://localhost:{port}/hooks/github"
    with running(front(tmp_path, port, behind), tmp_path, port):
        told = deliver(url, "first", trust=trust, source=SENDER)
        assert (told.status_code, told.json()["status"]) == (202, "accepted")
        assert refused_until_it_is_too_often(url, trust)
        assert deliver(url, "other", trust=trust, source="127.0.0.3").status_code == 202
    assert SENDER in hookdeploy.log
    assert "Traceback" not in hookdeploy.log
