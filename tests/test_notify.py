"""status.py --watch --notify: a webhook and a command of the user's, each real, on loopback."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import SFT
from hubs import ADA, event
from unsloth_jobs.errors import UserError
from unsloth_jobs.status import notify

TRAIN = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "2"]


@pytest.fixture
def hook():
    """A webhook; `hook.got` is what it was sent: (path, content type, text). A path that begins with /moved leads elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            server.got.append((self.path, self.headers["Content-Type"], text))
            moved = self.path.startswith("/moved")
            self.send_response(307 if moved else 500 if self.path == "/broken" else 200)
            if moved:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def submitted(hub, commands) -> str:
    job = commands.json("submit.py", str(SFT), "--flavor", "l4x1", "--yes", "--max-usd", "9", "--", *TRAIN)["job_id"]
    hub.jobs.wait(job)
    return job


def test_a_job_that_is_done_is_told_once_to_a_webhook(hub, commands, submitted, hook):
    done = event("done", repo="ada/tiny-docs", base_loss=2.0, tuned_loss=1.5, steps=24)
    hub.jobs.set(submitted, stage="COMPLETED", logs=[done])
    said = commands.run("status.py", submitted, "--watch", "--notify", f"{hook.url}/services/T000/secret-path")
    [(path, kind, text)] = hook.got
    assert (path, kind) == ("/services/T000/secret-path", "application/json")
    told = json.loads(text)
    assert told["text"] == told["content"]  # as Slack and as Discord read it
    assert f"Job {submitted}: COMPLETED" in told["text"] and "Result: " in told["text"] and "2.0000 → 1.5000" in told["text"]
    assert (told["job_id"], told["job_stage"]) == (submitted, "COMPLETED")
    assert "secret-path" not in said.stdout + said.stderr


def test_a_job_that_failed_is_told_to_a_command_which_no_shell_and_no_secret_reaches(hub, commands, submitted, tmp_path):
    script = tmp_path / "tell.py"
    script.write_text(
        "import json, os, sys\n"
        "with open('told.jsonl', 'a') as file:\n"
        "    file.write(json.dumps({'words': sys.argv[1:], 'env': dict(os.environ)}) + '\\n')\n"
    )
    failed = event("failed", code="config", message=f"no $(touch gone) with {ADA}", fix="Say it. `touch gone`")
    hub.jobs.set(submitted, stage="ERROR", message="exit 1", logs=[failed])
    target = shlex.join([sys.executable, str(script), "for me"])
    commands.env |= {"JUDGE_API_KEY": "judge-key-of-ada-1234567890"}
    commands.run("status.py", submitted, "--watch", "--notify", target, code=1)
    [line] = (tmp_path / "told.jsonl").read_text().splitlines()
    told = json.loads(line)
    first, text = told["words"]
    assert first == "for me" and text == told["env"]["JOB_TEXT"]
    assert f"Job {submitted}: ERROR" in text
    assert (told["env"]["JOB_ID"], told["env"]["JOB_STAGE"]) == (submitted, "ERROR")
    assert ADA not in line and "judge-key" not in line
    assert not (tmp_path / "gone").exists()


def test_a_comparison_is_told_once_when_its_last_run_has_ended(hub, commands, hook):
    """With its winner, and not before."""
    words = ["submit.py", str(SFT), "--vary", "lora-r=8,16", "--yes", "--max-usd", "9", "--", *TRAIN]
    begun = commands.json(*words)
    first, second = (job["job_id"] for job in begun["jobs"])
    result = {"repo": "ada/x", "base_loss": 4.0}
    hub.jobs.set(first, stage="COMPLETED", logs=[event("done", tuned_loss=2.0, **result)])
    hub.jobs.set(second, stage="RUNNING")
    ends = {"stage": "COMPLETED", "logs": [event("done", tuned_loss=3.0, **result)]}
    threading.Timer(1.0, hub.jobs.set, (second,), ends).start()
    watch = ["--watch", "--interval", "0.2", "--notify", f"{hook.url}/hook"]
    found = commands.json("status.py", begun["group_id"], *watch)
    [(_, _, text)] = hook.got
    told = json.loads(text)
    assert f"Comparison {begun['group_id']}: 2 runs, 2 COMPLETED" in told["text"]
    assert found["verdict"]["sentence"] in told["text"] and f"ada/tiny-docs-{found['winner']}" in told["text"]
    assert (told["job_id"], told["job_stage"], told["job_winner"]) == (begun["group_id"], "COMPLETED", found["winner"])


def test_ntfy_is_sent_the_text_as_it_is(hook, monkeypatch):
    monkeypatch.setenv("http_proxy", hook.url)  # which a request to any other host goes through
    monkeypatch.delenv("no_proxy", raising=False)
    assert notify.notify("http://ntfy.sh/topic", "Job 1: COMPLETED", {"job_id": "1"}) is None
    assert hook.got == [("http://ntfy.sh/topic", "text/plain; charset=utf-8", "Job 1: COMPLETED")]


def test_what_is_in_the_way_is_a_warning_without_the_address_and_ends(hook, monkeypatch):
    monkeypatch.setattr(notify, "REQUEST_S", 0.3)
    monkeypatch.setattr(notify, "COMMAND_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        targets = {
            f"{hook.url}/broken": "it answered 500",
            f"{hook.url}/moved": "it answered 307",
            f"http://127.0.0.1:{silent.getsockname()[1]}/secret": "it took too long",
            "http://127.0.0.1:9/secret": "refused",
            f"{hook.url}/a secret": "InvalidURL",
            f"{sys.executable} -c 'raise SystemExit(3)'": "exit code 3",
            f"{sys.executable} -c 'import time; time.sleep(30)'": "it took too long",
        }
        for target, why in targets.items():
            problem = notify.notify(target, "text", {})
            assert problem and problem.severity == "warning" and why in problem.message, (target, problem)
            assert "secret" not in problem.message
    assert [path for path, _, _ in hook.got] == ["/broken", "/moved"]  # nothing is sent on to where it leads


@pytest.mark.parametrize("target", ["", "no-such-program-here x", "ftp://host/x", "https://", "https://host/a b", "echo 'open"])
def test_what_can_be_neither_run_nor_posted_to_is_refused_before_the_watch(target):
    with pytest.raises(UserError) as refused:
        notify.require_target(target)
    assert refused.value.problem.code == "bad_notify"


def test_without_watch_there_is_nothing_to_tell(commands):
    [problem] = commands.json("status.py", "abc", "--notify", "echo", code=2)["problems"]
    assert problem["code"] == "no_watch" and "--watch" in problem["fix"]
