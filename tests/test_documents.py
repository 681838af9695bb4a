"""What the documents say is so: sizes, names, links, tables, versions."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import export
import pytest
import sft
import yaml
from conftest import ROOT, UV
from unsloth_jobs import hardware

SKILL = (ROOT / "SKILL.md").read_text()
REFERENCES = sorted((ROOT / "references").glob("*.md"))
DOCUMENTS = [ROOT / "SKILL.md", ROOT / "AGENTS.md", ROOT / "README.md", *REFERENCES]
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
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    settings = (*sft.fields(sft.Settings), *export.fields(export.Settings))
    known = {"--" + item.name.replace("_", "-") for item in settings}
    known |= {flag for script in (ROOT / "scripts").glob("*.py") for flag in re.findall(r"--[a-z][\w-]+", help_of(script))}
    known |= {"--secrets", "--path", "--name"}  # of hf jobs, and of Codex's installer
    known |= set(re.findall(r'"(--[a-z][\w-]+)"', (ROOT / "benchmarks" / "speed.py").read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) <= known


HELP: dict[Path, str] = {}


def help_of(script: Path) -> str:
    if script not in HELP:
        import sys

        HELP[script] = subprocess.run(
            [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
        ).stdout
    return HELP[script]


def test_the_price_table_is_the_snapshot_that_the_estimator_uses():
    flavors, source = hardware.snapshot()
    rows = [
        f"| {one.name} | {one.usd_per_hour:.2f} | {one.gpus} | {one.accelerator} | {one.vram_gb:.0f} |"
        for one in sorted(flavors, key=lambda one: (one.usd_per_hour, one.name))
        if one.gpus
    ]
    text = (ROOT / "references" / "gpu-and-cost.md").read_text()
    assert "\n".join(rows) in text, "\n".join(rows)
    assert re.search(r"\d{4}-\d\d-\d\d", source).group() in text


def test_the_speeds_that_are_claimed_are_those_that_were_measured():
    with (ROOT / "benchmarks" / "speed.csv").open() as file:
        rows = {(row["shape"], row["data"], row["contender"]): row for row in csv.DictReader(file)}

    def times(of: str, other: str, shape: str = "lfm2-1.2b", figure: str = "tokens_per_s") -> float:
        return float(rows[shape, "mixed", of][figure]) / float(rows[shape, "mixed", other][figure])

    text = (ROOT / "README.md").read_text()
    assert f"{times('ours', 'article'):.1f} times the tokens per second of the" in text
    assert f"and {times('ours', 'trl'):.1f} times those of plain TRL" in text
    assert f"{times('ours-lean', 'trl', figure='peak_gb'):.0%} of TRL's memory" in text
    packed = times("ours", "trl-packed", shape="llama-1b")
    assert f"it is {packed:.1f} times" in text
    assert f"{packed:.1f} to {times('ours', 'trl'):.0f} times as long" in (ROOT / "scripts" / "estimate.py").read_text()


def test_codes_that_troubleshooting_explains_are_codes_that_are_reported():
    sources = "".join(path.read_text() for path in [*(ROOT / "scripts").rglob("*.py"), ROOT / "templates" / "sft.py"])
    table = (ROOT / "references" / "troubleshooting.md").read_text()
    codes = [code for row in re.findall(r"(?m)^\| (`.*?) \|", table) for code in re.findall(r"`(\w+)`", row)]
    assert len(codes) > 10
    assert [code for code in codes if f'"{code}"' not in sources] == []


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
    locked = subprocess.run([UV, "lock", "--script", str(copy)], capture_output=True, text=True)
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
