"""The test Hub against the real clients: huggingface_hub, hf, hf-xet, datasets, transformers, uv."""

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hub import Hub, Organization
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    BucketNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

ADA, BOB, READER = "hf_ada", "hf_bob", "hf_reader"
BIN = Path(sys.executable).parent
OLDER_CLIENT, NEWER_CLIENT = "huggingface_hub==1.33.0", "huggingface_hub==2.4.0"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "root") as hub:
        hub.add_user("ada", token=ADA, orgs=[Organization("acme"), Organization("readers", role="read")])
        hub.add_user("ada", token=READER, role="read")
        hub.add_user("bob", token=BOB, can_pay=False)
        yield hub


@pytest.fixture
def idle_hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub whose jobs do nothing and complete at once."""
    with Hub(tmp_path / "idle", execute_jobs=False, scheduling=0.05) as hub:
        hub.add_user("ada", token=ADA)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=ADA)


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Run a program as a user would, with Ada's token; fails on an exit code other than `code`."""

    def run(*command: str, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(BIN), os.environ["PATH"]])
        environment = {**os.environ, **hub.env(ADA), "PATH": path, **env}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, str | bytes]], Path]:
    """Make a folder of files."""

    def make(files: dict[str, str | bytes]) -> Path:
        root = tmp_path / f"folder-{random.getrandbits(32):x}"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


def safetensors(**shapes: list[int]) -> bytes:
    """A safetensors file of zeros, as 16-bit floats."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position)


ROWS = "".join(json.dumps({"question": f"{i}?", "answer": f"{i}!"}) + "\n" for i in range(20))


# ---------------------------------------------------------------- repositories

UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("ada/big")
api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo="model.bin", repo_id="ada/big")
"""
DOWNLOAD = """
import sys
from huggingface_hub import hf_hub_download
assert open(hf_hub_download("ada/big", "model.bin"), "rb").read() == open(sys.argv[1], "rb").read()
"""


def three_megabytes() -> bytes:
    """Bytes for which hf-xet picks each of its compression schemes: none, LZ4, LZ4 of grouped bytes."""
    generator = random.Random(0)
    floats = struct.pack("<250000f", *(1 + generator.random() / 1000 for _ in range(250_000)))
    return generator.randbytes(1_000_000) + b"words and words, " * 60_000 + floats


@pytest.mark.parametrize("without_xet", ["0", "1"])
def test_large_file(hub: Hub, run: Run, tmp_path: Path, without_xet: str) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(three_megabytes())
    run(sys.executable, "-c", UPLOAD, str(source), HF_HUB_DISABLE_XET=without_xet)
    assert bool(hub.journal.requests("POST", "/cas/v1/xorbs")) == (without_xet == "0")
    assert hub.files("ada/big")["model.bin"].read_bytes() == source.read_bytes()

    for download_without_xet in ("0", "1"):
        hub.journal.clear()
        run(sys.executable, "-c", DOWNLOAD, str(source), HF_HUB_DISABLE_XET=download_without_xet)
        assert bool(hub.journal.requests("GET", "/cas/data")) == (download_without_xet == "0")


def test_xet_reads_a_range_over_several_xorbs(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    content = random.Random(0).randbytes(70_000_000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/big.bin").write_bytes(content)
    hub.add_repo("ada/big", tmp_path / "data")
    path = hf_hub_download("ada/big", "big.bin", endpoint=hub.url, token=ADA, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == content
    assert len({record.path for record in hub.journal.requests("GET", "/cas/data")}) == 3


def test_commits(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("ada/notes", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("ada/notes", repo_type="dataset")
    assert api.create_repo("ada/notes", repo_type="dataset", exist_ok=True).repo_id == "ada/notes"

    add = [CommitOperationAdd(path, path.encode()) for path in ("a.txt", "b/c.txt", "b/d.txt")]
    first = api.create_commit("ada/notes", add, commit_message="add", repo_type="dataset")
    delete = [CommitOperationDelete("b/", is_folder=True), CommitOperationAdd("a.txt", b"new")]
    second = api.create_commit("ada/notes", delete, commit_message="change", repo_type="dataset")

    files = api.list_repo_files("ada/notes", repo_type="dataset")
    assert sorted(files) == [".gitattributes", "a.txt"]
    before = api.list_repo_tree("ada/notes", repo_type="dataset", revision=first.oid, recursive=True)
    assert [entry.path for entry in before] == [".gitattributes", "a.txt", "b", "b/c.txt", "b/d.txt"]
    titles = [entry.title for entry in api.list_repo_commits("ada/notes", repo_type="dataset")]
    assert titles == ["change", "add", "initial commit"]
    assert api.list_repo_refs("ada/notes", repo_type="dataset").branches[0].target_commit == second.oid
    [info] = api.get_paths_info("ada/notes", ["a.txt", "nothing"], repo_type="dataset", expand=True)
    assert info.size == 3 and info.last_commit.oid == second.oid

    options = {"repo_type": "dataset", "endpoint": hub.url, "token": ADA, "cache_dir": tmp_path / "cache"}
    old = hf_hub_download("ada/notes", "a.txt", revision=first.oid[:10], **options)
    assert Path(old).read_text() == "a.txt"
    assert Path(hf_hub_download("ada/notes", "a.txt", **options)).read_text() == "new"

    with pytest.raises(HfHubHTTPError, match="commit has happened since"):
        late = [CommitOperationAdd("late.txt", b"")]
        api.create_commit("ada/notes", late, commit_message="late", repo_type="dataset", parent_commit=first.oid)
    api.delete_repo("ada/notes", repo_type="dataset")
    assert not api.repo_exists("ada/notes", repo_type="dataset")


def test_branches_tags_and_pull_requests(hub: Hub, api: HfApi) -> None:
    start = hub.add_repo("ada/tree")
    api.create_branch("ada/tree", branch="draft")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="ada/tree", revision="draft")
    api.create_tag("ada/tree", tag="v1", revision="draft")
    request = api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id="ada/tree", create_pr=True)
    assert api.model_info("ada/tree").sha == start
    assert "a.txt" in api.list_repo_files("ada/tree", revision="v1")
    assert "b.txt" in api.list_repo_files("ada/tree", revision=request.pr_revision)
    assert api.list_repo_refs("ada/tree", include_pull_requests=True).pull_requests[0].name == "refs/pr/1"
    api.delete_branch("ada/tree", branch="draft")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ada/tree", revision="draft")


def test_information(hub: Hub, api: HfApi, folder) -> None:
    files = {
        "README.md": "---\nlicense: mit\ntags: [tiny]\npipeline_tag: text-generation\n---\n# Tiny\n",
        "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        "chat_template.jinja": "{{ messages }}",
        "model-00001-of-00002.safetensors": safetensors(a=[10, 10]),
        "model-00002-of-00002.safetensors": safetensors(b=[7, 1]),
    }
    sha = hub.add_repo("ada/tiny", folder(files), gated="manual")
    info = api.model_info("ada/tiny", files_metadata=True, securityStatus=True)
    assert info.sha == sha and info.gated == "manual" and info.private is False
    assert info.safetensors.total == 107 and info.safetensors.parameters == {"F16": 107}
    assert info.config["model_type"] == "llama" and info.config["chat_template_jinja"] == "{{ messages }}"
    assert info.card_data.license == "mit" and {"tiny", "license:mit", "transformers"} <= set(info.tags)
    assert next(entry for entry in info.siblings if entry.rfilename == "config.json").size > 0
    assert api.model_info("ada/tiny", expand=["gated"]).siblings is None
    assert [model.id for model in api.list_models(search="TIN")] == ["ada/tiny"]
    assert list(api.list_datasets(search="tin")) == []


def test_cards_and_folders(hub: Hub, api: HfApi, run: Run, folder) -> None:
    source = folder({"README.md": "---\nlicense: mit\n---\n", "sub/weights.bin": b"\0" * 2000, "log.txt": "x"})
    run("hf", "upload", "ada/out", str(source), "--private")
    assert {"README.md", "sub/weights.bin", "log.txt"} < hub.files("ada/out").keys()
    assert api.model_info("ada/out").private
    push = "from huggingface_hub import ModelCard; ModelCard('---\\nlicense: apache-2.0\\n---\\n').push_to_hub('ada/out')"
    run(sys.executable, "-c", push)
    assert b"apache" in hub.files("ada/out")["README.md"].read_bytes()
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="ada/out")


def test_refusals(hub: Hub, folder, tmp_path: Path) -> None:
    source = folder({"config.json": "{}"})
    hub.add_repo("ada/secret", source, private=True)
    hub.add_repo("meta/gated", source, gated="auto", granted=["ada"])

    def api(token: str | bool) -> HfApi:
        return HfApi(endpoint=hub.url, token=token)

    def download(repo: str, token: str | bool, file: str = "config.json", revision: str = "main") -> str:
        cache = tmp_path / f"cache-{random.getrandbits(32):x}"
        return hf_hub_download(repo, file, revision=revision, endpoint=hub.url, token=token, cache_dir=cache)

    for token in (BOB, False):
        with pytest.raises(RepositoryNotFoundError) as error:
            api(token).model_info("ada/secret")
        assert not isinstance(error.value, GatedRepoError)
        assert error.value.response.status_code == (404 if token else 401)
        with pytest.raises(GatedRepoError) as error:
            api(token).auth_check("meta/gated")
        assert error.value.response.status_code == (403 if token else 401)
        with pytest.raises(GatedRepoError):
            download("meta/gated", token)
        assert api(token).model_info("meta/gated").gated == "auto"

    assert download("meta/gated", ADA) and download("ada/secret", READER)
    with pytest.raises(EntryNotFoundError):
        download("ada/secret", ADA, file="nothing.json")
    with pytest.raises(RevisionNotFoundError):
        download("ada/secret", ADA, revision="nowhere")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api("hf_unknown").whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        api(READER).create_repo("ada/new")
    with pytest.raises(HfHubHTTPError, match="403"):
        api(READER).upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ada/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        api(ADA).create_repo("readers/new")


def test_whoami(hub: Hub) -> None:
    hub.add_user("eve", token="hf_eve", role="fineGrained", permissions=["job.write"], reads_gated=False)
    ada, eve = (HfApi(endpoint=hub.url, token=token).whoami() for token in (ADA, "hf_eve"))
    assert ada["name"] == "ada" and ada["canPay"] and ada["auth"]["accessToken"]["role"] == "write"
    assert [(org["name"], org["roleInOrg"]) for org in ada["orgs"]] == [("acme", "admin"), ("readers", "read")]
    grants = eve["auth"]["accessToken"]["fineGrained"]
    assert grants["scoped"][0]["permissions"] == ["job.write"] and not grants["canReadGatedRepos"]


# ---------------------------------------------------------------- libraries on top

LOAD = """
import os
from datasets import load_dataset
assert load_dataset("ada/rows", split="train")["answer"][19] == "19!"
assert next(iter(load_dataset("ada/rows", split="train", streaming=True)))["question"] == "0?"
assert load_dataset("ada/table", split="test")["n"][:] == [1, 2]
assert next(iter(load_dataset("ada/table", split="test", streaming=True)))["n"] == 1
print("loaded", flush=True)
os._exit(0)  # pyarrow's threads, at work on what is streamed, abort about one interpreter in ten that ends in the common way
"""


@pytest.mark.parametrize("versions", [(), ("datasets==4.8.5", OLDER_CLIENT)], ids=["installed", "older"])
def test_load_dataset(hub: Hub, run: Run, folder, versions: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    hub.add_repo("ada/rows", folder({"README.md": "# Rows", "data.jsonl": ROWS}), type="dataset")
    table = folder({"README.md": ""})
    pq.write_table(pa.table({"n": [1, 2]}), table / "test-00000-of-00001.parquet")
    hub.add_repo("ada/table", table, type="dataset", private=True)
    if not versions:
        run(sys.executable, "-c", LOAD)
    else:
        packages = [word for version in versions for word in ("--with", version)]
        run("uv", "run", "--no-project", *packages, "python", "-c", LOAD)


def test_tokenizer(hub: Hub, run: Run, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer/tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    hub.add_repo("ada/words", tmp_path / "tokenizer")
    code = "from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained('ada/words')('hello x').input_ids)"
    assert run(sys.executable, "-c", code).stdout == "[1, 0]\n"


def test_viewer(hub: Hub, folder) -> None:
    hub.add_repo("ada/rows", folder({"train.jsonl": ROWS, "test.csv": "question,answer\na,b\n"}), type="dataset")

    def get(path: str, **query: str) -> httpx.Response:
        return httpx.get(f"{hub.env()['HF_DATASETS_SERVER']}/{path}", params={"dataset": "ada/rows", **query})

    assert get("is-valid").json()["viewer"] is True
    assert {entry["split"] for entry in get("splits").json()["splits"]} == {"train", "test"}
    assert get("size").json()["size"]["dataset"]["num_rows"] == 21
    first = get("first-rows", config="default", split="train").json()
    assert first["rows"][0]["row"] == {"question": "0?", "answer": "0!"}
    assert first["features"][1] == {"feature_idx": 1, "name": "answer", "type": {"dtype": "string", "_type": "Value"}}
    missing = get("splits", dataset="ada/nothing")
    assert missing.status_code == 401 and missing.headers["X-Error-Code"] == "RepoNotFound"


def test_bucket(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    api.create_bucket("ada/box", private=True)
    source = tmp_path / "source.txt"
    source.write_text("hello")
    api.batch_bucket_files("ada/box", add=[(source, "in/a.txt"), (b"bytes", "b.txt")])
    assert {entry.path for entry in api.list_bucket_tree("ada/box", recursive=False)} == {"in", "b.txt"}
    assert {entry.path for entry in api.list_bucket_tree("ada/box", recursive=True)} == {"in/a.txt", "b.txt"}
    api.download_bucket_files("ada/box", [("in/a.txt", tmp_path / "copy.txt")])
    assert (tmp_path / "copy.txt").read_text() == "hello"
    assert api.bucket_info("ada/box").total_files == 2
    api.batch_bucket_files("ada/box", delete=["b.txt"])
    assert hub.files("ada/box", type="bucket").keys() == {"in/a.txt"}
    with pytest.raises(BucketNotFoundError):
        HfApi(endpoint=hub.url, token=BOB).bucket_info("ada/box")


# ---------------------------------------------------------------- jobs


# ---------------------------------------------------------------- journal, faults, process


def test_journal(hub: Hub, api: HfApi) -> None:
    api.whoami()
    api.create_repo("ada/hf_oops")
    assert [record.status for record in hub.journal.requests("GET", r"whoami")] == [200]
    assert hub.journal.requests(path="repos/create")[0].json["name"] == "hf_oops"
    assert hub.journal.contains("hf_oops", where="body") and not hub.journal.contains("hf_oops", where="path")
    assert not hub.journal.contains(ADA)


def test_faults(idle_hub: Hub) -> None:
    hub, api = idle_hub, HfApi(endpoint=idle_hub.url, token=ADA)
    fault = hub.faults.add(path="whoami", status=429, headers={"Retry-After": "1"}, body={"error": "slow down"}, times=1)
    with pytest.raises(HfHubHTTPError, match="rate limit"):
        api.whoami()
    assert api.whoami()["name"] == "ada" and fault.hits == 1

    hub.faults.add(path="whoami", delay=3, times=1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {ADA}"}, timeout=httpx.Timeout(None, read=1))

    for drop, jobs in (("before", 0), ("after", 1)):
        hub.faults.add(method="POST", path="/api/jobs/", drop=drop, times=1)
        with pytest.raises(Exception, match="(?i)disconnected|reset"):
            api.run_job(image="x", command=["true"], namespace="ada")
        assert len(list(hub.jobs)) == jobs
    hub.faults.clear()


def test_a_log_that_breaks_off(idle_hub: Hub) -> None:
    hub, api = idle_hub, HfApi(endpoint=idle_hub.url, token=ADA)
    job_id = api.run_job(image="x", command=["train"], namespace="ada").id
    hub.jobs.set(job_id, stage="RUNNING", logs=["1", "2"])
    hub.faults.add(path="/logs", drop="during", times=1)
    threading.Timer(0.7, hub.jobs.set, (job_id,), {"stage": "COMPLETED", "logs": ["3"]}).start()
    assert list(api.fetch_job_logs(job_id=job_id, namespace="ada", follow=True)) == ["1", "2", "3"]
    assert len(hub.journal.requests("GET", "/logs")) == 2


@pytest.mark.slow
def test_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    options = ["--user", f"ada:{ADA}", "--model", f"ada/m={tmp_path / 'model'}"]
    command = [sys.executable, "-m", "hub", "--root", str(tmp_path / "root"), *options]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert "config.json" in HfApi(endpoint=url, token=ADA).list_repo_files("ada/m")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
