"""The EVENT lines of a job's log, and what they say of its progress."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .redaction import plain
from .values import number, real, shaped, whole

UNHEALTHY = ("failed", "warning")
TAIL = 1000  # lines of a log that tell how a job is: the template logs 200 losses, 10 checkpoints, 11 evaluations at most
MARK = "EVENT {"  # a progress bar may stand before it on the same line


def clean(line: str) -> str:
    """A log line without secrets and without what would steer the reader's terminal."""
    return plain(line.strip("\r").rpartition("\r")[2])


def parse(line: str) -> dict[str, Any] | None:
    """The event in a log line, its texts cleaned, or None. Never raises: a log holds anything."""
    start = line.find(MARK)
    if start < 0:
        return None
    try:
        event = cleaned(json.loads(line[start + len(MARK) - 1 :]))
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event.get("event"), str) else None


def cleaned(value: Any) -> Any:
    """A JSON value whose texts are plain: what was escaped in the log steers a terminal once it is read."""
    if isinstance(value, dict):
        return {plain(name): cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return plain(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Point:
    """Something measured at a step. value: nats per token, NaN included; time: of its event, in seconds since 1970."""

    step: int
    value: float
    time: float | None = None


@dataclass(frozen=True)
class Curve:
    """The losses, or the mean rewards, over the steps, in their order. Where a run went on from a checkpoint, the later points
    replace the earlier.
    """

    loss: tuple[Point, ...] = ()
    eval_loss: tuple[Point, ...] = ()
    reward: tuple[Point, ...] = ()

    def as_json(self, most: int = 50) -> dict[str, list[list[float]]]:
        """[step, value] pairs, `most` of each at most, first and last among them; rewards where a run has any."""
        names = ("loss", "eval_loss", *(("reward",) if self.reward else ()))
        return {name: [[one.step, one.value] for one in thinned(getattr(self, name), most)] for name in names}


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    if len(points) <= most:
        return points
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


@dataclass(frozen=True)
class Progress:
    """How far training is. Losses in nats per token; None where not yet known."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a log says. saves: the steps whose checkpoints were pushed (their value is the step); heard: when the newest
    event was printed, by the job's clock; None where its events carry no time; tokens: trained on up to each step that was
    logged; kept: the newest step of which there is a checkpoint, pushed or not.
    """

    progress: Progress
    eta_s: float | None
    last: dict[str, dict[str, Any]] = field(default_factory=dict)  # the newest event of each name
    lines: tuple[str, ...] = ()  # the log since the last event of a healthy run, cleaned
    curve: Curve = Curve()
    saves: tuple[Point, ...] = ()
    heard: float | None = None
    tokens: tuple[Point, ...] = ()
    kept: int | None = None

    def event(self, name: str) -> dict[str, Any]:
        return self.last.get(name, {})


def summarise(lines: Iterable[str], keep: int = 400) -> Summary:
    """Read a log from its beginning or its tail."""
    last: dict[str, dict[str, Any]] = {}
    kept: deque[str] = deque(maxlen=keep)
    losses: list[Point] = []
    evaluations: list[Point] = []
    rewards: list[Point] = []
    saves: list[Point] = []
    tokens: list[Point] = []
    heard: float | None = None
    for line in lines:
        if event := parse(line):
            event, name = shaped(event), event["event"]
            if name == "plan":  # a new start: how an earlier one of the same job ended is past
                last = {one: last[one] for one in last if one not in ("done", "failed")}
            if name not in UNHEALTHY:
                kept.clear()
            last[name] = event
            heard = number(event.get("time")) or heard
            if name == "progress":
                put(losses, event, event.get("loss"))
                put(tokens, event, event.get("tokens"))
                put(rewards, event, event.get("reward"))
            elif name == "eval":
                put(evaluations, event, event.get("eval_loss"))
            elif name == "checkpoint" and event.get("pushed") is True:
                put(saves, event, event.get("step"))
        elif (text := clean(line).rstrip()).strip():
            kept.append(text)
    step, evaluation = last.get("progress", {}), last.get("eval", {})
    progress = Progress(
        whole(step.get("step")), whole(step.get("total_steps")), real(step.get("loss")), real(evaluation.get("eval_loss"))
    )
    eta = None if "done" in last or "failed" in last else number(step.get("eta_s"))
    curve = Curve(tuple(losses), tuple(evaluations), tuple(rewards))
    newest = whole(last.get("checkpoint", {}).get("step"))
    return Summary(progress, eta, last, tuple(kept), curve, tuple(saves), heard, tuple(tokens), newest)


def put(points: list[Point], event: dict[str, Any], value: Any) -> None:
    """Add what an event measured. A run that was started again tells of its steps a second time: the second counts."""
    step, value = whole(event.get("step")), real(value)
    if step is None or value is None:
        return
    while points and points[-1].step >= step:
        points.pop()
    points.append(Point(step, value, number(event.get("time"))))
