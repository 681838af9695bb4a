"""The pictures in the README: what check, estimate and status print, as a terminal shows it.

    make pictures                       # writes demo/pictures/*.svg, in a few minutes

The commands run for real, against the Hub that the tests use. The rows are the demo's. The model that is checked and
estimated has LFM2.5-1.2B's configuration and shapes, no weights, and a small tokenizer of its own, so its tokens are
somewhat more than the real one's. The run that status shows is a training of the demo's tiny model.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "demo")]

import tiny_model  # noqa: E402
from commands import Commands  # noqa: E402
from conftest import python_of  # noqa: E402
from hub import Hub  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402
from rich.text import Text  # noqa: E402

PICTURES = ROOT / "demo" / "pictures"
MODEL, ROWS = "LiquidAI/LFM2.5-1.2B-Instruct", "demo/stdlib-docs.jsonl"
COLUMNS, LINES = 100, 60
TOKEN = "hf_FAKEFAKEFAKE"
SEEN = 0.7  # of its steps, when the run's picture is taken
# As rich's own, without its web fonts: a picture in a README may load nothing.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Hub(Path(folder) / "hub") as hub:
        work = Path(folder)
        (work / ROWS).parent.mkdir()
        (work / ROWS).write_bytes(tiny_model.ROWS.read_bytes())
        hub.add_user("you", token=TOKEN)
        hub.add_repo(MODEL, large_model(work / "large"))
        hub.add_repo("you/tiny-lfm2", small_model(work / "small"))
        commands = Commands(hub.env(token=TOKEN) | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, work)
        picture(commands, "check", "check.py", MODEL, ROWS)
        picture(commands, "estimate", "estimate.py", MODEL, ROWS, "--max-steps", "1000")
        job = train(commands)
        while not is_seen(commands.json("status.py", job)):
            time.sleep(1)
        picture(commands, "status", "status.py", job)
        commands.run("status.py", job, "--cancel")


def train(commands: Commands) -> str:
    """The id of a job that trains the tiny model."""
    how = {"num-epochs": 4, "learning-rate": "5e-3", "batch-size": 8, "gradient-accumulation": 1, "max-seq-length": 256}
    settings = [f"--{name}={value}" for name, value in how.items()]
    words = ["--base-model", "you/tiny-lfm2", "--dataset", ROWS, "--output-repo", "you/tiny-tuned", "--trackio-space="]
    plan = ["--flavor", "cpu-upgrade", "--timeout", "20m", "--yes", "--max-usd", "1"]
    return commands.json("submit.py", str(ROOT / "templates" / "sft.py"), *plan, "--", *words, *settings)["job_id"]


def is_seen(status: dict) -> bool:
    if status["stage"] not in ("SCHEDULING", "RUNNING"):
        sys.exit(f"The run ended before its picture: {json.dumps(status)}")
    step, total = status["progress"]["step"], status["progress"]["total_steps"]
    return bool(total) and step >= SEEN * total


def picture(commands: Commands, name: str, script: str, *words: str) -> None:
    """Run a command in a terminal and draw what it printed."""
    shown = Text.from_ansi(in_terminal(commands, script, *words))
    shown.rstrip()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text(f"$ uv run scripts/{shlex.join([script, *words])}\n", "bold"))
        console.print(shown)
    drawn = console.export_svg(title="unsloth-jobs", theme=MONOKAI, code_format=SVG, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(drawn, encoding="utf-8")
    print(f"{name}: {len(drawn.encode()) / 1000:.0f} kB")


def in_terminal(commands: Commands, script: str, *words: str) -> str:
    """What a command writes to a terminal of its own. Exits where the command fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, str(ROOT / "scripts" / script), *words]
    process = subprocess.Popen(
        command, cwd=commands.cwd, env=commands.env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:  # the command has closed its end
        pass
    os.close(ours)
    if process.wait():
        sys.exit(written.decode(errors="replace"))
    return written.decode().replace("\r\n", "\n")


def small_model(folder: Path) -> Path:
    script = ROOT / "demo" / "tiny_model.py"
    subprocess.run([python_of(ROOT / "templates" / "sft.py"), str(script), str(folder)], check=True, capture_output=True)
    return folder


def large_model(folder: Path) -> Path:
    """LFM2.5-1.2B's configuration and the header of its weights, with the demo's tokenizer."""
    hidden, inner, heads, groups, layers, vocabulary = 2048, 8192, 32, 8, 16, 65536
    attention = [2, 5, 8, 10, 12, 14]
    tiny_model.make_tokenizer().save_pretrained(folder)
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128000,
        "layer_types": ["full_attention" if layer in attention else "conv" for layer in range(layers)],
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    narrow = hidden // heads * groups
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.embedding_norm.weight": [hidden]}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}.weight": [hidden] for name in ("operator_norm", "ffn_norm")}
        shapes |= {f"{at}.feed_forward.{name}.weight": [inner, hidden] for name in ("w1", "w3")}
        shapes[f"{at}.feed_forward.w2.weight"] = [hidden, inner]
        if layer in attention:
            wide = {"q_proj": hidden, "k_proj": narrow, "v_proj": narrow, "out_proj": hidden}
            shapes |= {f"{at}.self_attn.{name}.weight": [rows, hidden] for name, rows in wide.items()}
        else:
            shapes |= {f"{at}.conv.in_proj.weight": [3 * hidden, hidden], f"{at}.conv.out_proj.weight": [hidden, hidden]}
            shapes[f"{at}.conv.conv.weight"] = [hidden, 1, 3]
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return folder


if __name__ == "__main__":
    main()
