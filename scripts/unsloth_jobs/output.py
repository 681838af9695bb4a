"""What a command prints: tables and sentences for people on a terminal, one JSON object for programs."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, NoReturn

import typer
from huggingface_hub.constants import HF_HOME
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from .errors import Problem, UserError
from .redaction import plain, redact

# What steers a terminal, turns the order of letters or is half a character, and what is shown instead: ␛ for escape.
UNSEEN = (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
STEERING = dict.fromkeys(UNSEEN, "\N{REPLACEMENT CHARACTER}")
STEERING |= {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}


def visible(text: str) -> str:
    """text with a picture in the place of each control character: an id, a row or a log line may hold any."""
    return text.translate(STEERING)


class SafeConsole(Console):
    """A console on which only its own styles steer the terminal, never the text that it is given."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


# Off a terminal lines are not folded at 80: an id that is cut cannot be copied.
people = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 160)
diagnostics = SafeConsole(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)
EXTRA_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def application(help: str) -> typer.Typer:
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows knows few characters: ? in the place of the others
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return typer.Typer(help=help, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> NoReturn:
    """Run a script's command, and end its process at once, with its exit code. A traceback has no secrets.

    pyarrow's threads go on reading ahead in what was streamed: in the common way, some interpreters abort while they end
    (SIGABRT, exit code -6), after all output and whatever the command had found.
    """
    code: Any = 1
    try:
        app()
    except SystemExit as end:
        code = end.code
    except BaseException:
        with contextlib.suppress(OSError, AttributeError):
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed by its reader, or there is none
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def print_json(data: dict[str, Any]) -> None:
    print(redact(escaped(json.dumps(without_nan(data), ensure_ascii=False, default=str))), flush=True)


def escaped(text: str) -> str:
    """JSON with what `visible` would replace written as \\u…: the same JSON, harmless to a terminal."""
    return text.translate({code: f"\\u{code:04x}" for code in STEERING})


def without_nan(value: Any) -> Any:
    """A value with null for NaN and infinity, which JSON does not know: a loss may be one."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return {name: without_nan(item) for name, item in value.items()} if isinstance(value, dict) else value


def show_problem(problem: Problem) -> None:
    """A problem and its fix in a line each: a line break in what they quote must not begin one that looks like ours."""
    colour = "red" if problem.severity == "error" else "yellow"
    message, fix = (escape(" ".join(plain(text).splitlines())) for text in (problem.message, problem.fix))
    diagnostics.print(f"[{colour}]{problem.severity}[/] [bold]{problem.code}[/]: {message}")
    diagnostics.print(f"  → {fix}")


# A disk that is full or read-only, a folder of someone else's, a file where a folder should be.
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
NO_TEMPORARY = "No usable temporary directory"  # as Python says it


def unwritable(error: OSError) -> UserError:
    """What to say where a library could not keep what it downloads."""
    if NO_TEMPORARY in str(error):
        message = "No folder for temporary files can be written to: the disk may be full or read-only."
        return UserError(
            "cache_unwritable", message, "Make room on it, or set TMPDIR and HF_HOME to folders that can be written to."
        )
    return UserError(
        "cache_unwritable",
        f"{error.filename or f'A file in {HF_HOME}'} cannot be written or read: {error.strerror or error}.",
        "Make room or give write access there, or set HF_HOME to a folder that can be written to.",
    )


def end(error: UserError, json: bool) -> NoReturn:
    if json:
        print_json({"ok": False, "problems": [asdict(error.problem)]})
    show_problem(error.problem)
    raise typer.Exit(error.exit_code) from error


def ends_clearly(command: Callable) -> Callable:
    """A command whose UserError becomes a problem on stderr, an object with `ok: false` under --json, an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set while its libraries are imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command(*args, **kwargs)
        except UserError as error:
            end(error, bool(kwargs.get("json")))
        except BrokenPipeError:  # the reader of our output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in NO_PLACE and NO_TEMPORARY not in str(error):
                raise
            end(unwritable(error), bool(kwargs.get("json")))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return wrapped


def table(*columns: str, title: str | None = None) -> Table:
    made = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column.endswith(("GB", "h", "$")) else "left")
    return made


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "–"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min" + (f" {seconds % 60} s" if seconds % 60 else "")
    return f"{seconds // 3600} h" + (f" {seconds % 3600 // 60} min" if seconds % 3600 >= 60 else "")


def span(low: float, high: float) -> str:
    """A range of hours, in minutes where it is short."""
    return f"{low * 60:.0f}–{high * 60:.0f} min" if high < 1.5 else f"{low:.1f}–{high:.1f} h"


def dollars(amount: float) -> str:
    """Cents, and below ten of them their fractions: a short run costs less than one."""
    return f"${amount:.2f}" if amount == 0 or amount >= 0.1 else f"${amount:.4f}"
