"""An Ollama Modelfile for a GGUF file: the chat template in Go's language, which Ollama reads, and what ends an answer.

What stands around each turn is read off the tokenizer's own template, by rendering marked turns, and held against it on
whole conversations. A template that is no such sequence of turns gets none here: Ollama then looks at the file's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .agreement import LlamaCpp
from .report import emit

USER, ANSWER, SECOND, SYSTEM = "Qzuser", "Qzanswer", "Qzsecond", "Qzsystem"
CONVERSATIONS = (
    [("user", "Why?")],
    [("system", "Be brief."), ("user", "Why?")],
    [("user", "Why?"), ("assistant", "Because."), ("user", "And then?")],
    [("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "And then?")],
)


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around the text of each role; without: in place of a system turn; then: before an answer."""

    system: tuple[str, str] | None
    without: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    then: str

    def text(self, conversation: list[tuple[str, str]]) -> str:
        """As Ollama writes it with go_template."""
        system = next((text for role, text in conversation if role == "system"), "")
        begin, end = self.system or ("", "")
        written = begin + system + end if system else self.without
        for role, text in conversation:
            if role != "system":
                begin, end = self.user if role == "user" else self.assistant
                written += begin + text + end
        return written + self.then

    def go_template(self) -> str:
        (user, user_end), (answer, answer_end) = self.user, self.assistant
        begin, end = self.system or ("", "")
        system = f"{{{{ if .System }}}}{begin}{{{{ .System }}}}{end}{{{{ else }}}}{self.without}{{{{ end }}}}"
        return (
            f"{system if self.system else self.without}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{user_end}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ .Content }}}}{answer_end}'
            f"{{{{ end }}}}{{{{ end }}}}{self.then}"
        )


def find_turns(tokenizer: Any, adds_begin: bool) -> Turns | None:
    """The turns of a tokenizer's chat template; None where it writes conversations in another way, or there is none.

    adds_begin: whether llama.cpp puts the token before a text that begins every text: then the template must not.
    """
    if not tokenizer.chat_template:
        return None
    begin = tokenizer.bos_token if adds_begin else ""

    def render(*turns: tuple[str, str], answers: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answers)
        return text.removeprefix(begin or "")

    try:
        turns = read_turns(render)
        same = all(
            turns.text(conversation) == render(*conversation, answers=True)
            for conversation in CONVERSATIONS
            if turns.system or conversation[0][0] != "system"
        )
    except Exception:  # of any template's own: none here
        return None
    text = turns.go_template()
    literal = turns.without + turns.then + "".join([*(turns.system or ()), *turns.user, *turns.assistant])
    return turns if same and '"""' not in text and "{{" not in literal and "}}" not in literal else None


def working_turns(model: LlamaCpp, tokenizer: Any, reference: Mapping[str, Any]) -> Turns | None:
    """The turns, where llama.cpp makes of them the tokens of the tokenizer's own template, and so answers the same."""
    turns = find_turns(tokenizer, model.adds_begin)
    prompts = [turns.text([("user", question)]) for question in reference["asked"]] if turns else []
    same = [
        model.whole_tokens(prompt) == model.tokens(answer["prompt"])
        for prompt, answer in zip(prompts, reference["answers"], strict=bool(turns))
    ]
    if not turns or not all(same):
        message = "Its chat template cannot be written as Ollama's: Ollama looks for one of its own that is like it."
        emit("warning", code="no_ollama_template", message=message)
        return None
    ids = model.answer(model.whole_tokens(prompts[0]), reference["length"], reference["stops"])
    emit("ollama", prompts=len(prompts), example={"question": reference["asked"][0], "answer": model.text(ids)})
    return turns


def read_turns(render: Any) -> Turns:
    """Raises ValueError where a marked text is not there, or stands more than once."""
    asked = render(("user", USER))
    head, user_end = between(asked, USER)
    then = after(render(("user", USER), answers=True), asked)
    answered = render(("user", USER), ("assistant", ANSWER), ("user", SECOND))
    _, rest = between(answered, USER)
    middle, rest = between(rest, ANSWER)
    next_turn, _ = between(rest, SECOND)
    answer, answer_end = after(middle, user_end), between(render(("user", USER), ("assistant", ANSWER)), ANSWER)[1]
    user = after(next_turn, answer_end)
    without = before(head, user)
    try:
        begin, rest = between(render(("system", SYSTEM), ("user", USER)), SYSTEM)
        system = begin, before(between(rest, USER)[0], user)
    except Exception:  # a template without a system turn
        system = None
    return Turns(system, without, (user, user_end), (answer, answer_end), then)


def between(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise ValueError(f"{mark} stands {text.count(mark)} times")
    left, _, right = text.partition(mark)
    return left, right


def after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("it begins otherwise")
    return text[len(start) :]


def before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("it ends otherwise")
    return text[: len(text) - len(end)]


def modelfile(file: str, turns: Turns | None, stops: list[str]) -> str:
    """The text of a Modelfile beside a GGUF file."""
    lines = [f"FROM ./{file}"]
    if turns:
        lines.append(f'TEMPLATE """{turns.go_template()}"""')
    return "\n".join([*lines, *(f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops)]) + "\n"


def write_ollama_files(folder: Path, file: str, turns: Turns | None, stops: list[str]) -> list[str]:
    """A Modelfile, and what `ollama run hf.co/…` reads from a repository: template and params. Returns their names."""
    texts = {"Modelfile": modelfile(file, turns, stops), "params": json.dumps({"stop": stops}, ensure_ascii=False) + "\n"}
    if turns:
        texts["template"] = turns.go_template()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*texts]
