"""The address of a served model: waiting until it answers, and asking there with the caller's token."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx2
from huggingface_hub import get_token

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


def token_for(ref: JobRef) -> str | None:
    """What a request to the job carries: the token that the Hub asks for; nothing to a server on this machine."""
    return None if is_local(ref) else get_token()


def is_local(ref: JobRef) -> bool:
    return ref.job_id.startswith(PREFIX)


def client_for(ref: JobRef) -> httpx2.Client:
    """It follows no redirect, which would carry the token elsewhere; to this machine it goes by no proxy."""
    headers = {"Authorization": f"Bearer {token}"} if (token := token_for(ref)) else {}
    return httpx2.Client(headers=headers, timeout=LOOKUP_TIMEOUT_S, trust_env=not is_local(ref))


def fetch_health(client: httpx2.Client, address: str) -> int:
    """The status with which it answers; 0 where nothing does."""
    try:
        return client.get(f"{address}/health").status_code
    except httpx2.HTTPError:
        return 0


def look_once(ref: JobRef, say: Callable[[str], None]) -> Status:
    """The status of a job that may not answer yet. Raises UserError where it never will."""
    status = fetch_status(ref)
    if status.job.ended:
        raise ended_early(status)
    served = status.served
    if served and served.is_ready and served.address and (found := fetch_health(client_for(ref), served.address)) != 200:
        say(
            f"it says that it answers, and {served.address} {'answers ' + str(found) if found else 'does not'}: --wait ends it if that stays so"
        )
    return status


def wait_until_ready(ref: JobRef, say: Callable[[str], None]) -> Status:
    """The status of a job that answers. say: what is at it, each time that changes. Raises UserError where it will not.

    A job that says that it answers and cannot be reached is ended: it would be paid for, and be of no use.
    """
    every, told, since = LOOKS_EVERY_S["local" if is_local(ref) else "hf"], "", 0.0
    client = client_for(ref)
    status = fetch_status(ref)
    while True:
        if status.job.ended:
            raise ended_early(status)
        served = status.served
        if (phase := phase_of(status)) != told:
            told = phase
            say(phase)
        if served and served.is_ready and served.address:
            found, since = fetch_health(client, served.address), since or time.monotonic()
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
