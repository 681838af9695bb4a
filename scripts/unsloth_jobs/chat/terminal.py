"""A chat in the terminal: one question, two answers side by side as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import UserError
from ..output import people, show_problem
from .conversation import Answer, Conversation, save_row

with contextlib.suppress(ImportError):
    import readline  # noqa: F401  # earlier questions by the arrow keys

HELP = """\
  /base, /tuned, /both   who is asked from now on
  /system TEXT           a system prompt for both; /system alone removes it
  /save [base|tuned]     append this conversation to {file}, as a row to train on: you may mend the last answer
  /new                   forget what was said
  /quit                  leave; what serves goes on"""
SHOWN_EVERY_S = 0.1
NARROW = 60  # columns, under which answers stand below each other


@dataclass
class TerminalChat:
    conversation: Conversation
    file: Path
    asked: tuple[str, ...]

    def run(self) -> None:
        """Until /quit, Ctrl-D or Ctrl-C at the prompt."""
        people.print(f"Ask {' and '.join(self.asked)}; /help says what else there is.")
        while (line := read_line("\n> ")) is not None:
            word, _, rest = line.strip().partition(" ")
            try:
                if word in ("/quit", "/exit"):
                    return
                if word.startswith("/"):
                    self.command(word[1:], rest.strip())
                elif line.strip():
                    self.ask(line.strip())
            except UserError as error:
                show_problem(error.problem)

    def command(self, name: str, rest: str) -> None:
        models = self.conversation.models
        known: dict[str, Callable[[], None]] = {
            "system": lambda: self.set_system(rest),
            "save": lambda: self.save(rest),
            "new": self.conversation.forget,
            "help": lambda: people.print(escape(HELP.format(file=self.file)), soft_wrap=True),
            "both": lambda: self.turn_to(models),
            **{model: lambda model=model: self.turn_to((model,)) for model in models},  # type: ignore[misc]
        }
        if name not in known:
            raise UserError("unknown_command", f"There is no /{name} here.", "See /help.")
        known[name]()

    def turn_to(self, models: tuple[str, ...]) -> None:
        self.asked = models
        people.print(f"Asking {' and '.join(models)}.")

    def set_system(self, text: str) -> None:
        self.conversation.system = text
        people.print("System prompt set." if text else "No system prompt.")

    def save(self, model: str) -> None:
        model = model or self.asked[-1]
        if model not in self.conversation.models:
            raise UserError("unknown_model", f"There is no model {model!r} here.", "Type /save, /save base or /save tuned.")
        self.conversation.as_row(model, "")
        right = read_line(f"The right answer (Enter: as {model} said it): ")
        if right is None:
            return
        rows = save_row(self.file, self.conversation.as_row(model, right.strip()))
        people.print(f"Saved: row {rows} of {escape(str(self.file))}", soft_wrap=True)

    def ask(self, question: str) -> None:
        answers, pool = self.conversation.ask(question, self.asked)
        try:
            if people.is_terminal:
                with Live(console=people, auto_refresh=False, vertical_overflow="visible") as live:
                    while not all(answer.ended for answer in answers):
                        live.update(side_by_side(answers), refresh=True)
                        time.sleep(SHOWN_EVERY_S)
                    live.update(side_by_side(answers), refresh=True)
            else:
                pool.shutdown(wait=True)
                people.print(side_by_side(answers))
        except KeyboardInterrupt:  # this answer is enough
            self.conversation.stopped.set()
            pool.shutdown(wait=True)


def side_by_side(answers: list[Answer]) -> Table:
    """Each answer under its model's name, with its pace."""
    narrow = people.width < NARROW
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in answers[: 1 if narrow else None]:
        grid.add_column(ratio=1)
    columns = [[Text(answer.model, "bold cyan"), Text(answer.text), Text(answer.pace, "dim")] for answer in answers]
    for row in [cells for column in columns for cells in ([cell] for cell in column)] if narrow else zip(*columns, strict=True):
        grid.add_row(*row)
    return grid


def read_line(prompt: str) -> str | None:
    """What a person types; None at the end."""
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        people.print()
        return None
