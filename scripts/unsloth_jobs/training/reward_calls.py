"""The user's own reward: a function in a Python file, called in processes of its own, each call within a time limit.

What a model wrote reaches it as text. Nothing here runs that text.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from .graders import as_score, described, grader_of_file

MOST_PROCESSES = 8
GRACE_S = 30.0  # beyond the limit, for starting a process; then one that does not answer is ended
CALLS_AT_ONCE = 16  # of a process, so that passing them costs little

LOADED: dict[str, Any] = {}  # of a process that calls: the function


class Call(NamedTuple):
    """score: 0 where it failed; failure: why, or ""; seconds: that the function itself took."""

    score: float
    failure: str
    seconds: float


class OutOfTime(BaseException):
    """Not an Exception, so that a function which catches all of these does not go on."""


def load(file: str, hook: str) -> None:
    """In the process that calls. Only the parent is told of Ctrl-C, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    LOADED["function"] = grader_of_file(file, hook)


def call_some(limit_s: float, calls: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Call]:
    """In the process that calls: each within its time."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    return [timed_call(limit_s, *values) for values in calls]


def timed_call(limit_s: float, answer: str, reference: str, row: Mapping[str, Any]) -> Call:
    began = time.monotonic()
    score, failure = 0.0, ""
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        score = as_score(LOADED["function"](answer, reference, row))
    except OutOfTime:
        failure = out_of_time(limit_s)
    except (Exception, SystemExit) as error:
        failure = described(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Call(score, failure, time.monotonic() - began)


def out_of_time(limit_s: float) -> str:
    return f"it took more than {limit_s:g} s"


class RewardFile:
    """Calls the function `hook` of a file. Raises Stop, once made, where the file has no such function."""

    def __init__(self, file: str, limit_s: float, hook: str = "grade"):
        grader_of_file(file, hook)  # what is wrong with it is said before anything else is done
        self.file, self.limit_s, self.hook = os.path.abspath(file), limit_s, hook
        self.pool: ProcessPoolExecutor | None = None

    def calls(self, values: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[Call]:
        """Of answers, references and rows. A process that does not come back is ended, and its calls count 0."""
        parts = [values[at : at + CALLS_AT_ONCE] for at in range(0, len(values), CALLS_AT_ONCE)]
        pool = self.pool or self.start()
        waiting = [(part, pool.submit(call_some, self.limit_s, part)) for part in parts]
        return [one for part, future in waiting for one in self.result(part, future)]

    def result(self, part: Sequence[tuple[str, str, Mapping[str, Any]]], future: Future[list[Call]]) -> list[Call]:
        try:
            return future.result(self.limit_s * len(part) + GRACE_S)  # those before it are done, so it is its turn
        except CancelledError:  # with the process that another part hung in
            return self.result(part, self.submit(part))
        except (TimeoutError, BrokenProcessPool, OSError) as error:
            self.close()
            why = out_of_time(self.limit_s) if isinstance(error, TimeoutError) else "its process has ended"
            if len(part) == 1:
                return [Call(0.0, why, self.limit_s)]
            # One at a time, so that the others of the part have their scores.
            return [found for one in part for found in self.result([one], self.submit([one]))]

    def submit(self, part: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Future[list[Call]]:
        return (self.pool or self.start()).submit(call_some, self.limit_s, part)

    def start(self) -> ProcessPoolExecutor:
        # Spawned, not forked: this process holds a GPU and threads.
        context = multiprocessing.get_context("spawn")
        count = min(os.cpu_count() or 1, MOST_PROCESSES)
        self.pool = ProcessPoolExecutor(count, context, initializer=load, initargs=(self.file, self.hook))
        return self.pool

    def close(self) -> None:
        if self.pool:
            for process in list((self.pool._processes or {}).values()):
                process.kill()
            self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = None
