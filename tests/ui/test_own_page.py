"""The tab by itself answers its own page and nobody else, and serves nothing that the page does not show."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("gradio")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "http://evil.example"


@dataclass
class Site:
    address: str
    secret: Path

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    def is_up(self) -> bool:
        """And closed to others, which it is a moment after it is up."""
        try:
            return "access-control-allow-origin" not in self.get("/", Origin=f"http://{self.host}")[1]
        except OSError:
            return False

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """``headers`` with _ for -."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("start")
    secret = folder / "secret.txt"
    secret.write_text("nobody's business")
    (folder / "VAE").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vae_lib", "ui", "--no-browser", "--port", str(port), "--folder", "VAE"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths})
    try:
        site = Site(f"http://127.0.0.1:{port}/", secret)
        end = time.monotonic() + 120
        while not site.is_up():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        yield site
    finally:
        process.kill()
        process.wait()


def test_the_page_itself_is_answered(site: Site) -> None:
    for headers in ({}, {"Origin": f"http://{site.host}"}, {"Sec_Fetch_Site": "same-origin"}):
        status, answered, body = site.get("/", **headers)
        assert (status, b"VAE Guard" in body) == (200, True)
        assert "access-control-allow-origin" not in answered
    port = site.host.partition(":")[2]
    assert site.get("/config", Host=f"localhost:{port}")[0] == 200
    opened_from_a_link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert site.get("/", **opened_from_a_link)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Host": "evil.example"}, {"Host": "]"},
        {"Host": "127.0.0.1.evil.example:7870"}, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/config", "/file=secret.txt"])
def test_others_are_refused(site: Site, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        status, answered, body = site.get(path, method, **headers)
        assert status == 403
        assert "access-control-allow-origin" not in answered
        assert body == b"This page answers only itself, at http://127.0.0.1 or http://localhost; open it there."


def test_a_websocket_of_another_page_is_refused(site: Site) -> None:
    asked = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": EVIL,
    }  # fmt: skip
    assert site.get("/queue/join", **asked)[0] == 403


def test_nothing_below_the_folder_that_it_was_started_in_is_served(site: Site) -> None:
    for name in (str(site.secret), "secret.txt", "./secret.txt", f"{site.secret.parent}/VAE/../secret.txt"):
        for form in ("/file=", "/file/"):
            status, _, body = site.get(form + quote(name))
            assert (status >= 400, b"business" in body) == (True, False), (form, name)


@pytest.mark.skipif(CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium here")
def test_a_page_of_another_origin_in_the_same_browser(site: Site) -> None:
    from playwright.sync_api import sync_playwright

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    tried = """async (address) => {
        const said = []
        for (const path of ['/', '/config', '/file=secret.txt'])
            said.push(await fetch(address + path).then(answer => answer.text(), () => 'refused'))
        const socket = new WebSocket(address.replace('http', 'ws') + '/queue/join')
        said.push(await new Promise(done => {
            socket.onopen = () => done('open')
            socket.onerror = () => done('refused')
        }))
        return said
    }"""
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{other.server_port}/")
            assert page.evaluate(tried, site.address.rstrip("/")) == ["refused"] * 4
            page.goto(site.address)
            page.locator("#vg_tabs").wait_for()
            browser.close()
    finally:
        other.shutdown()
        other.server_close()
