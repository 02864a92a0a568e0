"""A loopback server with the part of the hub's protocol that its client uses."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from dataclasses import dataclass, field
from typing import Any

_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class HubServer:
    """Files of one repository, and how to misbehave.

    Attributes:
        commit: the full hash of the only commit
        files: content by file name; safetensors are LFS files
        status: the answer to every request for a file, if not 200
        error_code: the hub's name for that status
        cut: how many bytes of a file to send before the connection is closed
        corrupt: whether to send wrong bytes of the right size
        token: the token that is needed, if any
        requests: the (method, path) of each request
    """

    commit: str = "c" * 40
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str | None = None
    cut: int | None = None
    corrupt: bool = False
    token: str | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, as on the hub: the client follows redirects inside one
        self.cdn_url = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def downloads(self) -> int:
        """The number of requests that carried bytes of a large file."""
        return sum(
            method == "GET" and path.startswith("/lfs/") for method, path in self.requests
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        hub = self.server_state
        hub.requests.append((self.command, self.path))

        if self.path.startswith("/lfs/"):
            self._send_file(hub.files[self.path.removeprefix("/lfs/")], with_body)
            return

        match = _RESOLVE.fullmatch(self.path.partition("?")[0])
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._fail(401, None)
        elif hub.status != 200:
            self._fail(hub.status, hub.error_code)
        elif match is None:
            self._fail(404, "RepoNotFound")
        elif match["revision"] not in (hub.commit, "main"):
            self._fail(404, "RevisionNotFound")
        elif match["file"] not in hub.files:
            self._fail(404, "EntryNotFound")
        elif match["file"].endswith(".safetensors"):
            content = hub.files[match["file"]]
            self.send_response(302)
            self.send_header("Location", f"{hub.cdn_url}/lfs/{match['file']}")
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(hub.files[match["file"]], with_body)

    def _send_file(self, content: bytes, with_body: bool) -> None:
        hub = self.server_state
        # As git does it, which is what the hub states for small files
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        body = content[start:]
        if hub.corrupt:
            body = bytes(255 - byte for byte in body)

        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
            )

        self.end_headers()
        if not with_body:
            return

        if hub.cut is None:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: hub.cut])
            self.close_connection = True

    def _fail(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)

        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", self.server_state.commit)

        self.send_header("Content-Length", "0")
        self.end_headers()
