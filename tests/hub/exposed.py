"""The ports that a job exposes: each at an address of its own, for those who may read the job.

On the Hub that is https://JOB--PORT.hf.jobs; here it is a port of loopback. There is no container: a job that is told its port
by `--port` is told another one, which nobody else listens on.
"""

import re
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from . import errors

if TYPE_CHECKING:
    from .accounts import Accounts
    from .jobs import Job

METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS"]
DROPPED = {
    "host",
    "authorization",
    "connection",
    "transfer-encoding",
    "content-length",
}  # of a request's or an answer's headers


class ExposedPort:
    """One port of one job. url: where it is reached; real_port: where the job's process listens on this machine."""

    def __init__(self, accounts: "Accounts", job: "Job", port: int, public: bool) -> None:
        self.accounts, self.job, self.port, self.public = accounts, job, port, public
        self.real_port = free_port()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        app = Starlette(
            routes=[Route("/{path:path}", self.forward, methods=METHODS)], exception_handlers={errors.HubError: errors.handle}
        )
        options: dict[str, Any] = {"http": "h11", "lifespan": "off", "log_level": "warning", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(app, **options))
        threading.Thread(target=self._server.run, args=([self._socket],), name=f"port-{job.id}", daemon=True).start()
        while not self._server.started:
            time.sleep(0.005)

    def rewrite(self, word: str) -> str:
        return re.sub(rf"^--port={self.port}$", f"--port={self.real_port}", word)

    async def forward(self, request: Request) -> Response:
        """To the job, with the caller's token left out: it is for the Hub."""
        if not self.public and not self.accounts.require(request).user.role_in(self.job.owner):
            raise errors.forbidden("This job is another's")
        if self.job.is_finished:
            raise errors.HubError(404, "The job has ended")
        client = httpx.AsyncClient(timeout=600)
        url = f"http://127.0.0.1:{self.real_port}{request.url.path}"
        headers = {name: value for name, value in request.headers.items() if name not in DROPPED}
        asked = client.build_request(
            request.method, url, params=request.query_params, content=await request.body(), headers=headers
        )
        try:
            answer = await client.send(asked, stream=True)
        except httpx.TransportError:
            await client.aclose()
            return JSONResponse({"error": "Nothing answers on this port of the job"}, 502)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            except httpx.TransportError:  # the job has ended amid its answer
                return
            finally:
                await answer.aclose()
                await client.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in DROPPED | {"date", "server"}}
        return StreamingResponse(body(), answer.status_code, kept)

    def close(self) -> None:
        self._server.should_exit = True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
