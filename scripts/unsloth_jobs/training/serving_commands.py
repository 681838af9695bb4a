"""The commands that start vLLM and llama.cpp's server: one server on a port of loopback, with the names that are served."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from .adapter import CONFIG
from .contenders import Contender

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
LLAMA_SERVER = "llama-server"


def vllm_command(
    name: str, model: Contender, adapted: Contender | None, port: int, context: int, half: bool, share: float = 0.9
) -> list[str]:
    """`vllm serve`, as vLLM 0.31 takes it: a model under a name, and the adapter on it as `tuned`, where there is one.

    half: fp16, for a GPU without bf16; share: of the GPU's memory.
    """
    words = ["vllm", "serve", model.model, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--revision", model.revision, "--tokenizer-revision", model.revision] if model.revision else []
    words += ["--served-model-name", name, "--max-model-len", str(context), "--dtype", "half" if half else "auto"]
    words += ["--gpu-memory-utilization", str(share), "--uvicorn-log-level", "warning"]  # a line for each request hides events
    if adapted and adapted.adapter:
        rank = json.loads((adapted.adapter / CONFIG).read_text("utf-8"))["r"]
        most = next((room for room in RANKS if room >= rank), rank)
        words += ["--enable-lora", "--max-lora-rank", str(most), "--lora-modules", f"tuned={adapted.adapter}"]
        template = adapted.tokenizer / "chat_template.jinja"
        if not has_template(model.tokenizer) and template.is_file():  # a base without one is asked in the adapter's
            words += ["--chat-template", str(template)]
    return words


def has_template(folder: Path) -> bool:
    """Whether a tokenizer's files hold a chat template."""
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        config.is_file() and bool(json.loads(config.read_text("utf-8")).get("chat_template"))
    )


def llama_command(file: str, port: int, context: int) -> list[str]:
    """llama.cpp's own server, where it is installed."""
    return [LLAMA_SERVER, "-m", file, "-c", str(context), "--host", "127.0.0.1", "--port", str(port)]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
