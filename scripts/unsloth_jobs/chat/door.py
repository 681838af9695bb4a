"""The page of a job in a browser: a browser cannot send the token that the Hub asks for, so a server on this machine does.

It answers to this machine alone, and the token never reaches the browser.
"""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

from ..jobs.backends import JobRef
from ..training.chat_request import MOST_BYTES, BadRequest
from ..training.chat_server import require_same_site
from .address import client_for

PASSED = (
    "content-type",
    "content-security-policy",
    "cache-control",
    "x-content-type-options",
    "referrer-policy",
    "retry-after",
)


class Door(ThreadingHTTPServer):
    """http://127.0.0.1:PORT, in front of a job's address."""

    daemon_threads = True

    def __init__(self, ref: JobRef, address: str, port: int = 0):
        self.client, self.address = client_for(ref), address
        super().__init__(("127.0.0.1", port), Passage)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Passage(BaseHTTPRequestHandler):
    server: Door

    def do_GET(self) -> None:
        self.pass_on(None)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        self.pass_on(self.rfile.read(min(int(length), MOST_BYTES + 1)) if length.isdigit() else b"")

    def pass_on(self, body: bytes | None) -> None:
        """To the job and back, part by part."""
        try:
            require_same_site(dict(self.headers.items()))
        except BadRequest as error:
            self.send_error(error.status, error.message)
            return
        if not self.path.startswith("/"):  # put behind an address, it would name another
            self.send_error(400)
            return
        headers = {"Content-Type": self.headers.get("Content-Type", "application/json")} if body is not None else {}
        how: dict[str, Any] = {"headers": headers} | ({"content": body} if body is not None else {})
        is_begun = False
        with contextlib.suppress(ConnectionError):  # the browser is gone
            try:
                with self.server.client.stream(self.command, f"{self.server.address}{self.path}", timeout=600, **how) as answer:
                    is_begun = True
                    self.send_response(answer.status_code)
                    for name in PASSED:
                        if name in answer.headers:
                            self.send_header(name, answer.headers[name])
                    self.end_headers()
                    for part in answer.iter_bytes():
                        self.wfile.write(part)
                        self.wfile.flush()
            except httpx2.HTTPError as error:
                if not is_begun:
                    self.send_error(502, f"The job does not answer ({type(error).__name__})")

    def log_message(self, *_: Any) -> None:
        """Nothing: what is asked is nobody else's."""
