# /// script
# dependencies = [
#     "torch",
#     "transformers",
#     "peft",
#     "accelerate",
#     "bitsandbytes",
#     "huggingface_hub",
#     "starlette",
#     "uvicorn",
#     "sentencepiece",
#     "protobuf",
#     "psutil",
# ]
#
# [tool.uv]
# ///
r"""Serve a tuned model and its base side by side: a page with a chat, and an OpenAI-compatible API.

On Hugging Face Jobs, private to whoever may read the job, until the timeout or until nobody has asked for 10 minutes:

    hf jobs uv run --flavor l4x1 --timeout 30m --expose 8000 --secrets HF_TOKEN templates/serving.py -- --model you/lfm-finetuned

Here, on the processor, reachable from this machine alone:

    uv run templates/serving.py --model ./tuned

The models' names are `base` and `tuned`. Each thing that matters is printed as one line `EVENT {"event": NAME, ...}`; NAME
is one of plan, contenders, listening, serving, warning, done, failed. No event and no log line holds a question or an answer.
Exit code 0: it ended as it should, and the `done` event says why; 1: the `failed` event says why and what to do.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unsloth_jobs.training.chat_server import ChatServer, Engine, bind
from unsloth_jobs.training.contenders import Contender, find_contender, whole_model
from unsloth_jobs.training.flags import parse_flags
from unsloth_jobs.training.machine import require_gpu_where_paid
from unsloth_jobs.training.report import Stop, emit, exit_code, told_to_end
from unsloth_jobs.training.run import StopSignal, cost_usd, run_facts
from unsloth_jobs.training.serving_commands import LLAMA_SERVER, free_port, llama_command, vllm_command
from unsloth_jobs.training.serving_engines import LlamaEngine, SpeakerEngine, Upstream, Upstreams
from unsloth_jobs.training.serving_tally import Tally
from unsloth_jobs.training.setting import setting
from unsloth_jobs.training.speakers import load_speakers

METHOD = "serve"
ENGINES = ("auto", "transformers", "vllm", "llama.cpp")

# ---------------------------------------------------------------------------------------------------------------
# Settings: fill them in here, or pass the flag of the same name.


@dataclass(frozen=True)
class Settings:
    model: str = setting("", "adapter or whole model: Hub id, ID@REVISION, or folder; with llama.cpp a GGUF file, or ID:FILE")
    base_model: str = setting("", "model to compare it with (default: the one that the adapter names)")
    base_model_revision: str = setting("", "commit or branch of that model (default: the one that the adapter names)")
    engine: str = setting(
        "auto", "transformers, vllm (in the image vllm/vllm-openai), or llama.cpp (a GGUF file); auto: by the model alone"
    )
    idle: float = setting(10.0, "minutes after which it ends where nobody asks anything")
    context: int = setting(8192, "tokens of question and answer together, with vllm and llama.cpp")
    half: bool = setting(False, "with vllm: fp16, for a GPU without bf16")
    port: int = setting(8000, "port to listen on; 0: any that is free")
    host: str = setting("", "address to listen on (default: 0.0.0.0 in a job, which the Hub guards, and 127.0.0.1 elsewhere)")


# ---------------------------------------------------------------------------------------------------------------
# The run.

MARGINS_S = 3, 20  # before the timeout, the least and the most: what open answers are given to end


def serve(settings: Settings) -> None:
    began = time.monotonic()
    stop_signal = StopSignal()
    stop_signal.listen()
    if settings.engine == "auto":
        settings = replace(settings, engine="llama.cpp" if settings.model.endswith(".gguf") else "transformers")
    emit("plan", settings=asdict(settings))
    is_job = bool(os.environ.get("JOB_ID"))
    host = settings.host or ("0.0.0.0" if is_job else "127.0.0.1")
    listener = bind(host, settings.port)
    port = listener.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    contenders = find_served(settings)
    facts = {"engine": settings.engine, "models": list(contenders), "port": port, "url": None if is_job else url}
    emit("listening", **facts)
    tally = Tally(facts, settings.idle * 60, stop_signal.deadline)
    only_loopback = host.startswith("127.") or host in ("localhost", "::1")
    server = ChatServer(list(contenders), tally, lambda: load_engine(settings, contenders), only_loopback)
    timeout = run_facts().get("timeout_s") or 0
    reason = server.serve([listener], min(max(0.02 * timeout, MARGINS_S[0]), MARGINS_S[1]))
    told_to_end.clear()  # it has ended, whoever asked for it: what is left is to say so
    tally.tell(at_once=True)
    emit("done", reason=reason, **tally.as_json(), cost_usd=cost_usd(), duration_s=round(time.monotonic() - began, 1))


def find_served(settings: Settings) -> dict[str, Contender]:
    """`base`, where one is known, and `tuned`. Raises Stop."""
    if settings.engine == "llama.cpp":
        return {
            name: Contender(name, str(find_gguf(file)))
            for name, file in (("base", settings.base_model), ("tuned", settings.model))
            if file
        }
    tuned = find_contender(settings.model, settings.base_model, settings.base_model_revision)
    found = {"tuned": tuned}
    if tuned.adapter:
        found = {"base": replace(whole_model(tuned.model, tuned.revision or ""), name="base"), **found}
    elif settings.base_model:
        found = {"base": replace(whole_model(settings.base_model, settings.base_model_revision), name="base"), **found}
    emit("contenders", contenders=[one.as_json() for one in found.values()])
    return found


def find_gguf(name: str) -> Path:
    """A GGUF file here, or ID:FILE on the Hub. Raises Stop."""
    from huggingface_hub import hf_hub_download

    if (path := Path(os.path.expanduser(name))).is_file():
        return path
    repository, _, file = name.partition(":")
    if not file.endswith(".gguf"):
        raise Stop("no_gguf", f"{name} is no GGUF file.", "Pass a file, or OWNER/NAME:FILE.gguf of the Hub.")
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the Hub's errors and the network's have no ancestor in common
        raise Stop("not_found", f"{name} cannot be read: {error}", "Correct it: OWNER/NAME:FILE.gguf.") from error


def load_engine(settings: Settings, contenders: dict[str, Contender]) -> Engine:
    """Whatever answers, once it can. Raises Stop."""
    if settings.engine == "transformers":
        require_gpu_where_paid(run_facts().get("vram_gb") or 0)
        return SpeakerEngine(load_speakers(contenders))
    if settings.engine == "llama.cpp" and not shutil.which(LLAMA_SERVER):
        return LlamaEngine({name: one.model for name, one in contenders.items()}, settings.context)
    upstreams = start_llama(settings, contenders) if settings.engine == "llama.cpp" else start_vllm(settings, contenders)
    try:
        for upstream in upstreams.values():
            upstream.wait_until_ready(settings.engine)
    except BaseException:
        Upstreams(upstreams).close()
        raise
    return Upstreams(upstreams)


def start_llama(settings: Settings, contenders: dict[str, Contender]) -> dict[str, Upstream]:
    ports = {name: free_port() for name in contenders}
    commands = {name: llama_command(one.model, ports[name], settings.context) for name, one in contenders.items()}
    return {name: Upstream(commands[name], ports[name], "/health") for name in contenders}


def start_vllm(settings: Settings, contenders: dict[str, Contender]) -> dict[str, Upstream]:
    """One server for an adapter and its base; of two whole models, each has half of the GPU."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    tuned, base = contenders["tuned"], contenders.get("base")
    if base and tuned.adapter:
        port = free_port()
        shared = Upstream(vllm_command("base", base, tuned, port, settings.context, settings.half), port, "/health")
        return {"base": shared, "tuned": shared}
    found = {}
    for name, one in contenders.items():
        port, share = free_port(), 0.9 / len(contenders)
        words = vllm_command(name, one, None, port, settings.context, settings.half, share)
        found[name] = Upstream(words, port, "/health")
        found[name].wait_until_ready(settings.engine)  # each measures the memory that the other has left
    return found


# ---------------------------------------------------------------------------------------------------------------
# Flags, and how the run ends.


def setting_problems(settings: Settings) -> Iterable[str]:
    if not settings.model:
        yield "--model is needed: an adapter or a whole model"
    if settings.engine not in ENGINES:
        yield f"--engine is {', '.join(ENGINES)}, not {settings.engine}"
    if not 0 < settings.idle < 1e6:
        yield f"--idle is minutes above 0, not {settings.idle}"
    if not 0 <= settings.port < 65536:
        yield f"--port is from 0 to 65535, not {settings.port}"
    if settings.context < 64:
        yield f"--context is at least 64 tokens, not {settings.context}"


def parse_args(argv: list[str] | None = None) -> Settings:
    """Command-line flags over the defaults above. Raises SystemExit(2) on a flag or a value that is not one."""
    return parse_flags(Settings, setting_problems, __doc__, argv)


def main() -> int:
    settings = parse_args()
    code = exit_code(lambda: serve(settings), "the same command serves it again")
    sys.stdout.flush()
    os._exit(code)  # answers that nobody waits for any more are still being written, in threads


if __name__ == "__main__":
    sys.exit(main())
