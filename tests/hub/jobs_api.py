"""The Jobs API: permission, payment, and the two streams of server-sent events."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from . import errors
from .access import can_read
from .accounts import Token
from .hardware import HARDWARE
from .jobs import RUNNING, Job
from .store import Store, iso

KEEP_ALIVE = 30.0  # seconds
POLL = 0.05  # seconds


def authorize(request: Request, permission: str) -> Token:
    """The caller's token, if it may do this in the namespace of the path."""
    token = request.app.state.hub.accounts.require(request)
    namespace = request.path_params["namespace"]
    allowed = token.user.role_in(namespace) if permission == "job.read" else token.may(permission, namespace)
    if not allowed:
        raise errors.forbidden(f"Missing permission {permission} in namespace {namespace}")
    return token


def find(request: Request, permission: str = "job.read") -> Job:
    authorize(request, permission)
    return request.app.state.hub.jobs.get(request.path_params["job_id"], request.path_params["namespace"])


def check_volumes(store: Store, token: Token, volumes: list[dict]) -> None:
    for volume in volumes:
        source = store.find(volume["type"], volume["source"])
        if source is None or not can_read(token, source):
            raise errors.HubError(404, f"Volume not found: {volume['type']} {volume['source']}")


def submit(request: Request, spec: dict, duplicate_of: str | None = None) -> Response:
    token = authorize(request, "job.write")
    namespace = request.path_params["namespace"]
    check_volumes(request.app.state.hub.store, token, spec.get("volumes", []))
    if not token.user.can_pay_for(namespace):
        raise errors.HubError(402, "Pre-paid credit balance is insufficient - add more credits to use Jobs.")
    job = request.app.state.hub.jobs.create(token.user, namespace, spec, duplicate_of=duplicate_of)
    return JSONResponse(job.info())


def create(request: Request) -> Response:
    return submit(request, json.loads(request.state.body))


def duplicate(request: Request) -> Response:
    original = find(request, "job.write")
    return submit(request, original.spec, duplicate_of=original.id)


def list_jobs(request: Request) -> Response:
    authorize(request, "job.read")
    query = request.query_params
    labels = dict(label.split("=", 1) for label in query.getlist("label"))
    jobs = request.app.state.hub.jobs.select(request.path_params["namespace"], query.getlist("stage"), labels)
    return JSONResponse([job.info() for job in jobs])


def inspect(request: Request) -> Response:
    return JSONResponse(find(request).info())


def cancel(request: Request) -> Response:
    job = find(request, "job.write")
    request.app.state.hub.jobs.cancel(job)
    return JSONResponse(job.info())


def set_labels(request: Request) -> Response:
    job = find(request, "job.write")
    job.spec["labels"] = json.loads(request.state.body)["labels"]
    return JSONResponse(job.info())


def hardware(request: Request) -> Response:
    return JSONResponse([machine.info() for machine in HARDWARE.values()])


def event(data: dict, name: str | None = None) -> str:
    prefix = f"event: {name}\n" if name else ""
    return f"{prefix}data: {json.dumps(data)}\n\n"


async def log_events(job: Job, position: int, quiet_s: float) -> AsyncIterator[str]:
    """Log lines from `position` on, until the job is over or says nothing for so long. Who follows may ask again."""
    last_sent = time.monotonic()
    while True:
        finished = job.is_finished
        lines = job.logs[position:]
        for line in lines:
            yield event({"data": line.text, "timestamp": iso(line.time)})
        position += len(lines)
        if finished:
            return
        now = time.monotonic()
        if lines:
            last_sent = now
        elif now - last_sent > quiet_s:
            return
        elif now - last_sent > KEEP_ALIVE:
            yield ": keep-alive\n\n"
            last_sent = now
        await asyncio.sleep(POLL)


async def metric_events(job: Job) -> AsyncIterator[str]:
    """One made-up measurement a second."""
    gpu = HARDWARE[job.spec["flavor"]]
    gpus = {
        f"{index:08x}": {"utilization": 50, "memory_used_bytes": 10**9, "memory_total_bytes": gpu.vram * 10**9 // gpu.gpus}
        for index in range(gpu.gpus)
    }
    while not job.is_finished:
        measurement = {
            "cpu_usage_pct": 10,
            "cpu_millicores": gpu.cpus * 1000,
            "memory_used_bytes": 10**9,
            "memory_total_bytes": gpu.ram * 10**9,
            "rx_bps": 0,
            "tx_bps": 0,
            "gpus": gpus,
            "replica": job.id[:5],
        }
        yield event(measurement, "metric")
        await asyncio.sleep(1)


async def logs(request: Request) -> Response:
    job = find(request)
    tail = request.query_params.get("tail")
    position = max(0, len(job.logs) - int(tail)) if tail is not None else 0
    # A client that does not follow stops at the first line later than this date.
    headers = {"Date": formatdate(usegmt=True)}
    quiet_s = request.app.state.hub.quiet_s if tail is not None else math.inf
    return StreamingResponse(log_events(job, position, quiet_s), headers=headers, media_type="text/event-stream")


async def metrics(request: Request) -> Response:
    job = find(request)
    if job.stage != RUNNING:
        raise errors.HubError(406, "Job is not running")
    return StreamingResponse(metric_events(job), media_type="text/event-stream")


NAMESPACE = "/api/jobs/{namespace}"
JOB = NAMESPACE + "/{job_id}"

routes = [
    Route("/api/jobs/hardware", hardware),
    Route(NAMESPACE, create, methods=["POST"]),
    Route(NAMESPACE, list_jobs),
    Route(JOB, inspect),
    Route(JOB + "/logs", logs),
    Route(JOB + "/metrics", metrics),
    Route(JOB + "/cancel", cancel, methods=["POST"]),
    Route(JOB + "/duplicate", duplicate, methods=["POST"]),
    Route(JOB + "/labels", set_labels, methods=["PUT"]),
]
