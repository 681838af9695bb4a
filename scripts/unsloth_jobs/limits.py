"""Bounds for code that comes with a model: its chat template is a program, and may run for ever or ask for all memory."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

TEMPLATE_S = 20  # for a question and an answer, which take milliseconds
ROWS_S = 600  # for the sampled rows
MEMORY = 4 << 30  # bytes, beside those that the process holds already
GRACE_S = 10  # for an Overrun to be noticed, which it is not amid one operation: 10 ** 10 ** 9 takes hours
WATCHDOG = """
import select, sys
if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr)
"""


class Overrun(BaseException):
    """Raised in code that takes too long; no `except Exception` of a library stops it."""


@contextlib.contextmanager
def bounded(name: str, seconds: float) -> Iterator[None]:
    """Raises UserError where what is done within takes longer, or more memory than MEMORY. name: the model's."""
    watch = threading.Timer(seconds, interrupt, (threading.get_ident(),))
    watch.daemon = True
    watch.start()
    try:
        with limited_memory(), end_process(refusal(name, f"longer than {seconds:.0f} seconds"), seconds + GRACE_S):
            yield
    except (Overrun, MemoryError) as error:
        what = "the memory of this machine" if isinstance(error, MemoryError) else f"longer than {seconds:.0f} seconds"
        raise refusal(name, what) from None
    finally:
        watch.cancel()


def refusal(name: str, what: str) -> UserError:
    return UserError(
        "bad_chat_template",
        f"The chat template of {name} takes {what} to render rows.",
        "Choose another model: this one's template would hold up the job as well.",
    )


@contextlib.contextmanager
def end_process(error: UserError, seconds: float) -> Iterator[None]:
    """Ends this process with exit code 1 where what is done within takes longer, also amid an operation that holds Python up
    so that no thread and no Ctrl-C gets a turn. So another process says why.
    """
    message = f"error {error.problem.code}: {error.problem.message}\n  → {error.problem.fix}"
    with contextlib.ExitStack() as stack:
        if os.name == "posix":
            words = [sys.executable, "-S", "-c", WATCHDOG, str(seconds - 1), message]
            speaker = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE))
            stack.callback(speaker.kill)
        faulthandler.dump_traceback_later(seconds, exit=True, file=stack.enter_context(open(os.devnull, "w")))
        stack.callback(faulthandler.cancel_dump_traceback_later)
        yield


def interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overrun))


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Asking for more than MEMORY raises MemoryError, where the system knows such limits."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    except (ImportError, ValueError, OSError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
