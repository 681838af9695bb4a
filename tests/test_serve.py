"""A model is served: the plan, the job on an exposed port, real clients, a real browser, and how it ends.

One job answers for most tests: a tiny model and a LoRA adapter of it, whose answers plain transformers and PEFT have given too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import openai
import psutil
import pytest
from commands import HASTY, Commands
from conftest import ROOT, python_of
from hub import Hub
from hubs import ADA, BOB, hub_of_ada

SERVING = ROOT / "templates" / "serving.py"
QUESTION, TOKENS = "What does zyzzyva.sort do?", 60
MAKE = """
import json, sys
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

base, folder, question, tokens = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt",
                                    return_dict=False)
def answer(model):
    with torch.no_grad():
        said = model.generate(ids, max_new_tokens=int(tokens), do_sample=False)
    return tokenizer.decode(said[0, ids.shape[1]:], skip_special_tokens=True)
before = answer(model)
torch.manual_seed(1)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
for name, value in model.named_parameters():
    if "lora_B" in name:
        value.data.normal_(std=0.05)
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
print(json.dumps({"base": before, "tuned": answer(model)}))
"""


@pytest.fixture(scope="module")
def serving_python() -> str:
    return python_of(SERVING)


@pytest.fixture(scope="module")
def models(serving_python, tiny_model, tmp_path_factory) -> SimpleNamespace:
    """A folder with an adapter of tiny_model, and what each says to QUESTION."""
    folder = tmp_path_factory.mktemp("served") / "tuned"
    making = [serving_python, "-c", MAKE, str(tiny_model), str(folder), QUESTION, str(TOKENS)]
    said = json.loads(subprocess.run(making, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert said["base"] != said["tuned"]
    return SimpleNamespace(folder=folder, said=said)


@pytest.fixture(scope="module")
def live(models, tiny_model, tmp_path_factory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("serving")
    on_hub = shutil.copytree(models.folder, folder / "tuned")
    config = json.loads((on_hub / "adapter_config.json").read_text())
    (on_hub / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "ada/tiny"}))
    with hub_of_ada(folder / "hub", execute_jobs=True, model=tiny_model) as hub:
        hub.add_user("bob", token=BOB)
        hub.add_repo("ada/tiny", private=True)
        hub.add_repo("ada/tuned", on_hub, private=True)
        yield hub


@pytest.fixture(scope="module")
def ada(live, tmp_path_factory) -> Commands:
    return Commands(
        live.env(token=ADA), tmp_path_factory.mktemp("ada"), settings=HASTY | {"chat.address:LOOKS_EVERY_S": {"hf": 0.3}}
    )


@pytest.fixture(scope="module")
def served(live, ada) -> SimpleNamespace:
    """A job that answers: planned, approved, and what was seen on the way."""
    shown = ada.json("serve.py", "ada/tuned", "--timeout", "20m", "--max-usd", "0.5", code=3)
    assert not list(live.jobs)  # nothing is started, or paid, without approval
    words = ["serve.py", "ada/tuned", "--timeout", "20m", "--max-usd", "0.5", "--approve", shown["plan_id"]]
    job = ada.json(*words, "--no-wait")["job_id"]
    early = httpx.get(f"{live.jobs.get(job).ports[0].url}/health", headers={"Authorization": f"Bearer {ADA}"}).status_code
    said = ada.run("serve.py", job, "--wait", code=None)
    log = "\n".join(line.text for line in live.jobs.get(job).logs)
    assert said.returncode == 0, f"{said.stderr}\n{log[-3000:]}"
    url = ada.json("serve.py", job)["url"]
    return SimpleNamespace(job=job, url=url, plan=shown, said=said, early=early)


def client_of(served: SimpleNamespace, token: str = ADA) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=token, max_retries=0, timeout=120)


def asking(question: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": question}]


# ---- the plan and the way to the first answer


def test_the_plan_says_what_is_served_by_what_to_whom_and_the_most_that_it_can_cost(live, served):
    plan, summary = served.plan["plan"], served.plan["summary"]
    heads = {name: live.store.repos["model", name].head.sha for name in ("ada/tuned", "ada/tiny")}
    assert f"--model=ada/tuned@{heads['ada/tuned']}" in plan["arguments"]
    assert f"--base-model-revision={heads['ada/tiny']}" in plan["arguments"]
    assert (plan["flavor"], plan["timeout_s"], plan["max_usd"], plan["port"]) == ("cpu-basic", 1200, 0.01, 8000)
    assert summary["serves"].startswith("tuned: ada/tuned at ") and summary["beside"].startswith("base: ada/tiny at ")
    assert summary["engine"].startswith("transformers (no GPU") and "10 minutes" in summary["ends itself"]
    assert "token" in summary["answers"] and summary["costs at most"] == "$0.01"


def test_the_job_exposes_its_port_to_those_who_may_read_it(live, served):
    spec = live.jobs.get(served.job).spec
    assert spec["expose"] == {"ports": [8000], "portsPublic": []} and spec["timeoutSeconds"] == 1200
    assert served.early in (502, 503)  # nothing listens yet, or the model is being loaded
    assert "… loading the model" in served.said.stderr and "… answering" in served.said.stderr


def test_the_openai_client_streams_base_and_tuned_at_the_same_time(served, models):
    assert [model.id for model in client_of(served).models.list()] == ["base", "tuned"]
    order, answers, usage = [], {"base": "", "tuned": ""}, {}
    both = threading.Barrier(2)

    def follow(name: str) -> None:
        both.wait()
        stream = client_of(served).chat.completions.create(
            model=name, messages=asking(), stream=True, max_tokens=TOKENS, stream_options={"include_usage": True}
        )
        for chunk in stream:
            order.append(name)
            answers[name] += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage[name] = chunk.usage or usage.get(name)

    threads = [threading.Thread(target=follow, args=(name,)) for name in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == models.said  # as each would have said alone, by plain transformers and PEFT
    assert all(one.completion_tokens == TOKENS for one in usage.values())
    first, last = (
        {name: find(name) for name in answers} for find in (order.index, lambda name: len(order) - order[::-1].index(name))
    )
    assert first["base"] < last["tuned"] and first["tuned"] < last["base"], "one waited for the other's end"


def test_an_answer_in_one_piece_ends_at_a_stop_word_or_at_its_limit(served, models):
    create = client_of(served).chat.completions.create
    whole = create(model="tuned", messages=asking(), max_tokens=TOKENS, temperature=0)
    assert whole.choices[0].message.content == models.said["tuned"] and whole.choices[0].finish_reason == "length"
    word = models.said["tuned"][10:14]
    cut = create(model="tuned", messages=asking(), max_tokens=TOKENS, temperature=0, stop=[word])
    assert cut.choices[0].message.content == models.said["tuned"].partition(word)[0] and cut.choices[0].finish_reason == "stop"
    seeded = [create(model="base", messages=asking(), max_tokens=20, temperature=1.5, seed=7) for _ in range(2)]
    assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content


def test_the_lines_that_are_printed_are_true(served, ada, models):
    """The curl command and the three lines of Python, as they stand."""
    curl = next(line for line in served.said.stdout.splitlines() if line.startswith("curl "))
    python = served.said.stdout[served.said.stdout.index("import openai") :]
    env = ada.env | {"HF_TOKEN": ADA, "PATH": os.environ["PATH"]}
    answer = json.loads(
        subprocess.run(["bash", "-c", curl.replace("curl ", "curl -s ")], env=env, capture_output=True, text=True).stdout
    )
    assert answer["object"] == "chat.completion" and answer["model"] == "tuned"
    printed = subprocess.run([sys.executable, "-c", python], env=env, capture_output=True, text=True)
    assert printed.returncode == 0 and printed.stdout.strip(), printed.stderr


def test_who_may_not_read_the_job_is_refused_by_the_hub(served):
    with pytest.raises(openai.AuthenticationError):
        client_of(served, "hf_wrongwrongwrong").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client_of(served, BOB).models.list()
    assert httpx.get(f"{served.url}/").status_code == 401


REFUSED = [
    ({"model": "other", "messages": asking()}, 404, "model_not_found"),
    ({"model": "tuned", "messages": []}, 400, "bad_messages"),
    ({"model": "tuned", "messages": [{"role": "robot", "content": "x"}]}, 400, "bad_messages"),
    ({"model": "tuned", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "bad_messages"),
    ({"model": "tuned", "messages": asking(), "temperature": "hot"}, 400, "bad_value"),
    ({"model": "tuned", "messages": asking(), "max_tokens": 0}, 400, "bad_value"),
    ({"model": "tuned", "messages": asking(), "stop": [1]}, 400, "bad_value"),
    ({"model": "tuned", "messages": asking(), "n": 2}, 400, "unsupported"),
    ({"model": "tuned", "messages": asking(), "tools": [{"type": "function"}]}, 400, "unsupported"),
    ({"model": "tuned", "messages": asking("word " * 600)}, 400, "context_length_exceeded"),
    ({"model": "tuned", "messages": asking("word " * 600), "stream": True}, 400, "context_length_exceeded"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSED)
def test_a_request_that_cannot_be_answered_says_why(served, body, status, code):
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {ADA}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]


def test_status_says_what_it_answered_what_is_left_and_what_it_costs(served, ada):
    client_of(served).chat.completions.create(model="tuned", messages=asking(), max_tokens=3)
    deadline = time.monotonic() + 60
    while not (found := ada.json("status.py", served.job))["serving"]["requests"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    said = found["serving"]
    assert said["tokens"] >= 3 and said["tokens_per_second"] > 0 and said["address"] == served.url
    assert 0 < said["ends_at"] - time.time() < 1200 and found["max_usd"] == 0.01
    shown = ada.run("status.py", served.job).stdout
    assert "answered" in shown and "of at most" in shown and "at the latest" in shown and "--cancel" in shown


# ---- the page, in a browser


@pytest.fixture(scope="module")
def door(served, ada) -> Iterator[str]:
    """The address of this machine that `serve.py JOB --page` opens the job's page at."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), served.job, "--page"]
    process = subprocess.Popen(
        command,
        env=ada.env | {"PYTHONUNBUFFERED": "1"},
        cwd=ada.cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stdout if line.startswith("In a browser: "))
    yield line.split()[-1]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from browser import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, door) -> Iterator:
    """The page on a narrow screen. It must load nothing from elsewhere, and break no rule of its own policy."""
    page = browser.new_page(viewport={"width": 360, "height": 640})
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: message.text.startswith("Failed to load resource") or complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(door)
    page.locator("#state", has_text="Ready").wait_for(timeout=60_000)
    yield page
    assert all(url.startswith(door) for url in asked) and not complaints
    page.close()


def test_the_page_answers_to_the_keyboard_alone_on_a_narrow_screen(page, models, door):
    page.keyboard.type(QUESTION)  # the question has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("article[aria-busy=false]", timeout=120_000)
    answers = {
        place.get_attribute("data-model"): place.locator(".text").inner_text() for place in page.locator("section").all()
    }
    for name, said in models.said.items():  # the page lets it write on
        assert answers[name].split()[:5] == said.split()[:5]
    assert re.match(r"\d+ tokens, [\d.]+ a second", page.locator(".pace").first.inner_text())
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "fresh", "who", "SUMMARY"} <= reached
    page.locator("#fresh").focus()
    page.keyboard.press("Enter")
    assert page.locator("article").count() == 0
    assert ADA not in page.content() and page.context.cookies() == []


EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_what_a_model_writes_is_shown_as_text(page):
    def answer(route) -> None:
        line = f"data: {json.dumps({'choices': [{'delta': {'content': EVIL}}]})}\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=f"{line}data: [DONE]\n\n")

    page.route("**/v1/chat/completions", answer)
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    page.wait_for_selector("article[aria-busy=false]")
    assert [place.inner_text() for place in page.locator(".question, .text").all()] == [EVIL] * 3
    assert page.locator("#talk img, #talk script").count() == 0 and page.title() == "base | tuned"


def test_an_answer_is_stopped_and_an_error_is_shown(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json={"error": {"message": "Too busy."}}))
    page.locator("#question").fill("Hello")
    page.keyboard.press("Enter")
    page.locator(".error", has_text="Too busy.").first.wait_for()
    page.unroute("**/v1/chat/completions")
    page.locator("#question").fill("Hello")
    page.keyboard.press("Enter")
    page.locator("#stop").click()
    page.wait_for_selector("article[aria-busy=false] >> nth=-1", timeout=60_000)


def test_the_door_answers_to_this_machine_alone(door, served):
    assert httpx.get(f"{door}/health").json()["models"] == ["base", "tuned"]
    assert httpx.get(f"{door}/health", headers={"Host": "evil.example"}).status_code == 403
    crossing = {"Origin": "https://evil.example", "Content-Type": "application/json"}
    assert httpx.post(f"{door}/v1/chat/completions", json={}, headers=crossing).status_code == 403
    answer = httpx.get(door)
    assert "script-src 'sha256-" in answer.headers["content-security-policy"] and ADA not in str(answer.headers)


# ---- the chat in the terminal


def in_terminal(commands: Commands, *words: str, lines: list[str]) -> str:
    """What `serve.py` shows on a terminal whose user types these lines."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *words]
    how = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "cwd": commands.cwd}
    process = subprocess.Popen(command, env=commands.env | {"TERM": "xterm", "COLUMNS": "100"}, **how)
    os.close(theirs)
    shown, waiting = "", list(lines)
    try:
        while piece := os.read(ours, 65536).decode(errors="replace"):
            shown += piece
            if waiting and re.search(r"(\n> |said it\): )(\x1b\[[^a-zA-Z]*[a-zA-Z])*$", shown):
                os.write(ours, f"{waiting.pop(0)}\n".encode())
    except OSError:  # its end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, shown
    return re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown)


def test_a_chat_in_the_terminal_becomes_rows_to_learn_from(served, ada):
    lines = [
        "/system Be brief.",
        "/tuned",
        QUESTION,
        "/save",
        "It sorts.",
        "/save base",
        "/nonsense",
        "/both",
        "/new",
        "Hello",
        "/quit",
    ]
    shown = in_terminal(ada, served.job, "--chat", "--save", "kept/rows.jsonl", lines=lines)
    assert "Asking tuned." in shown and "Saved: row 1 of kept/rows.jsonl" in shown
    assert "nothing_said" in shown and "unknown_command" in shown and " a second" in shown
    [row] = [json.loads(line) for line in (ada.cwd / "kept" / "rows.jsonl").read_text().splitlines()]
    said = [("system", "Be brief."), ("user", QUESTION), ("assistant", "It sorts.")]
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == said


# ---- what is kept, and how it ends


def test_no_question_and_no_token_is_in_any_log(live, served):
    assert live.leaks("zyzzyva") == [] and live.leaks(ADA) == []


def test_a_job_that_serves_is_not_started_twice(live, served, ada):
    words = ["serve.py", "ada/tuned", "--timeout", "20m", "--max-usd", "0.5"]
    again = ada.json(*words, "--approve", served.plan["plan_id"])
    assert again["job_id"] == served.job and len(list(live.jobs)) == 1


def test_a_cancel_amid_an_answer_ends_it_and_the_address(live, served, ada):
    stream = client_of(served).chat.completions.create(
        model="base", messages=asking("Go on"), stream=True, max_tokens=400, temperature=1
    )
    next(iter(stream))
    ada.run("status.py", served.job, "--cancel")
    with pytest.raises((openai.APIError, httpx.TransportError)):  # cut off, and not taken for a whole answer
        for _ in stream:
            pass
        client_of(served).models.list()
    live.jobs.wait(served.job)
    status = ada.json("status.py", served.job)
    assert status["stage"] == "CANCELED" and "serve.py" in status["next"]
    assert ada.run("serve.py", served.job, "--json", code=1).problem == "ended"


# ---- this machine


@pytest.fixture
def here(tmp_path) -> Commands:
    """A machine without a network and without an account."""
    env = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "UV_OFFLINE": "1"}
    return Commands(env, tmp_path, settings=HASTY)


def test_a_folder_is_served_on_this_machine_alone_for_nothing_until_nobody_asks(models, here):
    said = here.json("serve.py", str(models.folder), "--where", "local", "--idle", "0.1", code=None)
    assert said["models"] == ["base", "tuned"] and said["max_usd"] == 0, said
    url = said["url"]
    assert url.startswith("http://127.0.0.1:")
    listening = [one.laddr.ip for one in psutil.net_connections("tcp") if one.laddr.port == int(url.rpartition(":")[2])]
    assert set(listening) == {"127.0.0.1"}
    create = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions.create
    for name in ("tuned", "base", "tuned"):
        assert create(model=name, messages=asking(), max_tokens=TOKENS).choices[0].message.content == models.said[name]
    assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    crossing = {"Origin": "https://evil.example"}
    assert httpx.post(f"{url}/v1/chat/completions", json={}, headers=crossing).status_code == 403
    plain = httpx.post(f"{url}/v1/chat/completions", content="{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415  # what a page of another site may send without asking first
    status = here.json("status.py", said["job_id"], "--watch")
    assert status["stage"] == "COMPLETED" and status["result"]["reason"] == "idle"
    assert status["serving"]["requests"] == 3 and "Nobody had asked" in status["next"]
    assert "zyzzyva" not in here.run("logs.py", said["job_id"]).stdout


def test_it_ends_itself_before_its_timeout_ready_or_not(serving_python, models, tmp_path):
    facts = json.dumps({"timeout_s": 6, "started": time.time()})
    command = [serving_python, str(SERVING), "--model", str(models.folder), "--port", "0"]
    done = subprocess.run(command, env=os.environ | {"UNSLOTH_JOBS_RUN": facts}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and '"event": "done"' in done.stdout and '"reason": "timeout"' in done.stdout, done.stderr


MODEL = ROOT / ".cache" / "demo" / "SmolLM2-135M-Instruct"


@pytest.mark.skipif(not MODEL.exists(), reason="make demo builds the model")
def test_the_real_model_answers_in_the_terminal(here):
    lines = ["/system Answer in one sentence.", "What is the capital of France?", "/quit"]
    shown = in_terminal(here, str(MODEL), "--where", "local", "--idle", "5", "--chat", lines=lines)
    assert "capital of France is Paris" in " ".join(shown.split()), shown
    assert "import openai" in shown and "Asking" not in shown
    [job] = [one["job_id"] for one in here.json("status.py", "--all")["jobs"]]
    here.run("status.py", job, "--cancel")
    assert here.json("status.py", job)["stage"] == "CANCELED"


# ---- what goes wrong


def on_hub(commands: Commands, *words: str, code: int) -> str | None:
    return commands.run("serve.py", *words, "--json", code=code).problem


# ---- a server behind it: vLLM and llama.cpp speak the API of OpenAI on a port of loopback, and so does the template itself


# ---- parts
