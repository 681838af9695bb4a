"""The test Hub held against the real one: `make test-hub` makes the same calls to both and compares the answers' fields.

It spends real money, of the account whose token it finds (HF_TOKEN, or `hf auth login`): it first says what and how much,
and asks (YES=1 answers). What it makes is private and is deleted at the end, also where a call fails. Only names and types
of fields are compared and printed, no values.

Exit code 0: each field of the test Hub is one of the real Hub's, of the same type. 1: the differences are printed.
2: no token. 3: nobody said yes. 4: a call failed.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import huggingface_hub
from hub import Hub
from huggingface_hub import HfApi
from huggingface_hub.utils import build_hf_headers, get_session
from huggingface_hub.utils._http import default_client_factory

FLAVOR, IMAGE, LONGEST = "cpu-basic", "python:3.12-slim", "2m"
COMMAND = ["python", "-uc", "import time; print('unsloth-jobs test-hub'); time.sleep(60)"]  # it is cancelled once it spoke
PATIENCE_S = 600.0  # for a machine to be free
TEST_TOKEN = "hf_testtesttesttest"


# ---- what was answered


@dataclass
class Answers:
    """Each call's answer, by its method and path, in which a `{word}` stands for what is different on each Hub."""

    words: dict[str, str] = field(default_factory=dict)  # a part of a path -> the word for it
    found: dict[str, Any] = field(default_factory=dict)

    def keep(self, response: Any) -> None:
        """Called by the client for each answer."""
        if "json" in response.headers.get("content-type", "") and response.status_code < 400:
            response.read()
            self.add(response.request.method, response.request.url.path, response.json())

    def add(self, method: str, path: str, answer: Any) -> None:
        parts = [self.words.get(part, part) for part in path.split("/")]
        self.found[f"{method} {'/'.join(parts)}"] = answer


def shape(value: Any) -> Any:
    """A JSON value with the name of its type in the place of each value, and a list's elements as one."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        merged = None
        for inner in value:
            merged = merge(merged, shape(inner))
        return [merged]
    names = {bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value))  # null says nothing of a field's type


def merge(one: Any, other: Any) -> Any:
    """The fields of two elements of a list."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: merge(one.get(name), other.get(name)) for name in one | other}
    if isinstance(one, list) and isinstance(other, list):
        return [merge(one[0], other[0])]
    return other if one is None else one


def differences(real: Any, test: Any, path: str) -> Iterator[tuple[str, bool]]:
    """What differs between two shapes, and whether that makes the test Hub untrue: a field more on the real one does not."""
    if real is None or test is None:
        return
    if isinstance(real, dict) and isinstance(test, dict):
        for name in sorted(real | test):
            if name not in real:
                yield f"{path}: `{name}` is in the test Hub's answer, not in the real one's", True
            elif name not in test:
                yield f"{path}: `{name}` is in the real Hub's answer only", False
            else:
                yield from differences(real[name], test[name], f"{path}: {name}")
    elif isinstance(real, list) and isinstance(test, list):
        yield from differences(real[0], test[0], f"{path}[]")
    elif real != test:
        yield f"{path}: {kind(real)} on the real Hub, {kind(test)} on the test Hub", True


def kind(found: Any) -> str:
    return {dict: "object", list: "list"}.get(type(found), found)


def compare(real: Answers, test: Answers) -> list[tuple[str, bool]]:
    found = []
    for call in sorted(real.found | test.found):
        if call not in real.found or call not in test.found:
            where = "test" if call not in real.found else "real"
            found.append((f"{call}: answered with JSON by the {where} Hub only", where == "test"))
        else:
            found += differences(shape(real.found[call]), shape(test.found[call]), call)
    return found


# ---- the calls


def free_calls(api: HfApi, answers: Answers) -> tuple[str, float]:
    """Who the caller is, and what a minute of the job's machine costs."""
    name = api.whoami()["name"]
    answers.words[name] = "{me}"
    return name, next(machine.unit_cost_usd for machine in api.list_jobs_hardware() if machine.name == FLAVOR)


def paid_calls(api: HfApi, answers: Answers, namespace: str, name: str) -> None:
    """Make a repository, a bucket and a job, look at them, and delete them, whatever happens."""
    repo = bucket = f"{namespace}/{name}"
    answers.words |= {name: "{name}"}
    with ExitStack() as made:
        made.callback(remove, f"{repo}, the repository", lambda: api.delete_repo(repo, missing_ok=True))
        api.create_repo(repo, private=True)
        api.upload_file(path_or_fileobj=b"a file", path_in_repo="file.txt", repo_id=repo)
        api.model_info(repo)
        made.callback(remove, f"{bucket}, the bucket", lambda: api.delete_bucket(bucket, missing_ok=True))
        api.create_bucket(bucket, private=True)
        api.batch_bucket_files(bucket, add=[(b"a file", "folder/file.txt")])
        list(api.list_bucket_tree(bucket, recursive=True))
        job = api.run_job(
            image=IMAGE, command=COMMAND, flavor=FLAVOR, timeout=LONGEST, labels={"test-hub": name}, namespace=namespace
        )
        answers.words[job.id] = "{job}"
        made.callback(remove, f"job {job.id}", lambda: end(api, namespace, job.id))
        wait(lambda: api.inspect_job(job_id=job.id, namespace=namespace).status.stage not in ("QUEUED", "SCHEDULING"))
        answers.add("GET", f"/api/jobs/{namespace}/{job.id}/logs", first_line(api, namespace, job.id))
        list(api.list_jobs(labels={"test-hub": name}, namespace=namespace))


def remove(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:
        print(f"Not deleted: {what}. Do it by hand.", file=sys.stderr)
        raise


def end(api: HfApi, namespace: str, job: str) -> None:
    if api.inspect_job(job_id=job, namespace=namespace).status.stage in ("QUEUED", "SCHEDULING", "RUNNING"):
        api.cancel_job(job_id=job, namespace=namespace)


def first_line(api: HfApi, namespace: str, job: str) -> Any:
    """The first event of the job's log, which the client's own call takes apart."""
    url = f"{api.endpoint}/api/jobs/{namespace}/{job}/logs"
    with get_session().stream("GET", url, headers=build_hf_headers(token=api.token), timeout=PATIENCE_S) as response:
        response.raise_for_status()
        return next(json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:"))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no machine was free within {PATIENCE_S:.0f} s")
        time.sleep(1.0)


def connect(endpoint: str | None, token: str, answers: Answers) -> HfApi:
    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "response": [*made.event_hooks["response"], answers.keep]}
        return made

    huggingface_hub.set_client_factory(client)
    return HfApi(endpoint=endpoint, token=token)


def ask_the_test_hub(name: str) -> Answers:
    answers = Answers()
    with tempfile.TemporaryDirectory() as root, Hub(root) as hub:
        hub.add_user("tester", token=TEST_TOKEN)
        api = connect(hub.url, TEST_TOKEN, answers)
        namespace, _ = free_calls(api, answers)
        paid_calls(api, answers, namespace, name)
    return answers


# ---- the program


def approved() -> bool:
    if os.environ.get("YES") == "1":
        return True
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def main() -> int:
    token = huggingface_hub.get_token()
    if not token:
        print("No token: set HF_TOKEN to one of type Write, from https://huggingface.co/settings/tokens", file=sys.stderr)
        return 2
    name = f"unsloth-jobs-test-{secrets.token_hex(4)}"
    try:
        test, real = ask_the_test_hub(name), Answers()
        api = connect(None, token, real)
        namespace, usd = free_calls(api, real)
        minutes = int(LONGEST.removesuffix("m"))
        print(f"At {api.endpoint}, as {namespace}, this makes:")
        print(f"- a private model repository and a private bucket, {namespace}/{name}, with a file of 6 bytes each; no cost")
        print(
            f"- a job on {FLAVOR} that is cancelled once it has printed a line: at most {minutes} minutes, ${minutes * usd:.4f}"
        )
        print("The repository and the bucket are deleted again; the job stays in your list of jobs.")
        if not approved():
            print("Nothing was made. YES=1 make test-hub goes on without asking.", file=sys.stderr)
            return 3
        paid_calls(api, real, namespace, name)
    except (OSError, RuntimeError, ValueError, huggingface_hub.errors.HTTPError) as error:
        print(f"A call failed: {str(error).replace(token, '***')}", file=sys.stderr)
        return 4
    found = compare(real, test)
    for line, untrue in found:
        print(f"{'DIFFERS' if untrue else 'more   '} {line}")
    wrong = sum(untrue for _, untrue in found)
    print(f"{len(test.found)} calls: {wrong or 'no'} difference{'' if wrong == 1 else 's'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
