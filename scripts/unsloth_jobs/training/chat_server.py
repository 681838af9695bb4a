"""The server: a page and an OpenAI-compatible API in front of an engine, which ends itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from .chat_page import PAGE, policy
from .chat_request import MOST_BYTES, BadRequest, model_of, read_body
from .report import Stop, print_traceback
from .serving_tally import Tally

CHECKS_EVERY_S = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Engine(Protocol):
    """What answers. Each method raises BadRequest."""

    def stream(self, body: dict[str, Any], tally: Tally, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        """The answer as chunks of OpenAI's shape; counts it once it is whole. given_up: the client is gone."""

    def complete(self, body: dict[str, Any], tally: Tally) -> dict[str, Any]:
        """The answer in one."""

    def close(self) -> None: ...


class ChatServer:
    """Answers from its first second: 503 until the engine is ready. load: makes the engine, in a thread of its own."""

    def __init__(self, names: list[str], tally: Tally, load: Callable[[], Engine], only_loopback: bool):
        self.names, self.tally, self.load, self.only_loopback = names, tally, load, only_loopback
        self.engine: Engine | None = None
        self.failure: BaseException | None = None

    # ---- requests

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.routing import Route

        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        from starlette.exceptions import HTTPException

        handlers: dict[Any, Any] = {BadRequest: self.refuse, HTTPException: self.unknown}
        return Starlette(routes=routes, exception_handlers=handlers)

    def answer(self, body: Any, status: int = 200) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse(body, status, HEADERS | ({"Retry-After": "5"} if status == 503 else {}))

    async def refuse(self, _: Any, error: Any) -> Any:
        return self.answer(error.as_json(), error.status)

    async def unknown(self, request: Any, error: Any) -> Any:
        message = f"{request.method} {request.url.path}: there is /, /health, /v1/models and POST /v1/chat/completions."
        return self.answer(BadRequest("not_found", message, error.status_code).as_json(), error.status_code)

    async def page(self, request: Any) -> Any:
        from starlette.responses import HTMLResponse

        self.require_own(request)
        return HTMLResponse(PAGE, headers=HEADERS | {"Content-Security-Policy": policy(PAGE)})

    async def health(self, request: Any) -> Any:
        self.require_own(request)
        state = {"status": "ready" if self.engine else "loading", "models": self.names, "ends_at": self.tally.ends_at}
        return self.answer(state | self.tally.as_json(), 200 if self.engine else 503)

    async def models(self, request: Any) -> Any:
        self.require_own(request)
        about = {"object": "model", "created": int(time.time()), "owned_by": "unsloth-jobs"}
        return self.answer({"object": "list", "data": [{"id": name, **about} for name in self.names]})

    def require_own(self, request: Any) -> None:
        if self.only_loopback:
            require_same_site(request.headers)

    async def chat(self, request: Any) -> Any:
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import StreamingResponse

        self.require_own(request)
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise BadRequest("bad_json", "Send JSON, with the header Content-Type: application/json.", 415)
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > MOST_BYTES:
                break
        body = read_body(content)
        model_of(body, self.names)
        if self.engine is None:
            raise BadRequest("loading", "The model is being loaded. Ask again in a few seconds.", 503)
        if not body.get("stream"):
            return self.answer(await run_in_threadpool(self.complete, body))
        given_up = threading.Event()
        chunks = self.engine.stream(body, self.tally, given_up)
        with self.tally.answering():
            first = await run_in_threadpool(
                guarded, lambda: next(chunks)
            )  # a request that is refused gets its own status, not a stream
        lines = self.lines(first, chunks, given_up)
        return StreamingResponse(lines, headers=HEADERS, media_type="text/event-stream")

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.engine
        with self.tally.answering():
            return guarded(lambda: self.engine.complete(body, self.tally))  # type: ignore[union-attr]

    async def lines(self, first: Any, chunks: Iterator[Any], given_up: threading.Event) -> AsyncIterator[str]:
        """Server-sent events. What fails amid an answer is said in one of them: the status is long sent."""
        from starlette.concurrency import iterate_in_threadpool

        with self.tally.answering():
            try:
                yield event_line(first)
                async for chunk in iterate_in_threadpool(chunks):
                    yield event_line(chunk)
                yield "data: [DONE]\n\n"
            except BadRequest as error:
                yield event_line(error.as_json())
            except Exception as error:
                print_traceback(with_text=False)
                yield event_line(failure_of(error).as_json())
            finally:
                given_up.set()

    # ---- life

    def serve(self, sockets: list[Any], margin_s: float) -> str:
        """Answer until the timeout is near or nobody has asked for long; why it ended. Raises what loading raised."""
        import uvicorn

        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "off", "server_header": False}
        server = uvicorn.Server(uvicorn.Config(self.app(), timeout_graceful_shutdown=3, **options))
        reasons: list[str] = []
        threading.Thread(target=self.make_ready, daemon=True).start()

        async def run() -> None:
            watching = asyncio.create_task(self.watch(server, margin_s, reasons))
            await server.serve(sockets)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

        try:
            asyncio.run(run())
        except KeyboardInterrupt:
            reasons.append("cancelled")
        finally:
            if self.engine:
                self.engine.close()
        if self.failure:
            raise self.failure
        return reasons[0] if reasons else "cancelled"

    def make_ready(self) -> None:
        try:
            self.engine = self.load()
            self.tally.asked_at = time.monotonic()
            self.tally.tell(at_once=True)
        except BaseException as error:  # raised again where the server was started
            self.failure = error

    async def watch(self, server: Any, margin_s: float, reasons: list[str]) -> None:
        while not server.should_exit:
            await asyncio.sleep(CHECKS_EVERY_S)
            reason = "failed" if self.failure else self.tally.reason_to_end(margin_s, is_ready=self.engine is not None)
            if reason:
                reasons.append(reason)
                server.should_exit = True
            elif self.engine:
                self.tally.tell()


def require_same_site(headers: Mapping[str, str]) -> None:
    """Raises BadRequest for what a page of another site makes a browser send to a server on this machine."""
    named = {name.lower(): value for name, value in headers.items()}
    host, origin = named.get("host", ""), named.get("origin")
    if host.rsplit(":", 1)[0].strip("[]") not in LOOPBACK:
        raise BadRequest("foreign_host", "Only 127.0.0.1 and localhost are answered to.", 403)
    if origin and origin.partition("://")[2] != host:
        raise BadRequest("foreign_origin", "A page of another site may not ask here.", 403)


def event_line(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def failure_of(error: Exception) -> BadRequest:
    """What to say of an error of the engine's, whose text may quote the question."""
    return BadRequest("engine_failed", f"The engine failed ({type(error).__name__}). The log says more.", 500)


def guarded(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except BadRequest:
        raise
    except Exception as error:
        print_traceback(with_text=False)
        raise failure_of(error) from error


def bind(host: str, port: int) -> Any:
    """A socket that listens; port 0: any that is free. Raises Stop where it is taken."""
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except OSError as error:
        raise Stop(
            "port_in_use",
            f"Port {port} of {host} cannot be listened on: {error.strerror or error}.",
            "Pass --port 0: any free one.",
        ) from error
