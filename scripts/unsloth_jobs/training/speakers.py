"""Models of transformers that answer while others do: base and tuned share their weights and write at the same time.

transformers' own server (`transformers serve`, 5.17) takes no adapter, names models by their Hub ids and loads whichever a
client names, so only its generation is used here.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answer_ends import ends_of
from .chat_request import BadRequest, ChatRequest, Usage
from .contenders import Contender
from .models import load_plain_model
from .report import Stop

ANSWER_TOKENS = 1024  # where a request does not say
MOST_AT_ONCE = 8  # answers that are written at the same time: each holds a cache of what it has read
LAST = object()  # ends a queue of pieces


class FairLock:
    """Lets threads take turns in the order in which they came: a plain lock may let the same one in again and again."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.next_number = self.at = 0

    def __enter__(self) -> None:
        with self.changed:
            mine, self.next_number = self.next_number, self.next_number + 1
            self.changed.wait_for(lambda: self.at == mine)

    def __exit__(self, *_: Any) -> None:
        with self.changed:
            self.at += 1
            self.changed.notify_all()


class Weights:
    """A whole model in memory, with an adapter or without. Each forward pass has it to itself, with or without the adapter."""

    def __init__(self, contender: Contender):
        self.model = load_plain_model(contender.model, contender.revision, in_16bit=True).eval()
        self.layers: list[Any] = []
        self.adapted = False
        self.asked = threading.local()
        self.take_turns()

    def take_turns(self) -> None:
        plain, turns = self.model.forward, FairLock()

        @functools.wraps(plain)  # generate reads its signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            with turns:
                self.turn_adapter(getattr(self.asked, "adapted", False))
                return plain(*args, **kwargs)

        self.model.forward = forward

    def attach(self, contender: Contender) -> None:
        """Put the adapter on the layers, where it stays. Raises Stop where it does not fit."""
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            PeftModel.from_pretrained(self.model, contender.adapter)
        except (RuntimeError, ValueError, KeyError) as error:
            raise Stop(
                "adapter_misfit",
                f"The adapter {contender.name} does not fit {contender.model}: {str(error).strip().splitlines()[0][:300]}",
                "Pass the model that it was trained on as --base-model.",
            ) from error
        self.model.eval()
        self.layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        self.adapted = True

    def turn_adapter(self, on: bool) -> None:
        if on != self.adapted:
            for layer in self.layers:
                layer.enable_adapters(on)
            self.adapted = on

    def generate(self, adapted: bool, **how: Any) -> None:
        self.asked.adapted = adapted
        self.model.generate(**how)


@dataclass
class Speaker:
    """A model under its name: what it is asked in, and the weights that it shares with others."""

    contender: Contender
    weights: Weights
    tokenizer: Any
    room: int  # tokens of question and answer together
    writing: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MOST_AT_ONCE))

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The question's tokens by the chat template, or as plain text without one. Raises BadRequest."""
        if not self.tokenizer.chat_template:
            return self.tokenizer("\n\n".join(turn["content"] for turn in messages))["input_ids"]
        try:
            made = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        except Exception as error:  # the template's own
            raise BadRequest("refused_by_template", f"The model's chat template refuses these turns: {error}") from error
        return list(made)

    def options(self, request: ChatRequest, room: int) -> dict[str, Any]:
        how: dict[str, Any] = {"max_new_tokens": min(request.max_tokens or ANSWER_TOKENS, room)}
        if request.temperature is not None:
            how |= {"temperature": request.temperature, "do_sample": True} if request.temperature else {"do_sample": False}
        if request.top_p:
            how["top_p"] = request.top_p
        return how

    def stream(self, request: ChatRequest, given_up: threading.Event) -> Iterator[str | Usage]:
        """Pieces of the answer as they come, then its Usage. given_up: the client is gone. Raises BadRequest."""
        prompt = self.prompt(request.messages)
        if (room := self.room - len(prompt)) < 1:
            message = f"The question has {len(prompt):,} tokens, and this model reads {self.room:,} with its answer."
            raise BadRequest("context_length_exceeded", message)
        if not self.writing.acquire(blocking=False):
            raise BadRequest("busy", f"{MOST_AT_ONCE} answers are being written. Ask again in a moment.", 503)
        pieces = Pieces(self.tokenizer, ends_of(self.weights.model, self.tokenizer), request.stop, given_up)
        how = self.options(request, room)
        threading.Thread(target=self.write, args=(prompt, request.seed, how, pieces), daemon=True).start()
        yield from pieces
        yield Usage(pieces.finish, len(prompt), pieces.tokens)

    def write(self, prompt: list[int], seed: int | None, how: dict[str, Any], pieces: Pieces) -> None:
        """One answer, in a thread of its own."""
        import torch
        from transformers import StoppingCriteriaList

        try:
            if seed is not None:
                torch.manual_seed(seed % 2**63)
            ids = torch.tensor([prompt], device=self.weights.model.device)
            criteria = StoppingCriteriaList([lambda ids, scores, **_: pieces.over(ids)])
            with torch.inference_mode():
                self.weights.generate(
                    bool(self.contender.adapter),
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    streamer=pieces,
                    stopping_criteria=criteria,
                    pad_token_id=self.tokenizer.pad_token_id,
                    **how,
                )
        except Exception as error:
            pieces.fail(error)
        finally:
            self.writing.release()
            pieces.end()


class Pieces:
    """The answer that `generate` writes, token by token, as pieces of text that are whole characters."""

    def __init__(self, tokenizer: Any, ends: set[int], stop: Sequence[str], given_up: threading.Event):
        self.tokenizer, self.ends, self.stop, self.given_up = tokenizer, ends, stop, given_up
        self.ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ids: list[int] = []
        self.shown, self.tokens, self.finish = "", 0, "length"
        self.is_prompt, self.is_stopped = True, False

    @property
    def is_over(self) -> bool:
        return self.is_stopped or self.given_up.is_set()

    def over(self, ids: Any) -> Any:
        """is_over for each sequence, on their device, as generate joins it with its own criteria."""
        return ids.new_full((len(ids),), self.is_over, dtype=bool)

    def put(self, value: Any) -> None:
        """As generate calls it: first with the prompt, then with each token."""
        if self.is_prompt:
            self.is_prompt = False
            return
        for token in value.flatten().tolist():
            self.tokens += 1
            if token in self.ends:
                self.finish = "stop"
            else:
                self.ids.append(token)
        self.show(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def show(self, text: str, is_last: bool = False) -> None:
        """Hand on what is new of the text, but for what may still change: half a character, the beginning of a stop word."""
        found = [place for word in self.stop if (place := text.find(word)) >= 0]
        if found:
            text, self.finish, self.is_stopped, is_last = text[: min(found)], "stop", True, True
        if not is_last:
            held = max((len(part) for word in self.stop for part in beginnings(word) if text.endswith(part)), default=0)
            text = text[: len(text) - held]
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                return
        if len(text) > len(self.shown) and text.startswith(self.shown):
            self.ready.put(text[len(self.shown) :])
            self.shown = text

    def fail(self, error: Exception) -> None:
        self.ready.put(error)

    def end(self) -> None:
        """As generate calls it, and who writes: what was held back is shown, once."""
        if self.ids:
            self.show(self.tokenizer.decode(self.ids, skip_special_tokens=True), is_last=True)
            self.ids = []
        self.ready.put(LAST)

    def __iter__(self) -> Iterator[str]:
        while (piece := self.ready.get()) is not LAST:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def beginnings(word: str) -> Iterator[str]:
    for size in range(1, len(word)):
        yield word[:size]


def load_speakers(contenders: Mapping[str, Contender]) -> dict[str, Speaker]:
    """Each by its name. Contenders of one model share its weights. Raises Stop."""
    from transformers import AutoTokenizer

    weights: dict[tuple[str, str | None], Weights] = {}
    speakers = {}
    for name, contender in contenders.items():
        tokenizer = AutoTokenizer.from_pretrained(contender.tokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        held = weights.get(contender.place) or weights.setdefault(contender.place, Weights(contender))
        if contender.adapter:
            held.attach(contender)
        config = held.model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None) or 4096
        speakers[name] = Speaker(contender, held, tokenizer, room)
    return speakers
