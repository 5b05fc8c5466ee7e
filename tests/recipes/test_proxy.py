"""The recipe for a proxy: the real nginx and the real Caddy, with the page's files, in front of a service."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resilient_scan import ControlService, ScanRunner, load_settings
from resilient_scan.observe.metrics import CollectorRegistry
from resilient_scan.testing import healthy
from tests.recipes.following import WAIT_TIMEOUT, Recipe, free_port
from tests.support.control import BEARER, JSON, TOKEN, Answer, alert, alertmanager, counts
from tests.support.needed import binary
from tests.support.waiting import eventually

pytestmark = pytest.mark.servers
NAME = "scan.example.org"
READ_TOKEN = "may-only-look-17"
READS = {"Authorization": f"Bearer {READ_TOKEN}"}
NGINX = """
{user}
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    {folders}
    include {site};
}}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The page's files, and a certificate for the name that they use."""
    page = Recipe("proxy", tmp_path_factory.mktemp("proxy"))
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key"]
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    page.call([binary("openssl"), "req", "-x509", *key, *names, "-days", "2", "-out", "certificate"])
    return page


@pytest.fixture(scope="module")
def service(page: Recipe) -> Iterator[ControlService]:
    settings = load_settings(page.folder / "scan.toml", environ={}).service
    assert (settings.listen, settings.token_file, settings.read_token_file) == (
        *("127.0.0.1:9108", "/etc/resilient-scan/token"),
        "/etc/resilient-scan/read-token",
    )
    with (
        ScanRunner([healthy("gamma")], listeners=()) as runner,
        ControlService(
            *(runner, TOKEN),
            registry=CollectorRegistry(),
            read_token=READ_TOKEN,
            allowed_hosts=settings.allowed_hosts,
        ) as service,
    ):
        runner.run()
        yield service


def nginx(folder: Path, service: ControlService, port: int) -> list[str]:
    """Write nginx's files, and return the command that starts it."""
    text = (folder / "nginx.conf").read_text()
    for shown, here in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (f"/etc/ssl/{NAME}.pem", str(folder / "certificate")),
        (f"/etc/ssl/{NAME}.key", str(folder / "key")),
        ("http://127.0.0.1:9108", service.url),
    ):
        assert text.count(shown) == 1
        text = text.replace(shown, here)
    (folder / "site.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "main.conf").write_text(NGINX.format(user=user, folders=folders, site=folder / "site.conf"))
    return [binary("nginx"), "-p", str(folder), "-c", str(folder / "main.conf")]


def caddy(folder: Path, service: ControlService, port: int) -> list[str]:
    """Write Caddy's file, and return the command that starts it."""
    text = (folder / "Caddyfile").read_text()
    own = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
    tls = f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {folder / 'certificate'} {folder / 'key'}"
    for shown, here in ((f"{NAME} {{", tls), ("127.0.0.1:9108", service.url.removeprefix("http://"))):
        assert text.count(shown) == 1
        text = text.replace(shown, here)
    (folder / "Caddyfile.here").write_text(own + text)
    return [binary("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile.here")]


class Proxy:
    """A proxy that runs, and how it is talked to: over TLS, by the name in its certificate."""

    def __init__(self, port: int, certificate: Path) -> None:
        self.port = port
        self._context = ssl.create_default_context(cafile=str(certificate))

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None, host: str = NAME
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_TIMEOUT)
        try:
            plain = socket.create_connection(("127.0.0.1", self.port), WAIT_TIMEOUT)
            connection.sock = self._context.wrap_socket(plain, server_hostname=NAME)
            connection.request(method, path, body, {"Host": host, **headers})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[Proxy]:
    def listens() -> bool:
        assert process.poll() is None, (folder / "proxy.log").read_text()
        with socket.socket() as wire:
            return wire.connect_ex(("127.0.0.1", port)) == 0

    environ = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "proxy.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environ)
        try:
            eventually(listens, "the proxy listens")
            yield Proxy(port, folder / "certificate")
        finally:
            process.terminate()
            process.wait(WAIT_TIMEOUT)


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, page: Recipe, service: ControlService) -> Iterator[Proxy]:
    make: Callable[[Path, ControlService, int], list[str]] = request.param
    port = free_port()
    with running(make(page.folder, service, port), page.folder, port) as proxy:
        yield proxy


def test_the_page_is_read_through_it(proxy: Proxy) -> None:
    refused = proxy.ask("GET", "/", {})
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="resilient_scan", charset="UTF-8"'
    answer = proxy.ask("GET", "/", READS)
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert b"gamma" in answer.body
    assert proxy.ask("GET", "/healthz", {}).status == 200


def test_it_is_scraped_through_it(proxy: Proxy) -> None:
    answer = proxy.ask(
        "GET", "/metrics", {**READS, "Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"}
    )
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


def test_a_webhook_comes_through_it(proxy: Proxy) -> None:
    body = json.dumps(alertmanager(alert("nobody"))).encode()
    assert proxy.ask("POST", "/alerts", {**JSON, **BEARER}, body).json == counts(unknown_scanner=1)
    chunked = {**JSON, **BEARER, "Transfer-Encoding": "chunked"}
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert proxy.ask("POST", "/alerts", chunked, sent).json == counts(unknown_scanner=1)


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (READS, 401), (BEARER, 400)])
def test_what_the_service_says_of_a_large_body_comes_back(proxy: Proxy, headers: dict[str, str], status: int) -> None:
    """Not the proxy's 502, for a connection that was closed while it still sent."""
    for _ in range(5):
        assert proxy.ask("POST", "/alerts", {**JSON, **headers}, b"x" * 1_000_000).error[0] == status


def test_a_foreign_name_gets_nobody_in(proxy: Proxy) -> None:
    answer = proxy.ask("GET", "/scanners", READS, host="evil.test")
    assert b"gamma" not in answer.body
