"""What the documents say is so: sizes, names, links, tables, versions."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import dpo
import evaluate
import export
import grpo
import pytest
import serving
import sft
import tables
import yaml
from conftest import ROOT, uv_of_cache
from datasets import Dataset
from documents import COMMANDS, DOCUMENTS, OURS, flags
from unsloth_jobs.jobs import plan
from unsloth_jobs.lookup.findings import FEW_ROWS, MAX_DUPLICATES

SKILL = (ROOT / "SKILL.md").read_text()
REFERENCES = sorted((ROOT / "references").glob("*.md"))
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.py")), *sorted((ROOT / "templates").glob("*.py"))]
HEADER = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723's own expression


def header(script: Path) -> dict:
    [match] = HEADER.finditer(script.read_text())
    lines = match.group("content").splitlines()
    return tomllib.loads("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))


def test_the_skill_is_short_and_its_frontmatter_is_what_validators_take():
    front = yaml.safe_load(SKILL.split("---")[1])
    assert set(front) <= {"name", "description", "license"}
    assert front["name"] == "unsloth-jobs"
    assert len(front["description"]) <= 1024
    assert not set("<>") & set(front["description"])
    assert len(SKILL) <= 8000  # 2,000 tokens
    for word in ("fine-tune", "LoRA", "Unsloth", "HF Jobs", "LFM2.5", "phone"):
        assert word in front["description"]


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.name)
def test_a_reference_is_short_and_the_skill_says_when_to_read_it(path):
    assert len(path.read_text()) <= 6000  # 1,500 tokens
    assert f"references/{path.name}" in SKILL


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_flags_that_a_document_names_exist(path):
    text = path.read_text()
    for name in re.findall(r"(?:scripts|references|templates|tests|demo)/[\w./-]+\.(?:py|md|jsonl|txt)", text):
        assert (ROOT / name).exists(), name
    settings = [item for template in (sft, dpo, grpo, export, evaluate, serving) for item in sft.fields(template.Settings)]
    known = {"--" + item.name.replace("_", "-") for item in settings}
    known |= {"--no-" + item.name.replace("_", "-") for item in settings if item.default is True}
    known |= {flag for script in (ROOT / "scripts").glob("*.py") for flag in flags(help_of(script))}
    known |= {flag for command in COMMANDS if not OURS.match(command) for flag in flags(command)}  # see test_commands.py
    assert flags(text) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_each_link_leads_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The addresses of a document's headings, as GitHub and the Hub make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


HELP: dict[Path, str] = {}


def help_of(script: Path) -> str:
    if script not in HELP:
        import sys

        HELP[script] = subprocess.run(
            [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
        ).stdout
    return HELP[script]


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_that_is_made_stands_as_it_is_made(name, training_python):
    make, document = tables.TABLES[name]
    text = document.read_text()
    assert tables.with_table(text, name, make(training_python)) == text, "make tables"


def test_the_defaults_that_the_skill_tells_are_the_template_s():
    default = sft.Settings()
    said = (
        f"LoRA r {sft.rank_of(default)}, alpha {sft.alpha_of(default)}, length {default.max_seq_length}, batch {default.batch_size} × "
        f"{default.gradient_accumulation}, a tenth of the rows held out"
    )
    assert said in SKILL and "Learning rate, epochs, early stopping and 16 or 4 bits are chosen" in SKILL
    assert {default.learning_rate, default.num_epochs, default.early_stopping} == {"auto"}
    assert (default.load_in_16bit, default.load_in_4bit, default.eval_split) == (False, False, 0.1)


def test_figures_of_the_code_are_told_as_they_are():
    def told(document: str, sentence: str) -> None:
        assert sentence in (ROOT / document).read_text(), sentence

    told("SKILL.md", f"(at most ${plan.SMOKE_MAX_USD:.0f})")
    told(
        "references/gpu-and-cost.md",
        f"trains {plan.SMOKE_STEPS} steps on the same flavor, for at most ${plan.SMOKE_MAX_USD:.0f}",
    )
    told("references/after-training.md", f"stop below this share of equal tokens ({export.Settings().min_agreement})")
    told("references/models.md", f"under {sft.Settings().min_coverage} the run stops")
    told("references/models.md", f"| under {FEW_ROWS} |")


@pytest.mark.parametrize("path", [path for path in REFERENCES if "| code |" in path.read_text()], ids=lambda path: path.name)
def test_codes_that_a_reference_explains_are_codes_that_are_reported(path):
    programs = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "templates").glob("*.py")]
    sources = "".join(program.read_text() for program in programs)
    sources = sources.replace("{kind}_needed", 'config_needed" "split_needed')  # one of the two, as the flag is called
    rows = re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \|", path.read_text())
    codes = [code for row in rows for code in re.findall(r"\w+", row)]
    assert codes
    assert [code for code in codes if f'"{code}"' not in sources] == []


def data_sets() -> str:
    return (ROOT / "references" / "data-sets.md").read_text()


@pytest.mark.parametrize(("name", "example"), re.findall(r"(?m)^\| ([\w-]+) \| `(\{.*?\})` \|", data_sets()))
def test_an_example_row_is_read_as_the_document_says(name, example):
    row = json.loads(example)
    layout = sft.detect_format(row)
    assert layout.name == name
    normalised = sft.normalise_row(row, layout)
    if name != "text":
        assert [(turn["role"], turn["content"]) for turn in sft.as_messages(normalised)] in (
            [("user", "Q"), ("assistant", "A")],
            [("user", "Q\n\nI"), ("assistant", "A")],
        )


def test_what_is_said_of_data_sets_is_what_the_code_does():
    text = data_sets()
    assert {line.split(" | ")[0] for line in re.findall(r"(?m)^\| (.*\{.*)$", text)} == {
        "messages", "sharegpt", "prompt-completion", "alpaca", "text"
    }  # fmt: skip
    pairs = {" + ".join(pair) for pair in sft.PAIRS} - {"question + answer"}
    assert set(re.findall(r"\w+ \+ \w+", text)) == pairs
    assert all(f"`{suffix}`" in text for suffix in sft.FILE_KINDS)
    assert f"under {FEW_ROWS} rows" in text
    assert f"more than {MAX_DUPLICATES:.0%}" in text
    held_out = {}
    for rows in (100, 10_000):  # all others are trained on
        kept, evaluated = sft.split_rows(Dataset.from_dict({"row": list(range(rows))}), sft.Settings())
        assert sorted([*kept["row"], *evaluated["row"]]) == list(range(rows))
        held_out[rows] = len(evaluated)
    assert held_out[100] == 10
    assert f"A tenth of the rows, at most {held_out[10_000]}, is held out" in text


def test_the_speeds_that_are_claimed_are_those_that_were_measured():
    with (ROOT / "benchmarks" / "speed.csv").open() as file:
        rows = {(row["shape"], row["data"], row["contender"]): row for row in csv.DictReader(file)}

    def times(of: str, other: str, shape: str = "lfm2-1.2b", figure: str = "tokens_per_s") -> float:
        return float(rows[shape, "mixed", of][figure]) / float(rows[shape, "mixed", other][figure])

    text = (ROOT / "references" / "gpu-and-cost.md").read_text()
    assert [row for row in rows.values() if f"{round(float(row['tokens_per_s']), -2):,.0f}/s" not in text] == []
    with (ROOT / "benchmarks" / "profile_step.csv").open() as file:
        lfm2, llama = ((float(row["step_s"]), float(row["gpu_s"])) for row in csv.DictReader(file))
    assert "of {:.2f} s on LFM2-1.2B the GPU computes {:.2f} s".format(*lfm2) in text
    assert "on Llama-1B {:.2f} of {:.2f} s".format(*reversed(llama)) in text
    text = (ROOT / "README.md").read_text()
    assert f"{times('ours', 'article'):.1f} times the tokens per second of the" in text
    assert f"and {times('ours', 'trl'):.1f} times those of plain TRL" in text
    assert f"{times('ours-lean', 'trl', figure='peak_gb'):.0%} of TRL's memory" in text
    packed = times("ours", "trl-packed", shape="llama-1b")
    assert f"it is {packed:.1f} times" in text
    assert f"{packed:.1f} to {times('ours', 'trl'):.0f} times as long" in (ROOT / "scripts" / "estimate.py").read_text()


def test_exit_codes_and_json_keys_stand_in_every_help():
    for script in sorted((ROOT / "scripts").glob("*.py")):
        assert "Exit codes" in help_of(script), script.name
        assert "--json" in help_of(script), script.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_pins_what_it_needs_and_that_resolves(script, tmp_path):
    said = header(script)
    assert said["requires-python"].startswith(">=3.11")
    assert all("==" in dependency for dependency in said["dependencies"])
    assert said["tool"]["uv"]["exclude-newer"] < date.today().isoformat()  # what these need in turn is pinned by this day
    copy = tmp_path / script.name
    copy.write_text(script.read_text())
    locked = uv_of_cache("lock", "--script", str(copy))
    assert locked.returncode == 0, locked.stderr


def test_all_that_the_tests_install_is_pinned():
    lines = [line for path in (ROOT / "tests").glob("requirements*.txt") for line in path.read_text().splitlines()]
    assert [line for line in lines if not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line)] == []
    for package in (ROOT / "tests").glob("package.json"):
        wanted = json.loads(package.read_text())
        versions = {**wanted.get("dependencies", {}), **wanted.get("devDependencies", {})}
        assert [name for name, version in versions.items() if not re.fullmatch(r"\d[\w.-]*", version)] == []


def test_the_tests_run_the_versions_that_users_run():
    tested = set((ROOT / "tests" / "requirements.txt").read_text().split())
    for script in sorted((ROOT / "scripts").glob("*.py")):
        assert set(header(script)["dependencies"]) <= tested, script.name


def test_the_template_s_torch_is_a_cuda_12_build(training_python):
    """A CUDA 13 build needs a newer driver than every machine has, and without a GPU Unsloth would train on the CPU."""
    said = subprocess.run([training_python, "-c", "import torch; print(torch.version.cuda)"], capture_output=True, text=True)
    assert said.stdout.startswith("12."), said


def test_the_plugin_offers_this_folder_as_one_skill():
    marketplace = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())
    [plugin] = marketplace["plugins"]
    assert (plugin["name"], plugin["source"], plugin["skills"]) == ("unsloth-jobs", "./", ["./"])


def test_the_newest_changes_are_those_of_this_version():
    [plugin] = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())["plugins"]
    versions = re.findall(r"(?m)^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGES.md").read_text())
    assert versions[0] == plugin["version"]
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)
