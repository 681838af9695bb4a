"""What a server has answered, when it ends, and the events that say so: never what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .report import emit
from .run import cost_usd

TOLD_EVERY_S = 5.0  # at most so often, and only where something has changed


@dataclass
class Tally:
    """Counts answers. idle_s: how long nobody may ask; ends_at: in seconds since 1970, None without a timeout."""

    facts: dict[str, Any]
    idle_s: float
    ends_at: float | None
    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    writing_s: float = 0.0  # together, of the answers whose tokens are counted
    open: int = 0
    asked_at: float = field(default_factory=time.monotonic)
    told: tuple[int, ...] = ()
    told_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """One request, from its question to the end of its answer."""
        with self.lock:
            self.open += 1
        try:
            yield
        except Exception:  # a client that leaves is none
            with self.lock:
                self.failed += 1
            raise
        finally:
            with self.lock:
                self.open -= 1
                self.asked_at = time.monotonic()

    def count(self, prompt_tokens: int, tokens: int, seconds: float) -> None:
        with self.lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.tokens += tokens
            self.writing_s += seconds

    @property
    def idle_for_s(self) -> float:
        return 0.0 if self.open else time.monotonic() - self.asked_at

    def reason_to_end(self, margin_s: float, is_ready: bool = True) -> str | None:
        """Why the server should end now: its timeout is so near, or nobody has asked for long; None while it goes on."""
        if self.ends_at is not None and time.time() + margin_s > self.ends_at:
            return "timeout"
        return "idle" if is_ready and self.idle_for_s > self.idle_s else None

    def as_json(self) -> dict[str, Any]:
        pace = round(self.tokens / self.writing_s, 1) if self.writing_s else None
        counts = {name: getattr(self, name) for name in ("requests", "failed", "prompt_tokens", "tokens")}
        return counts | {"tokens_per_second": pace}

    def tell(self, at_once: bool = False) -> None:
        """The event `serving`, where something has changed since the last one."""
        now, counts = time.monotonic(), (self.requests, self.failed, self.open)
        if at_once or (counts != self.told and now - self.told_at > TOLD_EVERY_S):
            self.told, self.told_at = counts, now
            idle_ends_at = round(time.time() + self.idle_s - self.idle_for_s)
            emit(
                "serving", **self.facts, **self.as_json(), ends_at=self.ends_at, idle_ends_at=idle_ends_at, cost_usd=cost_usd()
            )
