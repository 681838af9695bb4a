"""What a client asks for, in the words of OpenAI's chat completions, and what it is answered."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CHAT_ROLES = ("system", "user", "assistant")
MOST_BYTES = 4_000_000  # of a request's body
# Of OpenAI's fields, what would change an answer and is not done here: refused, where it says anything.
NOT_DONE = {
    "tools", "functions", "tool_choice", "response_format", "logprobs", "top_logprobs", "logit_bias", "frequency_penalty",
    "presence_penalty", "audio", "prediction",
}  # fmt: skip
NEUTRAL: tuple[Any, ...] = (None, False, 0, 0.0, [], {}, {"type": "text"}, "none", "auto")


class BadRequest(Exception):
    """A request that cannot be answered: its HTTP status, and a code and a message for its sender."""

    def __init__(self, code: str, message: str, status: int = 400):
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def as_json(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class ChatRequest:
    """max_tokens: None where it was left open; temperature, top_p: None for the model's own values."""

    model: str
    messages: tuple[dict[str, str], ...]
    stream: bool = False
    with_usage: bool = False  # in the last chunk of a stream
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


def read_body(content: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises BadRequest."""
    if len(content) > MOST_BYTES:
        raise BadRequest("too_large", f"A request has at most {MOST_BYTES:,} bytes.", 413)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise BadRequest("bad_json", "The request's body is no JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("bad_json", "The request's body is no JSON object.")
    return body


def model_of(body: Mapping[str, Any], names: Iterable[str]) -> str:
    """Which model is asked. Raises BadRequest."""
    names, name = list(names), body.get("model")
    if name not in names:
        raise BadRequest("model_not_found", f"There is no model {name!r} here: {' and '.join(names)}.", 404)
    return str(name)


def read_request(body: Mapping[str, Any], names: Iterable[str]) -> ChatRequest:
    """What an engine of ours answers to. Raises BadRequest, also for what it would have to leave out in silence."""
    if asked := sorted(name for name in NOT_DONE & body.keys() if body[name] not in NEUTRAL):
        raise BadRequest("unsupported", f"{', '.join(asked)}: not supported by this server, which answers with text alone.")
    if body.get("n") not in (None, 1):
        raise BadRequest("unsupported", "n: one answer a request is given here.")
    options, stop = body.get("stream_options"), body.get("stop")
    words = (stop,) if isinstance(stop, str) else tuple(stop or ()) if isinstance(stop, list | None) else (0,)
    if not all(isinstance(word, str) and word for word in words):
        raise BadRequest("bad_value", "stop is a text, or a list of texts.")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return ChatRequest(
        model=model_of(body, names),
        messages=read_messages(body.get("messages")),
        stream=bool(body.get("stream")),
        with_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        max_tokens=whole_number(body, limit, 1),
        temperature=number_within(body, "temperature", 0, 2),
        top_p=number_within(body, "top_p", 0, 1),
        seed=whole_number(body, "seed", 0),
        stop=words,
    )


def read_messages(given: Any) -> tuple[dict[str, str], ...]:
    """Turns with a text each; parts of text are joined. Raises BadRequest."""
    if not isinstance(given, list) or not given or not all(isinstance(turn, dict) for turn in given):
        raise BadRequest("bad_messages", "messages is a list of turns, with a role and a content each, and not empty.")
    turns = []
    for turn in given:
        role = "system" if turn.get("role") == "developer" else turn.get("role")
        if role not in CHAT_ROLES:
            raise BadRequest("bad_messages", f"A turn's role is {', '.join(CHAT_ROLES)}, not {role!r}.")
        turns.append({"role": role, "content": text_of(turn.get("content"))})
    return tuple(turns)


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    is_text = [isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts]
    if not is_text or not all(is_text):
        raise BadRequest("bad_messages", "A turn's content is a text, or a list of parts of the type text.")
    return "".join(part["text"] for part in parts)


def number_within(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest("bad_value", f"{name} is a number from {low} to {high}, not {value!r}.")
    return float(value)


def whole_number(body: Mapping[str, Any], name: str, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise BadRequest("bad_value", f"{name} is a whole number from {low}, not {value!r}.")
    return value


# ---- the answer


@dataclass(frozen=True)
class Usage:
    """How an answer ended ("stop" or "length"), and its tokens."""

    finish: str
    prompt_tokens: int
    tokens: int

    def as_json(self) -> dict[str, int]:
        whole = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": whole}


class ChatCompletion:
    """Puts the parts of one answer into the shape that clients read."""

    def __init__(self, model: str):
        self.facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def chunk(self, delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return {**self.facts, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self.facts, "object": "chat.completion.chunk", "choices": [], "usage": usage.as_json()}

    def whole(self, text: str, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": usage.finish}
        return {**self.facts, "object": "chat.completion", "choices": [choice], "usage": usage.as_json()}
