"""Jobs that are really executed: each one's command runs on this machine, in a process group of its own.

There is no container. A job gets a folder with a fresh home and the volumes it mounts; the mount
paths in its command are rewritten to that folder.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import errors
from .accounts import Accounts, User, object_id
from .exposed import ExposedPort
from .hardware import HARDWARE
from .store import BucketFile, Store, iso, walk

SCHEDULING, RUNNING = "SCHEDULING", "RUNNING"
COMPLETED, CANCELED, ERROR = "COMPLETED", "CANCELED", "ERROR"
TERMINAL_STAGES = {COMPLETED, CANCELED, ERROR, "DELETED"}

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
DEFAULT_TIMEOUT = 30 * 60  # seconds
GRACE = 2.0  # seconds between SIGTERM and SIGKILL

# What a job inherits: how uv finds its cache, a Python and the package registry, and how many threads a test may take.
INHERITED_VARIABLES = re.compile(r"(?i)UV_\w+|OMP_NUM_THREADS|SSL_CERT_(FILE|DIR)|(https?|all|no)_proxy")


@dataclass(frozen=True)
class LogLine:
    text: str
    time: float = field(default_factory=time.time)


@dataclass
class Job:
    """A job's request (`spec`) and what became of it."""

    owner: str
    owner_type: str
    spec: dict
    initiator: dict
    folder: Path
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    stage: str = SCHEDULING
    message: str | None = None
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    logs: list[LogLine] = field(default_factory=list)
    set_by_hand: bool = False
    ports: list[ExposedPort] = field(default_factory=list, repr=False)
    thread: threading.Thread = field(init=False, repr=False)

    @property
    def is_finished(self) -> bool:
        return self.stage in TERMINAL_STAGES

    def log(self, text: str) -> None:
        self.logs.append(LogLine(text))

    def enter(self, stage: str, message: str | None = None) -> None:
        self.stage, self.message = stage, message
        if stage == RUNNING:
            self.started = self.started or time.time()
        self.finished = time.time() if self.is_finished else None

    def info(self) -> dict:
        """The job as the API shows it: of the secrets only the names."""
        spec = self.spec
        return {
            "id": self.id,
            "createdAt": iso(self.created),
            "startedAt": iso(self.started) if self.started else None,
            "finishedAt": iso(self.finished) if self.finished else None,
            "dockerImage": spec.get("dockerImage"),
            "spaceId": spec.get("spaceId"),
            "command": spec.get("command"),
            "arguments": spec.get("arguments", []),
            "environment": spec.get("environment", {}),
            "secrets": sorted(spec.get("secrets", {})),
            "flavor": spec["flavor"],
            "labels": spec.get("labels", {}),
            "volumes": spec.get("volumes", []),
            "retry": spec.get("attempts", 1) - 1,
            "status": {"stage": self.stage, "message": self.message, **self._addresses()},
            **({"expose": spec["expose"]} if "expose" in spec else {}),
            "durations": self._durations(),
            "owner": {"id": object_id(self.owner_type, self.owner), "name": self.owner, "type": self.owner_type},
            "initiator": self.initiator,
        }

    def _addresses(self) -> dict:
        """Of the exposed ports: there are none before a machine runs the job."""
        return {"exposeUrls": [port.url for port in self.ports]} if self.ports and self.started else {}

    def expose(self, accounts: Accounts) -> None:
        """Give each port that its request names an address."""
        asked = self.spec.get("expose", {})
        public = asked.get("portsPublic", [])
        self.ports = [ExposedPort(accounts, self, port, port in public) for port in asked.get("ports", [])]

    def _durations(self) -> dict:
        end = self.finished or time.time()
        return {
            "schedulingSecs": int(self.started - self.created) if self.started else None,
            "runningSecs": int(end - self.started) if self.started else None,
            "totalSecs": int(end - self.created),
        }


class Jobs:
    """All jobs, and the threads that run them."""

    def __init__(self, store: Store, accounts: Accounts, url: str, *, execute: bool = True, scheduling: float = 0.1) -> None:
        self._store, self._accounts = store, accounts
        self._url = url
        self._execute = execute
        self._scheduling = scheduling
        self._folder = store.root / "jobs"
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()  # notified whenever a job enters a stage

    # ------------------------------------------------------------ for the API

    def create(self, user: User, namespace: str, spec: dict, *, duplicate_of: str | None = None) -> Job:
        check_spec(spec)
        initiator = {"type": "user", "id": user.id, "name": user.name}
        if duplicate_of:
            initiator = {"type": "duplicated-job", "id": duplicate_of}
        owner_type = "user" if namespace == user.name else "org"
        job = Job(namespace, owner_type, dict(spec), initiator, self._folder / secrets.token_hex(4))
        self._jobs[job.id] = job
        job.expose(self._accounts)
        job.thread = threading.Thread(target=self._run, args=(job,), name=f"job-{job.id}", daemon=True)
        job.thread.start()
        return job

    def get(self, job_id: str, namespace: str | None = None) -> Job:
        job = self._jobs.get(job_id)
        if job is None or namespace not in (None, job.owner):
            raise errors.HubError(404, "Job not found")
        return job

    def select(self, namespace: str, stages: Iterable[str] = (), labels: dict[str, str] | None = None) -> list[Job]:
        """A namespace's jobs, newest first."""
        stages, wanted = set(stages), (labels or {}).items()
        return [
            job
            for job in reversed(list(self._jobs.values()))
            if job.owner == namespace
            if not stages or job.stage in stages
            if wanted <= job.spec.get("labels", {}).items()
        ]

    def cancel(self, job: Job) -> None:
        with self._changed:
            if not job.is_finished:
                job.enter(CANCELED)
                self._changed.notify_all()

    # ------------------------------------------------------------ for tests

    def set(self, job_id: str, *, stage: str | None = None, message: str | None = None, logs: Iterable[str] = ()) -> None:
        """Add lines to a job's log, and put it into a stage: from then on that changes only by hand or by cancelling."""
        job = self.get(job_id)
        for line in logs:
            job.log(line)
        if stage is None:
            return
        with self._changed:
            job.set_by_hand = True
            if stage != SCHEDULING:
                job.started = job.started or time.time()
            job.enter(stage, message)
            self._changed.notify_all()

    def wait(self, job_id: str, timeout: float = 300) -> Job:
        """Wait until a job has finished and its processes are gone."""
        job = self.get(job_id)
        with self._changed:
            if not self._changed.wait_for(lambda: job.is_finished, timeout):
                raise TimeoutError(f"Job {job_id} is still {job.stage}")
        job.thread.join(timeout)
        return job

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def close(self) -> None:
        """Cancel whatever runs, and see its processes end."""
        for job in self:
            self.cancel(job)
        for job in self:
            job.thread.join()
            for port in job.ports:
                port.close()

    # ------------------------------------------------------------ running

    def _run(self, job: Job) -> None:
        """A job's life; runs in a thread of its own."""
        with self._changed:
            self._changed.wait_for(lambda: job.is_finished or job.set_by_hand, self._scheduling)
        if not self._advance(job, RUNNING):
            return
        job.log(f"===== Job started at {time.strftime('%Y-%m-%d %H:%M:%S')} =====")
        result = self._execute_with_volumes(job) if self._execute else (COMPLETED, None)
        self._advance(job, *result)

    def _advance(self, job: Job, stage: str, message: str | None = None) -> bool:
        """Enter the next stage, unless the job was canceled or is led by hand."""
        with self._changed:
            if job.is_finished or job.set_by_hand:
                return False
            job.enter(stage, message)
            self._changed.notify_all()
            return True

    def _execute_with_volumes(self, job: Job) -> tuple[str, str | None]:
        """Run the job's command; the stage and message it ends with. By then what it wrote is stored."""
        mounts: list[Mount] = []
        try:
            mounts += [Mount.of(self._store, volume, job.folder) for volume in job.spec.get("volumes", [])]
            return self._execute_command(job, mounts)
        except (OSError, errors.HubError) as error:
            return ERROR, f"Job failed to start: {error}"
        finally:
            for mount in mounts:
                mount.write_back(self._store)

    def _execute_command(self, job: Job, mounts: list["Mount"]) -> tuple[str, str | None]:
        """Run the command to its end, its timeout or its cancellation."""
        spec = job.spec
        command = [rewrite(part, mounts) for part in [*spec["command"], *spec.get("arguments", [])]]
        for port in job.ports:
            command = [port.rewrite(word) for word in command]
        work = job.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        command, environment = in_own_environment(command, self._environment(job, mounts))
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=read_lines, args=(process.stdout, job), daemon=True)
        reader.start()
        timed_out = not self._wait_for_process(process, job)
        stop_group(process)
        reader.join()
        return outcome(process.returncode, timed_out)

    def _wait_for_process(self, process: subprocess.Popen, job: Job) -> bool:
        """False when the job's time ran out. Looks often: no one call waits for both an exit and a cancellation."""
        deadline = time.monotonic() + job.spec.get("timeoutSeconds", DEFAULT_TIMEOUT)
        while process.poll() is None and not job.is_finished:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _environment(self, job: Job, mounts: list["Mount"]) -> dict[str, str]:
        """A small environment: nothing of the server's but what uv needs to work fast."""
        home = job.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        user_home = Path.home()
        inherited = {name: value for name, value in os.environ.items() if INHERITED_VARIABLES.fullmatch(name)}
        return {
            "PATH": os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)]),
            "LANG": "C.UTF-8",
            "UV_CACHE_DIR": str(user_home / ".cache/uv"),
            "UV_PYTHON_INSTALL_DIR": str(user_home / ".local/share/uv/python"),
            **inherited,
            **client_environment(self._url, home),
            "HOME": str(home),
            "JOB_ID": job.id,
            "ACCELERATOR": HARDWARE[job.spec["flavor"]].gpu or "",
            "PYTHONUNBUFFERED": "1",
            **{name: rewrite(str(value), mounts) for name, value in job.spec.get("environment", {}).items()},
            **job.spec.get("secrets", {}),
        }


def client_environment(url: str, home: Path) -> dict[str, str]:
    """The variables that point this ecosystem's libraries to the server, with caches of their own."""
    return {
        "HF_ENDPOINT": url,
        "HF_DATASETS_SERVER": f"{url}/viewer",
        "HF_HOME": str(home / "huggingface"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DO_NOT_TRACK": "1",
    }


def check_spec(spec: dict) -> None:
    flavor = spec.get("flavor")
    if flavor not in HARDWARE:
        raise errors.bad_request(f'Invalid flavor "{flavor}", expected one of {", ".join(HARDWARE)}')
    for name, value in spec.get("labels", {}).items():
        if not all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text) for text in (name, str(value))):
            raise errors.bad_request(f'Invalid label "{name}={value}"')


def read_lines(output: Iterable[str], job: Job) -> None:
    """Log a process's output as it comes."""
    for line in output:
        job.log(line.rstrip("\n"))


def outcome(code: int, timed_out: bool) -> tuple[str, str | None]:
    if timed_out:
        return ERROR, "Job timeout"
    if code == 0:
        return COMPLETED, None
    code = 128 - code if code < 0 else code
    reason = ". Reason: OOMKilled" if code == 128 + signal.SIGKILL else ""
    return ERROR, f"Job failed with exit code: {code}{reason}"


def stop_group(process: subprocess.Popen) -> None:
    """End a job's whole process group: politely, then not."""
    for sign, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@dataclass(frozen=True)
class Mount:
    """A volume, copied to a folder of the job. A bucket that may be written to is written back afterwards."""

    volume: dict
    folder: Path
    before: dict[str, str]  # SHA-256 by path

    @classmethod
    def of(cls, store: Store, volume: dict, job_folder: Path) -> "Mount":
        folder = job_folder / "volumes" / volume["mountPath"].strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        prefix = cls._prefix(volume)
        blobs = store.blobs_of(volume["type"], volume["source"], volume.get("revision") or "main")
        inside = {path.removeprefix(prefix): blob for path, blob in blobs.items() if path.startswith(prefix)}
        for path, blob in inside.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blob.path, target)
        return cls(volume, folder, {path: blob.sha256 for path, blob in inside.items()})

    @staticmethod
    def _prefix(volume: dict) -> str:
        path = (volume.get("path") or "").strip("/")
        return f"{path}/" if path else ""

    @property
    def is_writable(self) -> bool:
        return self.volume["type"] == "bucket" and not self.volume.get("readOnly")

    def write_back(self, store: Store) -> None:
        if not self.is_writable:
            return
        bucket = store.buckets[self.volume["source"]]
        prefix = self._prefix(self.volume)
        after = {name: (path, store.blobs.add_copy(path)) for name, path in walk(self.folder)}
        with store.lock:
            for name, (path, blob) in after.items():
                if self.before.get(name) != blob.sha256:
                    bucket.files[prefix + name] = BucketFile(blob, path.stat().st_mtime)
            for name in self.before.keys() - after.keys():
                bucket.files.pop(prefix + name, None)


def in_own_environment(command: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """`uv run` of an unchanged copy of a template, in the environment that the template itself has here.

    uv makes one for each path of a script, and Python compiles the libraries anew in each: half a minute a job.
    """
    script = Path(next((word for word in command if word.endswith(".py")), ""))
    own = TEMPLATES / script.name
    if command[:2] != ["uv", "run"] or not script.is_file() or not own.is_file() or script.read_bytes() != own.read_bytes():
        return command, environment
    find = ["uv", "python", "find", "--script", str(own)]
    folder = Path(subprocess.run(find, env=environment, capture_output=True, text=True).stdout.strip()).parent.parent
    if not folder.parent.name.startswith("environments-"):  # there is none yet
        return command, environment
    return ["uv", "run", "--active", *command[2:]], environment | {"VIRTUAL_ENV": str(folder)}


def rewrite(text: str, mounts: list[Mount]) -> str:
    """Replace mount paths in an argument by the folders that stand for them."""
    for mount in mounts:
        path = re.escape(mount.volume["mountPath"].rstrip("/"))
        text = str(mount.folder).join(re.split(rf"(?<![\w./-]){path}(?![\w.-])", text))
    return text
