"""A record of every request, so that a test can ask what a client did and what it gave away."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT_BODY_SIZE = 1 << 20  # longer bodies are file contents, which the store holds anyway


@dataclass
class Record:
    """One request as it came in, and the status it got (None while it runs, or when it was dropped)."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = b""
    started: float = field(default_factory=time.time)
    status: int | None = None

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    def text(self, where: str) -> str:
        """`where`: `path` (with the query), `headers` or `body`, each without what must carry a token."""
        if where == "path":
            return f"{self.path}?{unquote(self.query)}"
        if where == "headers":
            return "\n".join(f"{name}: {value}" for name, value in self.headers.items() if name != "authorization")
        return self._body_without_secrets()

    def _body_without_secrets(self) -> str:
        text = self.body.decode(errors="replace")
        if self.method == "POST" and self.path.startswith("/api/jobs/") and self.body:
            text = json.dumps({key: value for key, value in self.json.items() if key != "secrets"})
        return text


class Journal:
    """The requests since the server started, or since `clear`."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self._records.append(record)

    def clear(self) -> None:
        self._records.clear()

    def requests(self, method: str | None = None, path: str | None = None) -> list[Record]:
        """The requests with this method whose path the regular expression `path` matches somewhere."""
        return [
            record
            for record in list(self._records)
            if method in (None, record.method) and (path is None or re.search(path, record.path))
        ]

    def matching(self, text: str, where: str | None = None) -> list[Record]:
        """The requests that hold a text, in `path`, `headers` or `body` (default: anywhere)."""
        places = [where] if where else ["path", "headers", "body"]
        return [record for record in list(self._records) if any(text in record.text(place) for place in places)]

    def contains(self, text: str, where: str | None = None) -> bool:
        """Whether a text was sent anywhere but in the `Authorization` header or as a job's secret."""
        return bool(self.matching(text, where))

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records))

    def __len__(self) -> int:
        return len(self._records)


async def read_body(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


class JournalMiddleware:
    """Reads the whole request first: the journal keeps it, and handlers find it in `request.state.body`."""

    def __init__(self, app: ASGIApp, journal: Journal) -> None:
        self._app = app
        self._journal = journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        record = Record(scope["method"], scope["path"], scope["query_string"].decode(), headers)
        record.body = body if len(body) <= KEPT_BODY_SIZE else b""
        self._journal.add(record)
        scope.setdefault("state", {})["body"] = body

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        await self._app(scope, receive, watch)
