"""hookdeploy on TLS, as its users have it: certificates that are renewed, and a forge that never stops delivering."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certs import Authority, replace
from tests.installed import RELEASE, Hookdeploy, Origin, free_port, processes_of, put_away
from tests.proxied import Stream, beginning_with, deliver, program, snippet
from tests.waiting import PATIENCE, until
from tests.wire import head

LISTEN = 'listen = ["tcp:HOOK_PORT:interface=127.0.0.1"'
SSL = "ssl:TLS_PORT:interface=127.0.0.1:privateKey=certs/privkey.pem:certKey=certs/fullchain.pem"
TLS = "tls:certs:TLS_PORT:interface=127.0.0.1"


class Secure:
    """A hookdeploy with a door on TLS beside its plain one."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.authority = Authority()
        self.certs = directory / "certs"
        self.port = free_port()
        self.authority.write(self.certs, 1, "localhost")
        endpoint = endpoint.replace("TLS_PORT", str(self.port))
        # A sender may take longer than the farewell, on a machine as busy as one that runs tests.
        environ = beginning_with(directory, "from twisted_hook import door\ndoor.FAREWELL = 14.0\n")
        config = RELEASE.replace(LISTEN, f'{LISTEN}, "{endpoint}"')
        self.hookdeploy = Hookdeploy(directory, config=config, environ=environ)
        self.url = f"https://localhost:{self.port}/hooks/github"

    def serial(self) -> int:
        with (
            socket.create_connection(("127.0.0.1", self.port), PATIENCE) as raw,
            self.authority.client().wrap_socket(raw, server_hostname="localhost") as client,
        ):
            certificate = client.getpeercert()
            assert certificate is not None
            return int(str(certificate["serialNumber"]), 16)

    def hang_up(self, said: str) -> None:
        """Have it read its configuration again."""
        count = self.hookdeploy.log.count(said)
        os.kill(self.hookdeploy.pid, signal.SIGHUP)
        until(lambda: self.hookdeploy.log.count(said) > count, repr(said))


@pytest.fixture(params=[SSL, TLS], ids=["ssl", "tls"])
def secure(tmp_path: Path, origin: Origin, request: pytest.FixtureRequest) -> Iterator[Secure]:
    made = Secure(tmp_path, request.param)
    with put_away(made.hookdeploy):
        yield made


@pytest.mark.parametrize("secure", [TLS], ids=["tls"], indirect=True)
def test_signed_pushes_over_tls_survive_upgrades_and_restarts(secure: Secure) -> None:
    """None that was accepted is lost, and no connection is refused or cut off."""
    hookdeploy = secure.hookdeploy
    hookdeploy.start()
    hookdeploy.first()
    stream = Stream(secure.url, secure.authority.client())
    with stream.flowing():
        for times in (2, 3):
            stream.goes_on()
            os.kill(hookdeploy.pid, signal.SIGUSR2)
            until(lambda times=times: hookdeploy.log.count("takes hooks on") == times, "next beginning")  # type: ignore[misc]
        for _ in range(2):
            stream.goes_on()
            hookdeploy.stop(signal.SIGQUIT)
            hookdeploy.start()
        stream.goes_on()
    assert stream.failed == []
    known = {delivery["id"] for delivery in hookdeploy.api("/deliveries", limit=1000)}
    assert set(stream.accepted) - known == set()
    assert "Traceback" not in hookdeploy.log


def test_a_reload_takes_new_certificates_and_refuses_broken_ones(secure: Secure) -> None:
    hookdeploy = secure.hookdeploy
    hookdeploy.start()
    hookdeploy.first()
    stream = Stream(secure.url, secure.authority.client())
    with stream.flowing(1):
        assert secure.serial() == 1
        secure.authority.write(secure.certs, 2, "localhost")
        secure.hang_up("the configuration was read again")
        assert secure.serial() == 2
        replace(secure.certs / "fullchain.pem", b"nonsense")
        secure.hang_up("the configuration stays as it was")
        assert secure.serial() == 2
        stream.goes_on()
    assert stream.failed == []
    assert f"{secure.certs}" in hookdeploy.log.partition("the configuration stays as it was: ")[2]
    assert "Traceback" not in hookdeploy.log


@pytest.mark.parametrize("secure", [SSL], ids=["ssl"], indirect=True)
def test_the_deploy_hook_of_certbot_brings_new_certificates(secure: Secure, tmp_path: Path) -> None:
    hookdeploy = secure.hookdeploy
    hookdeploy.start()
    secure.authority.write(tmp_path / "live", 2, "localhost")
    script = snippet("deploy hook").replace("into=/etc/hookdeploy/certs", f"into={secure.certs}")
    script = script.replace("-o hookdeploy", f"-o {os.getuid()}")
    script = script.replace("systemctl reload hookdeploy", f"kill -HUP {hookdeploy.pid}")
    environ = {**os.environ, "RENEWED_LINEAGE": str(tmp_path / "live")}
    subprocess.run(["sh"], input=script.encode(), env=environ, check=True, timeout=PATIENCE)
    hookdeploy.wait_for_log("the configuration was read again")
    assert secure.serial() == 2


@pytest.mark.parametrize(
    ("secure", "left"),
    [
        pytest.param(TLS, "neither", id="tls"),
        pytest.param(SSL, "the chain", id="ssl-chain"),
        pytest.param(SSL, "foreign key", id="ssl-foreign"),
    ],
    indirect=["secure"],
)
def test_a_start_without_a_certificate_that_can_be_served_is_refused(secure: Secure, left: str) -> None:
    chain, key = secure.certs / "fullchain.pem", secure.certs / "privkey.pem"
    if left == "foreign key":
        Authority().write(secure.certs / "other", 3, "localhost")
        (secure.certs / "other/privkey.pem").replace(key)
        shutil.rmtree(secure.certs / "other")
    else:
        key.unlink()
        if left == "neither":
            chain.unlink()
    done = secure.hookdeploy.run()
    assert done.returncode == 1
    until(lambda: not processes_of(secure.hookdeploy.directory), "end of the keeper, which holds nothing")
    said = done.stdout + done.stderr
    assert "server.listen[1]: " in said
    assert str(secure.certs) in said
    assert "Traceback" not in said


@pytest.mark.parametrize("secure", [TLS], ids=["tls"], indirect=True)
def test_openssl_is_served_and_may_not_renegotiate(secure: Secure) -> None:
    openssl = program("openssl")
    secure.hookdeploy.start()
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{secure.port}", "-servername", "localhost", "-quiet"]
    request = head("GET /healthz", {b"Connection": b"close"})
    for version in ("-tls1_2", "-tls1_3"):
        done = subprocess.run(
            [*command, version, "-ign_eof"], input=request, capture_output=True, timeout=PATIENCE, check=False
        )
        assert done.stdout.endswith(b"\r\n\r\nok"), done
    # A line with R alone asks for it.
    subprocess.run([*command[:-1], "-tls1_2"], input=b"R\n", capture_output=True, timeout=PATIENCE, check=False)
    assert deliver(secure.url, "after", trust=secure.authority.client()).status_code == 202
    assert "Traceback" not in secure.hookdeploy.log
