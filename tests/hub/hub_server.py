"""A hub of our own for the tests: the part of Hugging Face's protocol that the real client speaks, over HTTP.

Repositories are dictionaries of bytes. Metadata comes from ``/api/models``; files from
``/owner/name/resolve``, which for LFS files redirects to a "CDN" on another port, as the hub does to another
host, and that does ranges. Faults can be put in front of any request, and every request is recorded.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """``files`` maps paths to contents; ``announced`` overrides the SHA-256 that the hub gives for a path."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    branches: tuple[str, ...] = ("main",)
    announced: dict[str, str] = field(default_factory=dict)
    lfs_info: bool = True  # mirrors may leave it out of the listing
    moved_to: str = ""  # the repository's new name

    def sha256(self, path: str) -> str:
        return self.announced.get(path) or hashlib.sha256(self.files[path]).hexdigest()

    def is_lfs(self, path: str) -> bool:
        return path.endswith(LFS_EXTENSIONS)


@dataclass
class Fault:
    """What goes wrong, ``times`` times, with requests whose method and path match.

    One of: ``status`` (with ``headers``); ``cut_after`` bytes of the body, the connection is closed; ``rate``
    bytes per second; ``no_ranges``; ``shift`` ranges by bytes; ``short`` bytes are left out at the end, consistently.
    """

    match: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int = -1
    rate: float = 0
    no_ranges: bool = False
    shift: int = 0
    short: int = 0


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    cdn: bool
    sent: int = 0


class HubServer:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.token: str | None = None
        self.plain = False  # a mirror that serves files itself and tells neither sizes nor hashes of them
        self.lock = threading.Lock()
        self._hub = _serve(self, cdn=False)
        self._cdn = _serve(self, cdn=True)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn_address = f"http://localhost:{self._cdn.server_port}"  # another host

    def close(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], **options: object) -> Repo:
        self.repos[repo_id] = Repo(files, **options)  # type: ignore[arg-type]
        return self.repos[repo_id]

    def fault(self, match: str, **what: object) -> None:
        self.faults.append(Fault(match, **what))  # type: ignore[arg-type]

    def take_fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.match, line):
                    fault.times -= 1
                    return fault
        return None

    @property
    def bytes_sent(self) -> int:
        """Bytes of files that left the CDN and the hub."""
        return sum(request.sent for request in self.requests if request.method == "GET")

    def gets(self) -> list[Request]:
        """The requests for the bytes of a file, as the CDN saw them."""
        return [request for request in self.requests if request.cdn and request.method == "GET"]


def _serve(hub: HubServer, *, cdn: bool) -> ThreadingHTTPServer:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "cdn": cdn}))
    threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    cdn: bool

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        # Through a proxy, the whole address is in the request line.
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.command, url.path, parse_qs(url.query), headers, self.cdn)
        with self.hub.lock:
            self.hub.requests.append(self.request_seen)
        fault = self.hub.take_fault(f"{'CDN' if self.cdn else 'HUB'} {self.command} {unquote(url.path)}")
        if fault is not None and fault.status:
            self._error(fault.status, "", "the test says so", fault.headers)
            return
        if self.cdn:
            self._blob(url.path.removeprefix("/blobs/"), fault)
        elif url.path.startswith("/api/models/"):
            self._info(url.path.removeprefix("/api/models/"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]), fault)
        else:
            self._error(404, "", "Not Found")

    def _allowed(self, repo_id: str, *, listing: bool) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        given = self.headers.get("Authorization")
        token = self.hub.token
        good = token is not None and given in (
            f"Bearer {token}",
            f"Basic {b64encode(token.encode()).decode()}",
        )
        if given is not None and not good:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not good):
            self._error(404 if good else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not good and not listing:
            self._error(
                401 if given is None else 403,
                "GatedRepo",
                f"Access to model {repo_id} is restricted. You must be authenticated to access it.",
            )
        else:
            return repo
        return None

    def _revision(self, repo: Repo, revision: str) -> bool:
        if revision in (*repo.branches, repo.commit):
            return True
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _info(self, path: str) -> None:
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/revision/(.+))?", path)
        if match is None:
            self._error(404, "", "Not Found")
            return
        repo = self._allowed(match[1], listing=True)
        if repo is None or not self._revision(repo, unquote(match[2] or "main")):
            return
        siblings = []
        for name, content in repo.files.items():
            sibling: dict[str, object] = {"rfilename": name}
            if "blobs" in self.request_seen.query and repo.lfs_info and not self.hub.plain:
                sibling["blobId"] = git_sha1(content)
                sibling["size"] = len(content)
                if repo.is_lfs(name):
                    sibling["lfs"] = {"sha256": repo.sha256(name), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        info = {
            "_id": "0", "id": match[1], "modelId": match[1], "sha": repo.commit, "private": repo.private,
            "gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0,
            "tags": [], "siblings": siblings,
        }  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _resolve(self, repo_id: str, revision: str, path: str, fault: Fault | None) -> None:
        repo = self._allowed(repo_id, listing=False)
        if repo is None or not self._revision(repo, revision):
            return
        if repo.moved_to:
            self._send(307, {"Location": self.path.replace(repo_id, repo.moved_to, 1)}, b"")
            return
        if path not in repo.files:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        content = repo.files[path]
        if self.hub.plain:
            self._send(200, {}, b"" if self.command == "HEAD" else content)
            return
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if repo.is_lfs(path):
            sha256 = repo.sha256(path)
            blob = f"{quote(repo_id, safe='')}/{quote(path, safe='')}"
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{sha256}"',
                "ETag": f'"{git_sha1(content)}"',
                "Location": f"{self.hub.cdn_address}/blobs/{blob}?sig=1",
            }
            self._send(302, headers, b"Found. Redirecting")
        else:
            self._body(content, headers | {"ETag": f'"{git_sha1(content)}"'}, fault)

    def _blob(self, path: str, fault: Fault | None) -> None:
        repo_id, _, name = path.partition("/")
        content = self.hub.repos[unquote(repo_id)].files[unquote(name)]
        self._body(content, {"ETag": '"of the storage"'}, fault)

    def _body(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        fault = fault or Fault("")
        if fault.short:
            content = content[: -fault.short]
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not fault.no_ranges:
            start = int(asked[1]) + fault.shift
            if start >= len(content):
                self._send(416, headers | {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            status = 206
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(status, headers, content[start:], fault)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message} | (headers or {})
        if code:
            headers["X-Error-Code"] = code
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body) if fault is None or fault.cut_after < 0 else min(fault.cut_after, len(body))
        step = max(int(fault.rate / 50), 1) if fault is not None and fault.rate else 1 << 16
        for at in range(0, end, step):
            piece = body[at : min(at + step, end)]
            self.wfile.write(piece)
            self.wfile.flush()
            self.request_seen.sent += len(piece)
            if fault is not None and fault.rate:
                time.sleep(len(piece) / fault.rate)
        if end < len(body):
            self.close_connection = True
            self.connection.close()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.close()
