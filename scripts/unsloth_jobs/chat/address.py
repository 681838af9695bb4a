"""The address of a served model: waiting until it answers, and asking there with the caller's token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from huggingface_hub import get_session, get_token

from ..errors import UserError
from ..jobs.backends import JobRef
from ..jobs.local import PREFIX
from ..jobs.plan import SCRIPTS
from ..lookup.client import LOOKUP_TIMEOUT_S
from ..status.status import Status, fetch_status
from ..status.watch import END_WITHIN_S, end_job

LOOKS_EVERY_S = {"hf": 3.0, "local": 0.5}
READY_WITHIN_S = 1500  # of running: installation, download and loading, or vLLM's own start
ANSWERS_WITHIN_S = 180  # between its own word that it answers and an answer that comes through


def headers_for(ref: JobRef) -> dict[str, str]:
    """What a request to the job carries: the token that the Hub asks for; nothing to a server on this machine."""
    token = None if ref.job_id.startswith(PREFIX) else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def fetch_health(address: str, ref: JobRef) -> int:
    """The status with which it answers; 0 where nothing does."""
    try:
        return get_session().get(f"{address}/health", headers=headers_for(ref), timeout=LOOKUP_TIMEOUT_S).status_code
    except Exception:  # the client's errors are of its HTTP library, whichever that is
        return 0


def wait_until_ready(ref: JobRef, say: Callable[[str], None]) -> Status:
    """The status of a job that answers. say: what is at it, each time that changes. Raises UserError where it will not.

    A job that says that it answers and cannot be reached is ended: it would be paid for, and be of no use.
    """
    every, told, since = LOOKS_EVERY_S["local" if ref.job_id.startswith(PREFIX) else "hf"], "", 0.0
    status = fetch_status(ref)
    while True:
        if status.job.ended:
            raise ended_early(status)
        served = status.served
        if (phase := phase_of(status)) != told:
            told = phase
            say(phase)
        if served and served.is_ready and served.address:
            found, since = fetch_health(served.address, ref), since or time.monotonic()
            if found == 200:
                return status
            if time.monotonic() - since > ANSWERS_WITHIN_S:
                end_job(ref, END_WITHIN_S)
                raise unreachable(served.address, found, ref)
        elif status.job.elapsed_s > READY_WITHIN_S:
            end_job(ref, END_WITHIN_S)
            raise UserError(
                "not_ready",
                f"{ref.job_id} was not ready after {READY_WITHIN_S // 60} minutes, and was ended. {last_lines(status)}",
                f"See its log: uv run {SCRIPTS / 'logs.py'} {ref.job_id} --tail 50",
            )
        time.sleep(every)
        status = fetch_status(ref, status)


def phase_of(status: Status) -> str:
    if status.job.stage == "SCHEDULING":
        return "waiting for a machine, which is not billed"
    return status.phase if status.job.stage == "RUNNING" else status.job.stage.lower()


def last_lines(status: Status) -> str:
    lines = [line for line in status.summary.lines if line.strip()][-3:]
    return f"Its last lines: {' / '.join(lines)}" if lines else ""


def ended_early(status: Status) -> UserError:
    """What to say of a job that ended before it answered, in the words of its diagnosis."""
    if found := status.diagnosis:
        lines = f" {last_lines(status)}" if found.code == "unknown" else ""
        return UserError(found.code, f"{found.message}{lines}", f"{found.fix} {found.command}".strip())
    return UserError("ended", f"{status.job.job_id} has ended: {status.job.stage}.", status.next)


def unreachable(address: str, found: int, ref: JobRef) -> UserError:
    how = f"answers {found}" if found else "does not answer"
    return UserError(
        "unreachable",
        f"The model is loaded, but {address} {how}. Job {ref.job_id} was ended.",
        "Try again; if it happens twice, see whether a proxy stands between, and https://status.huggingface.co",
    )


def request(method: str, address: str, path: str, ref: JobRef, **how: Any) -> Any:
    """A streamed request to the job, as a context manager."""
    how["headers"] = {**how.get("headers", {}), **headers_for(ref)}
    return get_session().stream(method, f"{address}{path}", timeout=600, **how)
