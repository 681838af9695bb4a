"""Faults on demand: a wrong answer, a slow one, or none at all."""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Drop = Literal["before", "during", "after"]
FLUSH = 0.05  # seconds for a piece to reach the client before its connection is gone


@dataclass
class Fault:
    """What to do to the next `times` requests that match (None: to all of them)."""

    method: str | None = None
    path: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str | dict | list = ""
    times: int | None = None
    delay: float = 0
    drop: Drop | None = None
    handled: bool = False
    skip: int = 0
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        wanted = self.method in (None, method) and re.search(self.path, path) is not None
        return wanted and (self.times is None or self.hits < self.times)

    def response(self) -> Response:
        is_text = isinstance(self.body, str)
        content = self.body if is_text else json.dumps(self.body)
        return Response(content, self.status or 200, self.headers, "text/plain" if is_text else "application/json")


class Faults:
    """The faults in force. The first one that matches a request is used."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        *,
        method: str | None = None,
        path: str = "",
        status: int | None = None,
        headers: dict[str, str] | None = None,
        body: str | dict | list = "",
        times: int | None = None,
        delay: float = 0,
        drop: Drop | None = None,
        handled: bool = False,
        skip: int = 0,
    ) -> Fault:
        """Answer with a `status`, wait `delay` seconds, or drop the connection.

        `path` is a regular expression. `drop="before"` closes the connection without handling the
        request, `"during"` after the first piece of the answer (of a log: its first line), `"after"`
        handles it and then never answers. `handled` handles the request before the wait and the `status`: what was
        asked for is done, and the answer says that it was not. The first `skip` requests that match are let through.
        The result's `hits` counts its uses.
        """
        fault = Fault(method, path, status, headers or {}, body, times, delay, drop, handled, skip)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not fault.matches(method, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                return fault
        return None


class FaultsMiddleware:
    """Applies `Faults`. `drop_connection` is the server's way to close a client's socket."""

    def __init__(self, app: ASGIApp, faults: Faults, drop_connection: Callable[[tuple], None]) -> None:
        self._app = app
        self._faults = faults
        self._drop_connection = drop_connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._faults.take(scope["method"], scope["path"])
        if fault is None:
            return await self._app(scope, receive, send)
        if fault.handled and not (fault.status or fault.drop):  # late, and once
            return await self._app(scope, receive, delayed(send, fault.delay))
        if fault.handled:
            await self._app(scope, receive, swallow)
        await asyncio.sleep(fault.delay)
        if fault.drop == "during":
            return await self._app(scope, receive, self._send_one_piece(scope, send))
        if fault.drop:
            if fault.drop == "after":
                await self._app(scope, receive, swallow)
            self._drop_connection(scope["client"])
            return await wait_for_disconnect(receive)
        if fault.status:
            return await fault.response()(scope, receive, send)
        await self._app(scope, receive, send)

    def _send_one_piece(self, scope: Scope, send: Send) -> Send:
        async def send_and_drop(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                await asyncio.sleep(FLUSH)
                self._drop_connection(scope["client"])

        return send_and_drop


def delayed(send: Send, seconds: float) -> Send:
    """Send that begins after so many seconds."""

    async def send_late(message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.sleep(seconds)
        await send(message)

    return send_late


async def swallow(message: Message) -> None:
    """Send nothing."""


async def wait_for_disconnect(receive: Receive) -> None:
    """Until then the server would answer a handler's silence with a 500."""
    while (await receive())["type"] != "http.disconnect":
        pass
