"""Every fault of references/faults.md, injected: nothing is lost, nothing is paid twice, and one command goes on from there."""

from __future__ import annotations

import importlib
import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands, Said, with_json
from conftest import ROOT, SFT
from faults import PATIENCE_S, SHOWN, shows
from hub import Hub
from hubs import ADA, BOB, hub_of_ada
from tiny_models import shape_of_a_model

TABLE = (ROOT / "references" / "faults.md").read_text()
ELSEWHERE = {  # faults of the table whose test stands with what it disturbs
    "trackio-down": ("test_training.py", "test_an_unreachable_dashboard_costs_the_curves_not_the_run"),
    "told-to-end": ("test_kept.py", "test_a_run_that_is_told_to_end_saves_pushes_and_goes_on_later"),
    "near-timeout": ("test_kept.py", "test_a_job_stops_before_its_timeout_and_is_gone_on_with"),
    "sigkill": ("test_kept.py", "test_a_killed_run_goes_on_from_its_pushed_checkpoint_on_another_machine"),
}


def test_the_table_states_the_outcomes_that_are_tested():
    for other in ("local", "job"):
        importlib.import_module(f"test_faults_{other}")  # each says what it shows
    rows = re.findall(r"(?m)^\| (`.*?) \| `(\w+)` \|", TABLE)
    stated = {fault: outcome for cell, outcome in rows for fault in re.findall(r"`([a-z][a-z0-9-]*)`", cell)}
    assert {fault: stated[fault] for fault in stated if fault in SHOWN} == SHOWN
    assert stated.keys() - SHOWN == ELSEWHERE.keys()
    for file, test in ELSEWHERE.values():
        assert f"def {test}(" in Path(__file__).with_name(file).read_text()


# ---- the commands, which do not wait long


class Impatient(Commands):
    """Commands of a user; each call says for how long one waits for a Hub that says no, and for one that does not answer."""

    def __init__(self, env: dict[str, str], cwd: Path):
        super().__init__(env | {"HF_HUB_ETAG_TIMEOUT": "1", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}, cwd)

    def __call__(self, script: str, *words: str, patience_s: float = 0.3, timeout_s: float = 10.0) -> Said:
        self.settings = {
            "lookup.client:PATIENCE_S": patience_s,
            "lookup.client:connect.__defaults__": [timeout_s],
            "jobs.submission:SEARCH_AFTER_S": [0.0, patience_s],
        }
        said = self.run(f"{script}.py", *with_json(words), code=None)
        assert ADA not in said.stdout + said.stderr
        return said


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, docs: Path) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("faults")
    with hub_of_ada(root / "hub", model=shape_of_a_model(root / "model"), rows=docs, scheduling=0.02) as hub:
        hub.add_user("bob", token=BOB)
        yield hub


@pytest.fixture(autouse=True)
def no_fault_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").faults.clear()


@pytest.fixture(scope="module")
def server(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Impatient:
    return Impatient(hub.env(token=ADA), tmp_path_factory.mktemp("server"))


COUNT = iter(range(10_000))


def new_plan(script: Path = SFT) -> list[str]:
    """The words of a submit that no other test has made."""
    number = next(COUNT)
    wish = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--output-repo", f"ada/r{number}", "--seed", str(number)]
    return [str(script), "--yes", "--max-usd", "9", "--", *wish]


def jobs_of(hub: Hub, words: list[str]) -> list:
    """The jobs of a plan on the Hub: each of them is paid for."""
    seed = words[words.index("--seed") + 1]
    # A template's arguments stand in their canonical form, those of any other script as they were typed.
    return [job for job in hub.jobs if re.search(rf"--seed[= ]{seed}( |$)", " ".join(job.spec["command"]))]


@pytest.fixture(scope="module")
def done(hub: Hub, server: Impatient) -> str:
    """A job that was submitted and has completed."""
    job = server("submit", *new_plan()).json["job_id"]
    hub.jobs.wait(job)
    return job


# ---- at look-up

LOOK_UP: dict[str, tuple[dict[str, Any], int, str | None]] = {  # the fault, the exit code, the problem (None: none is seen)
    "401": ({"status": 401, "body": {"error": "Invalid credentials in Authorization header"}}, 4, "bad_token"),
    "403": ({"status": 403, "body": {"error": "Not with this token"}}, 4, "forbidden"),
    "429": ({"status": 429, "headers": {"Retry-After": "3600"}}, 4, "rate_limited"),
    "429-short": ({"status": 429, "headers": {"Retry-After": "1"}, "times": 1}, 0, None),
    "500": ({"status": 500}, 4, "hub_error"),
    "503-once": ({"status": 503, "times": 1}, 0, None),
    "slow": ({"delay": 1.5}, 4, "hub_unreachable"),
    "dropped": ({"drop": "before"}, 4, "hub_unreachable"),
    "garbled": ({"status": 200, "body": "<html>log in to this network</html>"}, 4, "hub_garbled"),
}
ASKED = {  # what is asked first, by the command that asks it
    "submit": ("/api/whoami", "/api/models/ada/tiny$", "/api/jobs/hardware"),
    "status": ("/api/jobs/ada/[^/]+$",),
    "logs": ("/api/jobs/ada/[^/]+/logs",),
    "estimate": ("/api/models/ada/tiny$",),  # check.py: see test_check.py
}


@shows(
    lookup_401="bad_token",
    lookup_403="forbidden",
    lookup_429="rate_limited",
    lookup_500="hub_error",
    lookup_slow="hub_unreachable",
    lookup_dropped="hub_unreachable",
    lookup_garbled="hub_garbled",
    lookup_passing="none",
)
@pytest.mark.parametrize("script", ASKED)
@pytest.mark.parametrize("fault", LOOK_UP)
def test_at_look_up(hub, server, done, script, fault):
    how, code, problem = LOOK_UP[fault]
    if script == "logs" and fault in ("slow", "garbled"):
        return  # the client has a patience of its own with a log, and leaves out what is no line of it
    words = {"submit": new_plan()[:1] + ["--"] + new_plan()[-8:], "status": [done], "logs": [done]}
    wish = words.get(script, ["ada/tiny", "ada/docs"])
    well = {"submit": (3, None), "status": (0, None), "logs": (0, None)}.get(script, (1, "no_tokenizer"))
    for place in ASKED[script]:
        asked = hub.faults.add(path=place, **how)
        said = server(script, *wish, patience_s=2 if fault.endswith(("short", "once")) else 0.3, timeout_s=1)
        hub.faults.clear()
        assert asked.hits
        assert (said.returncode, said.problem) == ((code, problem) if problem else well), (place, said)
    assert not jobs_of(hub, wish) if script == "submit" else True


@shows(lookup_404="not_found")
def test_what_is_not_there_is_said_with_what_to_correct(hub, server):
    said = server("submit", str(SFT), "--", "--base-model", "ada/tiny", "--dataset", "ada/nothing")
    assert (said.returncode, said.problem) == (1, "not_found")
    said = server("check", "ada/nothing", "ada/docs")
    assert (said.returncode, said.problem) == (1, "not_found")


@shows(lookup_refused="hub_unreachable", lookup_dns="hub_unreachable")
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nosuchhost.invalid", "https://127.0.0.1:9"])
def test_a_hub_that_cannot_be_reached(tmp_path, endpoint):
    commands = Commands({"HF_ENDPOINT": endpoint, "HF_TOKEN": ADA, "HF_HOME": str(tmp_path)}, tmp_path)
    problem = commands.json("submit.py", *new_plan(), code=4)["problems"][0]
    assert problem["code"] == "hub_unreachable"
    assert endpoint in problem["message"] and "HF_ENDPOINT" in problem["fix"]


@pytest.mark.parametrize("job", ["", ".", "..", "a b", "x?stage=RUNNING", "x%2Fy", "a" * 101, "\x1b[2J"])
@pytest.mark.parametrize("script", ["status", "logs"])
def test_what_is_no_job_id_is_no_path_and_no_query(hub, server, script, job):
    hub.journal.clear()
    said = server(script, job)
    assert (said.returncode, said.problem) == (2, "bad_job_id")
    assert not len(hub.journal)


@shows(job_of_another="unknown_job")
def test_a_job_of_another_owner_is_found_by_its_address(hub, server, done, tmp_path):
    other = Commands(hub.env(token=BOB), tmp_path)
    problem = other.json("status.py", done, code=1)["problems"][0]
    assert problem["code"] == "unknown_job" and "--namespace" in problem["fix"]
    url = f"{hub.url}/jobs/ada/{done}"
    hub.journal.clear()
    assert server("status", url).json["stage"] == "COMPLETED"
    assert not hub.journal.requests(path="whoami")  # which the Hub limits strictly


# ---- at submit

JOB, ARTIFACTS = r"^/api/jobs/ada$", "^/api/buckets/ada/jobs-artifacts"
SUBMIT: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "402": ({"path": JOB, "status": 402, "body": {"error": "Pre-paid credit balance is insufficient"}}, 4, "no_credit"),
    "403": ({"path": JOB, "status": 403, "body": {"error": "Missing permission job.write"}}, 4, "forbidden"),
    "flavor": ({"path": JOB, "status": 400, "body": {"error": 'Invalid flavor "l4x1"'}}, 4, "refused"),
    "429": ({"path": JOB, "status": 429, "headers": {"Retry-After": "3600"}}, 4, "rate_limited"),
    # Whether a job comes of these two is not known here: the Hub may have them in hand.
    "500": ({"path": JOB, "status": 500}, 4, "submit_unclear"),
    "dropped": ({"path": JOB, "drop": "before"}, 4, "submit_unclear"),
    "upload": ({"path": f"{ARTIFACTS}/batch", "status": 403}, 4, "forbidden"),
    "upload-broken": ({"path": "^/cas/v1/shards", "status": 500}, 4, "upload_failed"),
    # From here on the Hub has created the job before its answer is lost.
    "dropped-after": ({"path": JOB, "drop": "after"}, 0, None),
    "500-after": ({"path": JOB, "status": 500, "handled": True}, 0, None),
    "slow-after": ({"path": JOB, "delay": 4.0, "handled": True}, 0, None),
    "garbled-after": ({"path": JOB, "status": 200, "body": "<html>", "handled": True}, 0, None),
}


@shows(
    submit_402="no_credit",
    submit_403="forbidden",
    submit_flavor="refused",
    submit_429="rate_limited",
    submit_500="submit_unclear",
    submit_dropped="submit_unclear",
    submit_upload="upload_failed",
    submit_answer_lost="none",
)
@pytest.mark.parametrize("fault", SUBMIT)
def test_at_submit(hub, server, fault):
    how, code, problem = SUBMIT[fault]
    words = new_plan()
    asked = hub.faults.add(method="POST", **how)
    first = server("submit", *words, timeout_s=3)
    hub.faults.clear()
    assert asked.hits
    assert (first.returncode, first.problem) == (code, problem), first
    assert len(jobs_of(hub, words)) == (0 if problem else 1)
    if problem == "submit_unclear":
        refused = server("submit", *words)
        assert (refused.problem, len(jobs_of(hub, words))) == ("submit_unclear", 0)  # the approval is used up
        words = approved_anew(server, words)
    assert_once(hub, server, words, existed=problem is None)


def approved_anew(server: Impatient, words: list[str]) -> list[str]:
    """The words of a submit that its user has been shown a new plan of, and has approved that."""
    at = words.index("--yes")
    wish = words[:at] + words[at + 1 :]
    shown = server("submit", *wish)
    assert shown.returncode == 3 and shown.json["plan"].get("start", 2) > 1
    return [wish[0], "--approve", shown.json["plan_id"], *wish[1:]]


def assert_once(hub: Hub, server: Impatient, words: list[str], existed: bool) -> None:
    """The same command again leads to the one job of its plan, which is on record."""
    again = server("submit", *words)
    assert (again.returncode, again.problem) == (0, None), again
    assert again.json["existed"] is existed
    assert [job.id for job in jobs_of(hub, words)] == [again.json["job_id"]]
    listed = [job["job_id"] for job in server("status", "--all").json["jobs"]]
    assert listed.count(again.json["job_id"]) == 1


@shows(submit_unclear="submit_unclear")
def test_whether_a_job_exists_is_said_to_be_unknown_where_it_is(hub, server):
    words = new_plan()
    hub.faults.add(method="POST", path=JOB, drop="after")
    hub.faults.add(method="GET", path=JOB, drop="before", skip=3)  # before it starts one, submit looks for a job three times
    first = server("submit", *words)
    hub.faults.clear()
    assert (first.returncode, first.problem) == (4, "submit_unclear")
    assert len(jobs_of(hub, words)) == 1
    assert_once(hub, server, words, existed=True)


def test_a_job_that_was_never_told_of_is_told_however_it_ended(hub, server):
    words = new_plan()
    hub.faults.add(method="POST", path=JOB, drop="after")
    hub.faults.add(method="GET", path=JOB, drop="before", skip=3)
    server("submit", *words)
    hub.faults.clear()
    [job] = jobs_of(hub, words)
    hub.jobs.set(job.id, stage="ERROR", message="Job failed with exit code: 1")
    for _ in range(2):
        told = server("submit", *words).json
        assert (told["job_id"], told["existed"], told["stage"]) == (job.id, True, "ERROR")
    assert server("submit", *approved_anew(server, words)).json["job_id"] != job.id  # by a new approval


# ---- Ctrl-C, kill, and two at once: real processes


class Submitting:
    """A submit on its way, in a process of its own."""

    def __init__(self, server: Commands, words: list[str]):
        command = [sys.executable, str(ROOT / "scripts" / "submit.py"), *with_json(words)]
        self.process = subprocess.Popen(
            command, cwd=server.cwd, env=server.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def reaches(self, hub: Hub, method: str, path: str) -> Submitting:
        """Wait until the Hub has received this request."""
        deadline = time.monotonic() + PATIENCE_S
        while not hub.journal.requests(method, path):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.01)
        time.sleep(0.1)
        return self

    def ends(self, signal_: int | None = None) -> tuple[int, dict[str, Any]]:
        if signal_:
            self.process.send_signal(signal_)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err and ADA not in out + err, err
        return self.process.returncode, json.loads(out) if out.strip() else {}


@pytest.mark.parametrize("sent", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "twice"])
def test_what_ends_a_submit_amid_it_leaves_one_job_and_a_word_of_it(hub, server, sent):
    """The Hub works on the request for longer than anybody looks; the job is started all the same."""
    words = new_plan()
    hub.journal.clear()
    hub.faults.add(method="POST", path=JOB, delay=6, times=1)
    submitting = Submitting(server, words).reaches(hub, "POST", JOB)
    for signal_ in sent[:-1]:
        submitting.process.send_signal(signal_)
        time.sleep(1.2)
    code, told = submitting.ends(sent[-1])
    assert (code, told["problems"][0]["code"]) == (130, "interrupted")
    said = told["problems"][0]["message"]
    assert ("may still appear" in said) if len(sent) == 2 else ("had been started" in said)
    again = server("submit", *words, patience_s=8)  # at once
    assert again.json["existed"] is True
    assert [job.id for job in jobs_of(hub, words)] == [again.json["job_id"]]


def test_ctrl_c_while_the_job_is_looked_for_says_what_is_not_known(hub, server):
    words = new_plan()
    hub.journal.clear()
    hub.faults.add(method="POST", path=JOB, status=500, times=1)
    submitting = Submitting(server, words).reaches(hub, "POST", JOB)
    time.sleep(1.5)
    submitting.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    code, told = submitting.ends(signal.SIGINT)
    assert (code, told["problems"][0]["code"]) == (130, "interrupted")
    assert "may still appear" in told["problems"][0]["message"]
    assert (server("submit", *words).problem, jobs_of(hub, words)) == ("submit_unclear", [])


INTERRUPTED = {  # the moment, as the request that takes long then, and whether a job comes of it all the same
    "looking": ({"method": "GET", "path": JOB, "delay": 5}, False),
    "uploading": ({"method": "POST", "path": f"{ARTIFACTS}/batch", "delay": 5}, False),
    "asking": ({"method": "POST", "path": JOB, "delay": 1.5}, True),  # the Hub has it in hand, and will start it
    "answered": ({"method": "POST", "path": JOB, "delay": 20, "handled": True}, True),
}


@shows(interrupted="interrupted")
@pytest.mark.parametrize("moment", INTERRUPTED)
def test_ctrl_c(hub, server, moment):
    how, started = INTERRUPTED[moment]
    words = new_plan()
    hub.journal.clear()
    hub.faults.add(**how, times=1)
    code, told = Submitting(server, words).reaches(hub, how["method"], how["path"]).ends(signal.SIGINT)
    assert code == 130
    if moment != "looking":  # nothing is begun before, and nothing needs to be said
        assert told["problems"][0]["code"] == "interrupted"
        assert ("--cancel" in told["problems"][0]["fix"]) is started
    assert len(jobs_of(hub, words)) == started
    assert_once(hub, server, words, existed=started)


@shows(killed="none")
def test_a_submit_that_is_killed_amid_it_is_found_by_status_alone(hub, server):
    words = new_plan()
    hub.journal.clear()
    hub.faults.add(method="POST", path=JOB, delay=20, handled=True, times=1)
    Submitting(server, words).reaches(hub, "POST", JOB).ends(signal.SIGKILL)
    [job] = jobs_of(hub, words)
    assert job.id in [one["job_id"] for one in server("status", "--all").json["jobs"]]
    assert_once(hub, server, words, existed=True)


@shows(submitted_twice="none")
def test_the_same_command_twice_at_once_starts_one_job(hub, server):
    words = new_plan()
    hub.faults.add(method="POST", path=f"{ARTIFACTS}/batch", delay=1, times=1)
    both = [Submitting(server, words) for _ in range(2)]
    told = [submitting.ends() for submitting in both]
    assert [code for code, _ in told] == [0, 0]
    assert sorted(one["existed"] for _, one in told) == [False, True]
    assert len({one["job_id"] for _, one in told}) == len(jobs_of(hub, words)) == 1


# ---- records that cannot be written or read


def no_file_grows() -> None:
    """As on a full disk: each write of a byte fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def run_on_full_disk(server: Impatient, script: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *words],
        cwd=server.cwd,
        env=server.env,
        preexec_fn=no_file_grows,
        capture_output=True,
        text=True,
    )


@shows(records_full="records_unwritable")
def test_a_full_disk_is_noticed_before_anything_is_paid_for(hub, server, done):
    words = new_plan()
    folder = Path(server.env["HF_HOME"]) / "unsloth-jobs"
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    ended = run_on_full_disk(server, "submit.py", *words)
    assert ended.returncode == 1 and "records_unwritable" in ended.stderr and "Traceback" not in ended.stderr
    assert not jobs_of(hub, words)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    assert not list(folder.rglob("*.partial"))
    looked = run_on_full_disk(server, "status.py", done)
    assert (looked.returncode, "COMPLETED" in looked.stdout) == (0, True), looked.stderr


def test_a_home_that_is_none_hides_no_job(hub, server, done, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "unsloth-jobs").write_text("a file where the folder should be")
    commands = Commands(server.env | {"HF_HOME": str(home)}, tmp_path)
    words = new_plan()
    assert commands.json("submit.py", *words, code=1)["problems"][0]["code"] == "records_unwritable"
    assert not jobs_of(hub, words)
    assert commands.json("status.py", done)["stage"] == "COMPLETED"


def test_a_job_that_cannot_be_recorded_is_told_all_the_same(hub, tmp_path):
    words, commands = new_plan(), Commands(hub.env(token=ADA), tmp_path)
    hub.journal.clear()
    hub.faults.add(method="POST", path=JOB, delay=1, times=1)
    submitting = Submitting(commands, words).reaches(hub, "POST", JOB)
    runs = Path(commands.env["HF_HOME"]) / "unsloth-jobs" / "runs"
    runs.write_text("a file where the folder should be")
    code, told = submitting.ends()
    [job] = jobs_of(hub, words)
    assert (code, told["job_id"]) == (0, job.id)
    runs.unlink()
    assert [one["job_id"] for one in commands.json("status.py", "--all")["jobs"]] == [job.id]  # it was on record as an attempt


def test_a_record_that_is_cut_off_hides_no_other(server, done):
    runs = Path(server.env["HF_HOME"]) / "unsloth-jobs" / "runs"
    for name, text in (("cut", '{"job_id": "cut", "pl'), ("other", "[]"), ("empty", "")):
        (runs / f"{name}.json").write_text(text)
    try:
        said = server("status", "--all")
        assert said.returncode == 0
        assert done in [job["job_id"] for job in said.json["jobs"]]
    finally:
        for name in ("cut", "other", "empty"):
            (runs / f"{name}.json").unlink()


def test_a_clock_that_is_behind_gives_no_negative_time(hub, server):
    job = server("submit", *new_plan()).json["job_id"]
    hub.jobs.wait(job)
    hub.jobs.get(job).started = time.time() + 3600
    found = server("status", job).json
    assert found["elapsed_s"] == 0 and found["spent_usd"] == 0


# ---- while it runs


@pytest.fixture
def job(hub: Hub, server: Impatient) -> str:
    """A job whose stage and log a test sets."""
    job = server("submit", *new_plan()).json["job_id"]
    hub.jobs.wait(job)
    return job
