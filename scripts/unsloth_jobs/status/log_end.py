"""What the end of a failed job's log says."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 2000  # characters of a line that are read
HEADER = re.compile(r"(?:^|^\S.*|\d%\|.*)Traceback \(most recent call last\)(?::$| ─+╮$)")
FRAME = re.compile(r"[ \t│╭╰┃]|$")
FIRST_FRAME = re.compile(r'\s+File "[^"]*", line \d+')
RANK = re.compile(r"^\[rank\d+\]: ?")
DIRECT = "The above exception was the direct cause of the following exception:"
HANDLING = "During handling of the above exception, another exception occurred:"
WORKER = "Original Traceback"  # of what torch raises again from a worker's exception
RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Timeout): ")
IGNORED = ("Exception ignored in", "--- Logging error ---")
HEALTHY = re.compile(r"\{'(?:train_)?loss': ")  # what TRL and transformers print at each step
BAR = re.compile(r"\d%\||\bit/s\]|\bs/it\]")
ADVICE = re.compile(r"^(?:For more information check: |Search for `cuda|CUDA kernel errors might|For debugging consider)")
LAST_LINES = 8  # that are shown of a failure whose cause is not known


def recent(lines: Iterable[str]) -> list[str]:
    """The lines after the last step that was made."""
    kept: list[str] = []
    for line in lines:
        if HEALTHY.search(line[:LONGEST]):
            kept.clear()
        else:
            kept.append(RANK.sub("", line[:LONGEST]))
    return kept


def exceptions(lines: list[str]) -> tuple[list[str], str]:
    """The exception that came last and those that it was raised from, newest first; and the text after its frames.

    An exception that was only printed on the way, or handled, is none of them. Without any, the text is all lines.
    """
    blocks: list[list[str]] = []  # what follows the frames of each traceback
    joints: list[str] = []  # the line before each traceback
    in_frames = False
    for at, line in enumerate(lines):
        before = lines[at - 1] if at else ""
        header = HEADER.search(line) or (not blocks and FIRST_FRAME.match(line))
        if line in (DIRECT, HANDLING) and not blocks:  # a chain's first exceptions may come without frames
            raised = (earlier for earlier in range(at - 1, -1, -1) if RAISED.match(lines[earlier]))
            blocks.append(lines[next(raised, at) : at])
            joints.append("")
        elif header or before in (DIRECT, HANDLING):
            blocks.append([] if header else [line])
            joints.append(DIRECT if line.startswith(WORKER) else before)
            in_frames = bool(header)
        elif blocks and not (in_frames and FRAME.match(line)):
            in_frames = False
            blocks[-1].append(line)
    chain: list[str] = []
    for block, joint in zip(reversed(blocks), reversed(joints), strict=True):
        if joint.startswith(IGNORED):
            continue
        chain.append("\n".join(line for line in block if line not in (DIRECT, HANDLING)))
        if joint != DIRECT:
            break
    end = chain[0] if chain else "\n".join(lines)
    if not chain and RAISED.match(last := key_line([], end)):  # a program that prints its exception and no frames
        chain = [last]
    return chain, end


def key_line(errors: list[str], end: str) -> str:
    """The line that says most: the exception's first, or else the last line that is no progress bar."""
    lines = informative_lines(errors[0] if errors else end)
    return lines[0 if errors else -1].strip() if lines else ""


def informative_lines(text: str) -> list[str]:
    """The lines that say something: no progress bars, no general advice."""
    lines = [line.rstrip() for line in text.splitlines()]
    return [line for line in lines if line.strip() and not BAR.search(line) and not ADVICE.search(line.strip())]
