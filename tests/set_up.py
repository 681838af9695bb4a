"""Everything that tests use and none of them makes, so that one waits for it once, in `make setup`, and not within a test.

Each step does nothing where its work is done; a test that meets it undone does it itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, python_of, uv_of_cache

TESTS = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
ASSISTANTS = ROOT / ".cache" / "assistants"
SKILLS = ROOT / ".cache" / "skills"  # not a new folder each time: uv makes an environment for each path of a script
OTHER_PACKAGES = [  # of scripts and interpreters that a test starts with uv
    ["huggingface_hub==1.33.0", "httpx"],
    ["datasets==4.8.5", "huggingface_hub==1.33.0"],
]


def environments() -> None:
    """Of the templates."""
    for template in sorted((ROOT / "templates").glob("*.py")):
        python_of(template)


def installed_scripts() -> None:
    """The environments of the commands where tests/test_installed.py installs the skill."""
    scripts = SKILLS / "unsloth-jobs" / "scripts"
    scripts.mkdir(parents=True, exist_ok=True)
    for script in sorted((ROOT / "scripts").glob("*.py")):
        shutil.copy(script, scripts)
        python_of(scripts / script.name)


def compiled_libraries() -> None:
    """The bytecode of what each run imports: these import it, and end where nothing is asked of them."""
    pinned = ROOT / "recipes" / "versions.toml"
    for template in ("sft.py", "dpo.py", "grpo.py", "evaluate.py"):
        server = "evaluation_server.py" if template == "evaluate.py" else "run_server.py"
        python = python_of(ROOT / "templates" / template)
        compiled = Path(python).parents[1] / pinned.name  # in the environment, which it is for
        if compiled.exists() and compiled.read_text() == pinned.read_text():
            continue
        with tempfile.TemporaryDirectory() as folder:
            nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run([python, str(TESTS / server)], check=True, cwd=folder, **nothing)
        shutil.copy(pinned, compiled)


def packages() -> None:
    """In uv's cache."""
    for names in OTHER_PACKAGES:
        words = [word for name in names for word in ("--with", name)]
        uv_of_cache("run", "--quiet", "--no-project", *words, "python", "-c", "").check_returncode()
    uv_of_cache("tool", "run", "--quiet", "hf", "version").check_returncode()


def assistants() -> Path:
    """The folder of the commands claude, codex, opencode and skills, installed from the npm registry where missing."""
    pinned, installed = TESTS / "package.json", ASSISTANTS / "installed.json"
    if not installed.exists() or installed.read_text() != pinned.read_text():
        ASSISTANTS.mkdir(parents=True, exist_ok=True)
        shutil.copy(pinned, ASSISTANTS / "package.json")
        # The machine's own npm, where there is one, knows its registry; its settings are in the real home.
        path = os.pathsep.join([os.environ["PATH"], str(BIN)])
        npm = [shutil.which("npm", path=path), "install", "--prefix", str(ASSISTANTS), "--no-package-lock", "--no-audit"]
        done = subprocess.run(npm, env=os.environ | {"PATH": path}, cwd=ASSISTANTS, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.copy(pinned, installed)
    return ASSISTANTS / "node_modules" / ".bin"


STEPS: dict[str, Callable[[], object]] = {
    "the templates' environments (torch, Unsloth, TRL)": environments,
    "the commands' environments": installed_scripts,
    "what runs import, compiled": compiled_libraries,
    "packages of single tests": packages,
    "the assistants: Claude Code, Codex, OpenCode, skills": assistants,
}


def main() -> None:
    for name, work in STEPS.items():
        began = time.monotonic()
        print(f"{name} ... ", end="", flush=True)
        work()
        print(f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
