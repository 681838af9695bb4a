"""A run on all GPUs of its machine: one process for each, started by torch's own launcher (torchrun)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .processes import join_peers, process_count, process_number, see_one_gpu
from .report import LAUNCHED, Stop, emit, ended_from_outside, exit_code, told_to_end
from .run import billed_since, run_facts
from .secrets import redacted

PROCESSES = "UNSLOTH_JOBS_PROCESSES"  # how many, whatever GPUs there are: several on a machine without one, or a single one
LAST_WORDS = 40  # lines of a process that died, which had not been shown
# What the others say when one of them is gone.
PEER_GONE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|NCCL|gloo|ProcessGroup|TCPStore", re.IGNORECASE)
ENDED_WITHIN_S = 20.0  # of a peer's end, by the launcher


def run_on_all_gpus(run: Callable[[], None], again: str, script: str) -> int:
    """exit_code of a run, in this process or, where there are several GPUs, in one process for each.

    script: the file that each of them runs, with the arguments of this one.
    """
    if join_peers():
        return exit_code(lambda: run_beside_peers(run), again)
    if (count := processes_wanted()) > 1:
        return launch(count, script, again)
    see_one_gpu(0)  # of several transformers' own trainer would use all, in a way of its own
    return exit_code(run, again)


def processes_wanted() -> int:
    if (asked := os.environ.get(PROCESSES, "")).isdigit():
        return max(int(asked), 1)
    if importlib.util.find_spec("torch") is None:
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def run_beside_peers(run: Callable[[], None]) -> None:
    """Run; an error that only says that another process is gone waits, so that the other's own words are the cause."""
    try:
        run()
    except RuntimeError as error:
        if process_count() > 1 and PEER_GONE.search(str(error)) and os.environ.get(LAUNCHED):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            print(f"Process {process_number()} has lost another: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            time.sleep(ENDED_WITHIN_S)
        raise


def launch(count: int, script: str, again: str) -> int:
    """Run a script in so many processes; its exit code. Where one fails, all end, and what it said is what failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= {LAUNCHED: "1", "UNSLOTH_JOBS_RUN": json.dumps(run_facts() | {"started": billed_since()})}
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whose name may not resolve
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    with tempfile.TemporaryDirectory(prefix="unsloth-jobs-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            # The first process says what all do. What the others print is read when one of them dies.
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            # It would kill all half a minute after SIGTERM, while they save and push.
            signals_to_handle="SIGHUP,SIGQUIT",
        )
        try:
            elastic_launch(config, sys.executable)("-u", script, *sys.argv[1:])
        except ChildFailedError as error:
            emit_cause(error.failures, count, Path(folder), again)
            return 1
    return 0


def pass_on(number: int, _: Any) -> None:
    """A signal to this process is one to all: they agree when to stop, save, and end by themselves."""
    import psutil

    told_to_end.set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def emit_cause(failures: dict[int, Any], count: int, folder: Path, again: str) -> None:
    """The event `failed` of a run whose processes ended early, after the last words of the one that was first."""
    number, first = first_failure(failures.items())
    if number:
        for path in sorted(folder.rglob(f"{number}/std*.log")):
            lines = path.read_text("utf-8", "replace").splitlines()[-LAST_WORDS:]
            print(redacted("\n".join(lines)).replace("EVENT {", "EVENT: {"), file=sys.stderr, flush=True)
    how = f"was ended by {first.signal_name()}" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    died = Stop(
        "process_died",
        f"Process {number} of {count} (GPU {number}) {how}, and with it the run.",
        "Its last lines are in the log. Submit the same command with --resume at its end: it goes on from the last checkpoint.",
    )
    # A process that a signal ends before it listens for one has not died.
    cause = ended_from_outside(again) if told_to_end.is_set() else died
    emit("failed", **(first.error_file_data.get("failed") or vars(cause)))


def first_failure(failures: Iterable[tuple[int, Any]]) -> tuple[int, Any]:
    """Number and failure of the process that the others followed: those that the launcher ended are not it."""
    return min(failures, key=lambda one: (one[1].exitcode == -signal.SIGTERM, one[1].timestamp))
