"""GitHub's archive download on loopback: what Codex's own installer reaches when HTTPS_PROXY names it."""

from __future__ import annotations

import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

HOST = "codeload.github.com"


class GitHub:
    """Serves the repositories by OWNER/NAME; `env` leads an HTTPS client to it, as long as the `with` block lasts."""

    def __init__(self, repositories: dict[str, Path], folder: Path):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST).configure_cert(tls)

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                if self.path != f"{HOST}:443":
                    return self.send_error(403)
                self.send_response(200)
                self.end_headers()
                with tls.wrap_socket(self.connection, server_side=True) as inside:
                    self.rfile, self.wfile = inside.makefile("rb"), inside.makefile("wb")
                    self.handle_one_request()
                self.close_connection = True

            def do_GET(self) -> None:
                owner, name, kind, ref = self.path.strip("/").split("/", 3)
                repository = repositories.get(f"{owner}/{name}")
                if repository is None or kind != "zip":
                    return self.send_error(404)
                archive = ["git", "archive", "--format=zip", f"--prefix={name}-{ref}/", ref]
                content = subprocess.run(archive, cwd=repository, check=True, capture_output=True).stdout
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        proxy = f"http://127.0.0.1:{self.server.server_port}"
        self.env = {"HTTPS_PROXY": proxy, "SSL_CERT_FILE": str(folder / "authority.pem")}

    def __enter__(self) -> GitHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
