"""Engines: speakers of transformers in this process, or a server of vLLM or llama.cpp behind it on a port of loopback."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .chat_request import BadRequest, ChatCompletion, Usage, read_request
from .report import Stop
from .serving_tally import Tally
from .speakers import Speaker

STARTS_WITHIN_S = 1200  # loading a large model from the Hub's storage, and vLLM's compilation
ANSWERS_WITHIN_S = 600  # between two parts of an answer
LAST_LINES = 12


class SpeakerEngine:
    """transformers."""

    def __init__(self, speakers: Mapping[str, Speaker]):
        self.speakers = speakers

    def stream(self, body: dict[str, Any], tally: Tally, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        request = read_request(body, self.speakers)
        completion, began = ChatCompletion(request.model), time.monotonic()
        pieces = self.speakers[request.model].stream(request, given_up)
        first = next(pieces)  # raises BadRequest before anything is sent
        yield completion.chunk({"role": "assistant", "content": ""})
        for piece in itertools.chain([first], pieces):
            if isinstance(piece, Usage):
                tally.count(piece.prompt_tokens, piece.tokens, time.monotonic() - began)
                yield completion.chunk({}, piece.finish)
                if request.with_usage:
                    yield completion.usage_chunk(piece)
            else:
                yield completion.chunk({"content": piece})

    def complete(self, body: dict[str, Any], tally: Tally) -> dict[str, Any]:
        request = read_request(body, self.speakers)
        completion, began = ChatCompletion(request.model), time.monotonic()
        *parts, usage = self.speakers[request.model].stream(request, threading.Event())
        assert isinstance(usage, Usage)
        tally.count(usage.prompt_tokens, usage.tokens, time.monotonic() - began)
        return completion.whole("".join(map(str, parts)), usage)

    def close(self) -> None:
        """Its threads end with the process."""


class LlamaEngine:
    """llama.cpp in this process, by llama-cpp-python: each file writes one answer at a time. Raises Stop for what is none."""

    def __init__(self, files: Mapping[str, str], context: int):
        from llama_cpp import Llama

        self.turns = {name: threading.Lock() for name in files}
        try:
            self.models = {name: Llama(file, n_ctx=context, verbose=False) for name, file in files.items()}
        except (ValueError, RuntimeError) as error:
            raise Stop(
                "no_gguf", f"llama.cpp cannot read {', '.join(files.values())}: {error}", "Pass another GGUF file."
            ) from error

    def stream(self, body: dict[str, Any], tally: Tally, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        request = read_request(body, self.models)
        how = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
        }
        asked = {name: value for name, value in how.items() if value is not None}
        with self.turns[request.model]:
            began, completion, tokens, finish = time.monotonic(), ChatCompletion(request.model), 0, "stop"
            llama = self.models[request.model]
            try:
                chunks = llama.create_chat_completion(list(request.messages), stop=list(request.stop), stream=True, **asked)
                for chunk in chunks:
                    [choice] = chunk["choices"]
                    tokens += bool(choice["delta"].get("content"))
                    finish = choice["finish_reason"] or finish
                    yield completion.chunk(choice["delta"], choice["finish_reason"])
                    if given_up.is_set():
                        return
            except ValueError as error:  # its own word for a question that is too long
                raise BadRequest("context_length_exceeded", str(error)) from error
            usage = Usage(finish, max(llama.n_tokens - tokens, 0), tokens)
            tally.count(usage.prompt_tokens, usage.tokens, time.monotonic() - began)
            if request.with_usage:
                yield completion.usage_chunk(usage)

    def complete(self, body: dict[str, Any], tally: Tally) -> dict[str, Any]:
        *chunks, last = self.stream(body | {"stream_options": {"include_usage": True}}, tally, threading.Event())
        choices = [chunk["choices"][0] for chunk in chunks]
        finish = next((choice["finish_reason"] for choice in reversed(choices) if choice["finish_reason"]), "stop")
        usage = Usage(finish, last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"])
        return ChatCompletion(body["model"]).whole("".join(choice["delta"].get("content") or "" for choice in choices), usage)

    def close(self) -> None:
        """It ends with the process."""


class Upstream:
    """A server that speaks OpenAI's API itself: started here, asked on loopback, ended with this process.

    health: the path that answers 200 once it is ready. Its output goes to this process's own.
    """

    def __init__(self, command: Sequence[str], port: int, health: str):
        self.port, self.health = port, health
        self.lines: list[str] = []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(list(command), text=True, errors="replace", **pipes)
        threading.Thread(target=self.read_output, daemon=True).start()

    def read_output(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            print(line, end="", flush=True)
            self.lines = [*self.lines, line.strip()][-LAST_LINES:]

    def wait_until_ready(self, name: str) -> None:
        """Raises Stop where it ends before it answers, or does not in time."""
        until = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                last = next((line for line in reversed(self.lines) if line), "(no output)")
                raise Stop(
                    "engine_failed",
                    f"{name} ended with exit code {self.process.returncode} before it answered: {last[:300]}",
                    "Serve it with --engine transformers, or on a flavor with more memory. The log says more.",
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection, answer = self.ask("GET", self.health, None, timeout=5)
                with contextlib.closing(connection):
                    if answer.status == 200:
                        return
            time.sleep(0.5)
        raise Stop("engine_failed", f"{name} did not answer within {STARTS_WITHIN_S // 60} minutes.", "The log says more.")

    def ask(self, method: str, path: str, body: Any, timeout: float = ANSWERS_WITHIN_S) -> tuple[Any, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def chat(self, body: dict[str, Any]) -> tuple[Any, Any]:
        """The upstream's answer to a request. Raises BadRequest with what it says where it refuses."""
        connection, answer = self.ask("POST", "/v1/chat/completions", body)
        if answer.status == 200:
            return connection, answer
        with contextlib.closing(connection), contextlib.suppress(ValueError, AttributeError):
            found = json.loads(answer.read())
            said = found.get("error") if isinstance(found.get("error"), dict) else found
            raise BadRequest(str(said.get("code") or "refused"), str(said.get("message") or said)[:2000], answer.status)
        raise BadRequest("refused", f"The engine answered {answer.status}.", answer.status)

    def stream(self, body: dict[str, Any], tally: Tally, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        name, options = body["model"], body.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage")
        usage: dict[str, Any] = {}
        began, pieces = time.monotonic(), 0
        connection, answer = self.chat(body | {"stream_options": {"include_usage": True}})
        with contextlib.closing(connection):
            for line in answer:
                if given_up.is_set():
                    return  # the connection is closed, which ends the answer there
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:]) | {"model": name}
                pieces += bool(chunk.get("choices"))
                usage = chunk.get("usage") or usage
                if chunk.get("choices") or wants_usage:
                    yield chunk
        tokens = usage.get("completion_tokens") or pieces
        tally.count(usage.get("prompt_tokens") or 0, tokens, time.monotonic() - began)

    def complete(self, body: dict[str, Any], tally: Tally) -> dict[str, Any]:
        began = time.monotonic()
        connection, answer = self.chat(body)
        with contextlib.closing(connection):
            found = json.loads(answer.read())
        usage = found.get("usage") or {}
        seconds = time.monotonic() - began
        tally.count(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, seconds)
        return found | {"model": body["model"]}

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Upstreams:
    """Each name with the server that answers under it; two names may share one."""

    def __init__(self, by_name: Mapping[str, Upstream]):
        self.by_name = by_name

    def stream(self, body: dict[str, Any], tally: Tally, given_up: threading.Event) -> Iterator[dict[str, Any]]:
        return self.by_name[body["model"]].stream(body, tally, given_up)

    def complete(self, body: dict[str, Any], tally: Tally) -> dict[str, Any]:
        return self.by_name[body["model"]].complete(body, tally)

    def close(self) -> None:
        for upstream in {id(one): one for one in self.by_name.values()}.values():
            upstream.close()
