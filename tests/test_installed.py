"""The skill as assistants see it: the real programs install it, list it and validate it, and its commands run from there.

Each test has a home of its own, in which nothing outside this machine can be reached.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, UV
from github import GitHub
from hubs import ADA
from set_up import BIN, SKILLS, assistants

NOWHERE = "http://127.0.0.1:9"
REPOSITORY = "you/unsloth-jobs"
URL = f"https://github.com/{REPOSITORY}"
NAME = "unsloth-jobs"

SECTION = re.search(r"(?s)## Install it in your assistant\n(.*?)\n## ", (ROOT / "README.md").read_text("utf-8")).group(1)
COMMANDS = [line for block in re.findall(r"(?s)```\w*\n(.*?)```", SECTION) for line in block.splitlines()]


def documented(start: str) -> list[str]:
    """The README's install commands that start like this, with an address in the place of its URL."""
    return [command.replace("URL", URL) for command in COMMANDS if command.startswith(start)]


@pytest.fixture(scope="session")
def programs() -> Path:
    return assistants()


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository as it would be after a commit of all that git does not ignore."""
    folder = tmp_path_factory.mktemp("clone") / NAME
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "As it is now"]):
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        subprocess.run(["git", *author, *words], cwd=folder, check=True)
    return folder


class Home:
    """A user's home with the real programs on its PATH; the address URL leads git to the clone."""

    def __init__(self, folder: Path, programs: Path, clone: Path):
        self.folder = folder
        (folder / "node_modules").symlink_to(programs.parent)  # npx takes a command from here before it asks a registry
        (folder / ".gitconfig").write_text(f'[url "{clone.as_uri()}"]\n  insteadOf = {URL}\n  insteadOf = {URL}.git\n')
        self.env = {
            "HOME": str(folder),
            "USERPROFILE": str(folder),
            "PATH": os.pathsep.join([str(BIN), str(programs), os.environ["PATH"]]),
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1,localhost",
            "ANTHROPIC_BASE_URL": NOWHERE,
            "ANTHROPIC_API_KEY": "dummy",
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "DISABLE_TELEMETRY": "1",
            "npm_config_offline": "true",
        }

    def run(self, command: str, code: int = 0, **env: str) -> str:
        """What a line for a shell prints, run in the home."""
        how = {"cwd": self.folder, "env": self.env | env, "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, **how)
        assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def codex_skills(self) -> dict[str, str]:
        """Name → place of the skills that Codex tells its model of."""
        messages = json.loads(self.run("codex debug prompt-input hi"))
        said = [part["text"] for message in messages for part in message.get("content", [])]
        [listing] = [text for text in said if text.startswith("<skills_instructions>")]
        return dict(re.findall(r"(?m)^- (\S+): .*\(file: (.+)\)$", listing))

    def opencode_skills(self) -> dict[str, str]:
        """Name → place of OpenCode's skills."""
        return {skill["name"]: skill["location"] for skill in json.loads(self.run("opencode debug skill"))}

    def claude_init(self) -> dict:
        """The first line of Claude Code's runtime: what it has loaded. It ends when it reaches no model."""
        said = self.run("claude -p hi --output-format stream-json --verbose", code=1)
        return next(line for line in map(json.loads, said.splitlines()) if line.get("subtype") == "init")


@pytest.fixture
def home(programs: Path, clone: Path, tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home", programs, clone)


def files(folder: Path) -> dict[str, bytes]:
    """Path → content of all that lies in a folder, git's own store aside."""
    found = (path for path in folder.rglob("*") if ".git" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in found}


def test_every_install_command_of_the_readme_is_run_here():
    ways = ("claude plugin ", "$skill-installer ", "npx skills ", "git clone ")
    assert all(documented(way) for way in ways)
    assert sorted(line for way in ways for line in documented(way)) == sorted(line.replace("URL", URL) for line in COMMANDS)


def test_claude_code_installs_the_plugin_from_a_repository(home):
    for command in documented("claude plugin "):
        home.run(command)
    [plugin] = json.loads(home.run("claude plugin list --json"))
    assert (plugin["id"], plugin["enabled"]) == (f"{NAME}@{NAME}", True)
    assert re.search(rf"Skills \(1\)\s+{NAME}\n", home.run(f"claude plugin details {NAME}"))
    init = home.claude_init()
    assert f"{NAME}:{NAME}" in init["skills"]
    assert NAME in [plugin["name"] for plugin in init["plugins"]]
    assert (Path(plugin["installPath"]) / "scripts" / "unsloth_jobs" / "estimate" / "flavors.json").exists()


def test_claude_code_installs_the_plugin_from_a_folder(home, clone):
    for command in documented("claude plugin "):
        home.run(command.replace(URL, shlex.quote(str(clone))))
    assert f"{NAME}:{NAME}" in home.claude_init()["skills"]


def test_a_clone_is_a_skill_for_each_assistant_by_its_plain_name(home):
    for command in documented("git clone "):
        home.run(command)
    assert NAME in home.codex_skills()
    assert NAME in home.opencode_skills()
    assert NAME in home.claude_init()["skills"]


def test_a_plain_copy_is_a_skill_by_its_plain_name(home, clone):
    home.run(f"mkdir -p ~/.agents/skills && cp -R {shlex.quote(str(clone))} ~/.agents/skills/")
    codex, opencode = home.codex_skills(), home.opencode_skills()
    assert [name for name in codex if NAME in name] == [NAME]
    assert [name for name in opencode if NAME in name] == [NAME]
    assert Path(opencode[NAME]) == home.folder / ".agents" / "skills" / NAME / "SKILL.md"


@pytest.mark.parametrize("source", ["address", "folder"])
def test_the_skills_command_installs_it_for_all_three(home, clone, source):
    [command] = documented("npx skills ")
    home.run(command if source == "address" else command.replace(URL, shlex.quote(str(clone))))
    assert NAME in home.codex_skills()
    assert NAME in home.opencode_skills()
    assert NAME in home.claude_init()["skills"]
    installed = home.folder / ".agents" / "skills" / NAME
    whole = files(clone)
    assert {name: whole.get(name) for name in files(installed)} == files(installed)
    assert (installed / "scripts" / "unsloth_jobs" / "estimate" / "flavors.json").exists()


def test_codex_s_own_installer_brings_it_from_github(home, clone, tmp_path):
    """`$skill-installer` is a skill of Codex that runs a script of its own: this is that script."""
    home.codex_skills()  # the first start unpacks it
    installer = home.folder / ".codex/skills/.system/skill-installer/scripts/install-skill-from-github.py"
    [asked] = documented("$skill-installer install ")
    words = asked.removeprefix("$skill-installer install ")
    with GitHub({REPOSITORY: clone}, tmp_path) as github:
        said = home.run(f"{shlex.quote(sys.executable)} {installer} --url {words}", **github.env)
        assert f"Installed {NAME}" in said
        home.run(f"{shlex.quote(sys.executable)} {installer} --url {URL}-missing --path . --method download", 1, **github.env)
    installed = home.folder / ".codex" / "skills" / NAME
    assert {"SKILL.md", "references/data-sets.md", "scripts/unsloth_jobs/lookup/client.py", "templates/sft.py"} <= set(
        files(installed)
    )
    assert home.codex_skills()[NAME].endswith(f"{NAME}/SKILL.md")


def test_claude_code_finds_the_marketplace_valid(home, clone, tmp_path):
    home.run(f"claude plugin validate --strict {clone}")
    spoilt = shutil.copytree(clone, tmp_path / "spoilt")
    manifest = spoilt / ".claude-plugin" / "marketplace.json"
    manifest.write_text(manifest.read_text().replace('"owner"', '"ownr"'))
    home.run(f"claude plugin validate --strict {spoilt}", code=1)


@pytest.mark.parametrize("validator", ["claude", "codex", "agentskills"])
def test_validators_take_the_skill_and_refuse_a_spoilt_one(home, clone, tmp_path, validator):
    """Claude's reads a SKILL.md only below the skills/ of a plugin, so there a copy is put."""
    plugin = tmp_path / "plugin"
    skill = shutil.copytree(clone, plugin / "skills" / NAME, ignore=shutil.ignore_patterns(".git", ".claude-plugin"))
    (plugin / ".claude-plugin").mkdir()
    (plugin / ".claude-plugin" / "plugin.json").write_text(
        json.dumps({"name": NAME, "version": "1.0.0", "description": "Staged", "author": {"name": "Ada"}})
    )
    home.codex_skills()  # the first start unpacks Codex's validator
    quick = home.folder / ".codex/skills/.system/skill-creator/scripts/quick_validate.py"
    command = {
        "claude": f"claude plugin validate --strict {plugin}",
        "codex": f"{shlex.quote(sys.executable)} {quick} {skill}",
        "agentskills": f"agentskills validate {skill}",
    }[validator]
    home.run(command)
    text = (skill / "SKILL.md").read_text("utf-8")
    (skill / "SKILL.md").write_text(text.replace("description: ", 'description: "', 1), "utf-8")
    home.run(command, code=1)


# Unsloth writes its compiled code into the working directory unless this variable names another.
HELLO = """# /// script
# dependencies = []
# ///
import os
print("compiled code goes to", os.path.abspath(os.environ["UNSLOTH_COMPILE_LOCATION"]))
"""


def test_the_commands_run_from_where_the_skill_was_installed_and_leave_no_trace(clone, hub, tmp_path):
    """As SKILL.md says, from the user's project; not even bytecode is written beside the code or into the project."""
    skill = SKILLS / NAME
    shutil.rmtree(skill, ignore_errors=True)
    shutil.copytree(clone, skill, ignore=shutil.ignore_patterns(".git"))
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\ndependencies = ["no-such-package-xyz"]\n')
    (project / "mine.py").write_bytes((skill / "templates" / "sft.py").read_bytes())
    (project / "hello.py").write_text(HELLO)
    before = files(SKILLS) | files(project)
    env = os.environ | hub.env(token=ADA)

    def run(script: str, *words: str, code: int = 0) -> dict:
        command = [UV, "run", "--quiet", str(skill / "scripts" / script), *words]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, f"{script}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    assert run("check.py", "ada/tiny", "ada/docs", "--json")["ok"]  # reads the skill's own templates/sft.py
    assert run("estimate.py", "ada/tiny", "ada/docs", "--json")["recommended"]
    train = ["--json", "--", "--base-model", "ada/tiny", "--dataset", "ada/docs"]
    plan = run("submit.py", "mine.py", *train, code=3)
    job = run("submit.py", "mine.py", "--approve", plan["plan_id"], *train)["job_id"]
    hub.jobs.wait(job)
    hub.jobs.set(job, stage="COMPLETED", logs=["hello from the job"])
    assert run("status.py", job, "--json")["stage"] == "COMPLETED"
    assert "hello" in json.dumps(run("logs.py", job, "--json"))

    job = run("submit.py", "hello.py", "--where", "local", "--yes", "--json")["job_id"]
    assert run("status.py", job, "--watch", "--json")["stage"] == "COMPLETED"
    assert f"compiled code goes to {env['HF_HOME']}" in json.dumps(run("logs.py", job, "--json"))
    after = files(SKILLS) | files(project)
    assert {name for name, _ in before.items() ^ after.items()} == set()
