"""`Hub`: the server, and the handles by which a test sets it up and looks into it."""

import math
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .accounts import Accounts
from .app import create_app
from .faults import Faults
from .jobs import Jobs, client_environment
from .journal import Journal
from .store import Gated, RepoType, Store
from .xet import Cas


class Hub:
    """A Hugging Face Hub on a loopback port. Use it as a context manager, or `start` and `close` it.

    `execute_jobs=False` lets jobs complete without running anything; `scheduling` is the time in
    seconds that a job waits before it runs. The end of a running job's log is sent for as long as lines come, and `quiet_s`
    longer: the Hub goes on for ever, and its client for 5 s.
    """

    def __init__(
        self, root: Path | str, *, port: int = 0, execute_jobs: bool = True, scheduling: float = 0.1, quiet_s: float = math.inf
    ) -> None:
        self.quiet_s = quiet_s
        self.root = Path(root)
        self._socket = socket.create_server(("127.0.0.1", port))
        # asyncio sets it only for sockets that name their protocol; without it each answer waits 40 ms for an ACK.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.cas_url = f"{self.url}/cas"
        self.store = Store(self.root / "hub")
        self.cas = Cas(self.store.blobs, self.store.root / "xorbs")
        self.accounts = Accounts()
        self.journal = Journal()
        self.faults = Faults()
        self.jobs = Jobs(self.store, self.accounts, self.url, execute=execute_jobs, scheduling=scheduling)
        options: dict[str, Any] = {"http": "h11", "lifespan": "off", "log_level": "warning", "timeout_graceful_shutdown": 1}
        # uvicorn's own Date header lags behind by up to a second, which hides log lines from clients.
        self._server = uvicorn.Server(uvicorn.Config(create_app(self), date_header=False, **options))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="hub", daemon=True)

    # ------------------------------------------------------------ life

    def start(self) -> "Hub":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def end(self) -> None:
        """Its jobs have ended then; the server itself takes 0.2 s more, for which nobody needs to wait."""
        self.jobs.close()
        self._server.should_exit = True

    def close(self) -> None:
        self.end()
        self._thread.join()

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def drop_connection(self, client: tuple) -> None:
        """Close a client's socket without an answer."""
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, H11Protocol) and connection.client == client and connection.transport:
                connection.transport.abort()

    # ------------------------------------------------------------ set up

    def add_user(self, name: str, token: str, **options: Any) -> None:
        """See `Accounts.add`."""
        self.accounts.add(name, token, **options)

    def add_repo(
        self,
        repo_id: str,
        folder: Path | str | None = None,
        *,
        type: RepoType = "model",
        private: bool = False,
        gated: Gated = False,
        granted: Iterable[str] = (),
    ) -> str:
        """Create a repository, or add to it, from a local folder. Returns the commit's sha."""
        repo = self.store.repos.get((type, repo_id)) or self.store.create_repo(type, repo_id)
        repo.private, repo.gated, repo.granted = private, gated, set(granted)
        if folder is None:
            return repo.head.sha
        return self.store.commit_folder(repo, Path(folder)).sha

    def env(self, token: str | None = None) -> dict[str, str]:
        """Variables for a client process, to be laid over its environment; with fresh caches each time."""
        home = Path(tempfile.mkdtemp(dir=self.root, prefix="client-"))
        return {**client_environment(self.url, home), "HF_TOKEN": token or ""}

    # ------------------------------------------------------------ look into

    def files(self, repo_id: str, *, type: str = "model", revision: str = "main") -> dict[str, Path]:
        """A repository's (or, with `type="bucket"`, a bucket's) files: where each one's bytes are."""
        return {path: blob.path for path, blob in self.store.blobs_of(type, repo_id, revision).items()}

    def leaks(self, text: str) -> list[str]:
        """Where a text went: requests (except where a token belongs), stored files, job logs, job information.

        Looks into the stored files because an upload's own requests are compressed or encoded.
        """
        sources = list(self.store.repos)
        sources += [("bucket", bucket_id) for bucket_id in self.store.buckets]
        found = [f"{record.method} {record.path}" for record in self.journal.matching(text)]
        found += [
            f"{kind} {name}: {path}"
            for kind, name in sources
            for path, file in self.files(name, type=kind).items()
            if text.encode() in file.read_bytes()
        ]
        found += [f"log of job {job.id}" for job in self.jobs if any(text in line.text for line in job.logs)]
        found += [f"information on job {job.id}" for job in self.jobs if text in repr(job.info())]
        return found
