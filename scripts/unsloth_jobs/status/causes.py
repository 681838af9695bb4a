"""Causes of failures: how a log shows each, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..values import number, whole

AGAIN, RESUME, CHECK, ESTIMATE, LOGIN, LOGS = "again", "resume", "check", "estimate", "hf auth login", "logs"


@dataclass(frozen=True)
class Diagnosis:
    """lines: the end of the log that tells most, where the cause is not known."""

    code: str
    message: str
    fix: str
    command: str
    lines: tuple[str, ...] = ()


def no_change(settings: Mapping[str, Any]) -> list[str]:
    return []


def smaller_batch(settings: Mapping[str, Any]) -> list[str]:
    """The same rows in each step, half as many of them at once."""
    micro, accumulation = whole(settings.get("batch_size")), whole(settings.get("gradient_accumulation", 1))
    if not micro or not accumulation:
        return []  # not a script with the template's flags
    halved = [f"--batch-size={micro // 2}", f"--gradient-accumulation={2 * accumulation}"]
    return ["--gradient-checkpointing=offload", *(halved if micro > 1 else [])]


def slower(settings: Mapping[str, Any]) -> list[str]:
    rate = number(settings.get("learning_rate"))
    return [f"--learning-rate={rate / 3:.2g}"] if rate else []


def longer_completions(settings: Mapping[str, Any]) -> list[str]:
    tokens = whole(settings.get("max_completion_length"))
    return [f"--max-completion-length={2 * tokens}"] if tokens else []


@dataclass(frozen=True)
class Cause:
    """A failure that is known by what the failing program itself prints.

    `change`: arguments to add to the run, from its settings; `flavor`: the machine to take instead. `{detail}` in the
    message is what the pattern's group of that name holds.
    """

    code: str
    pattern: re.Pattern[str]
    message: str
    fix: str
    command: str = LOGS
    change: Callable[[Mapping[str, Any]], list[str]] = no_change
    flavor: str | None = None


def cause(code: str, pattern: str, *rest: Any, **options: Any) -> Cause:
    return Cause(code, re.compile(pattern, re.MULTILINE), *rest, **options)


# Three places, each with its causes in the order of their certainty. First what the platform says of the job.
IN_MESSAGE = (
    cause(
        "out_of_ram",
        r"OOMKilled",
        "The machine ran out of main memory (not GPU memory).",
        "Choose a --flavor with more RAM: l4x1 has twice what a10g-small has. With --resume it goes on from its checkpoint.",
        ESTIMATE,
    ),
    cause(
        "timeout",
        r"^Job time(d )?.?out|timed out",
        "The job reached its timeout and was ended.",
        "With a longer --timeout, and --resume at the end of the arguments, a new job goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "terminated",
        r"exit code:? (143|-15)\b|\b[Ee]victed|\b[Pp]reempted",
        "The job was ended from outside: its machine was taken back, or somebody ended it.",
        "Submit it again with --resume: it goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "killed",
        r"exit code:? (137|-9)\b",
        "The job was killed (SIGKILL) without an error message, mostly because main memory ran out.",
        "Submit it again with --resume; if it happens at the same place, choose a --flavor with more RAM.",
        RESUME,
    ),
    cause(
        "process_gone",
        r"^The process is gone",
        "The job's process is gone: it was killed, or this machine restarted.",
        "Submit it again with --resume: it goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "crashed",
        r"exit code:? (139|-11|132|-4)\b",
        "Compiled code crashed (a segmentation fault), below Python.",
        "Submit it again with --resume; if it happens at the same place, restore the script's pinned versions.",
        RESUME,
    ),
)
ERROR = r"^(?:[\w.]+: )?"  # the exception's type, before what it says
# Then the exception that ended the script, and those that it came from.
IN_ERROR = (
    cause(
        "out_of_vram",
        ERROR + r"CUDA (?:out of memory|error: out of memory|error: CUBLAS_STATUS_ALLOC_FAILED)",
        "The GPU ran out of memory.",
        "Add --gradient-checkpointing offload, halve --batch-size and double --gradient-accumulation: the same training, "
        "in less memory. Where the batch is 1 already: a --flavor with more GPU memory.",
        AGAIN,
        smaller_batch,
    ),
    cause(
        "token_out_of_range",
        ERROR + r"(?:CUDA error: device-side assert triggered|index out of range in self)",
        "A token or label has a number that the model's vocabulary does not have.",
        "Use the model's own tokenizer as it is, without added tokens; templates/sft.py does.",
        CHECK,
    ),
    cause(
        "out_of_shared_memory",
        r"unable to allocate shared memory|out of shared memory|insufficient shared memory"
        r"|[Ee]rror while creating shared memory segment",
        "The machine's shared memory (/dev/shm) is too small: for processes that prepare batches, or for GPUs side by side.",
        "Set dataloader_num_workers=0 in your script; templates/sft.py uses none. On several GPUs: a --flavor with one.",
        AGAIN,
    ),
    cause(
        "gpus_stuck",
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms for (?:recv|send) operation"
        r"|Some NCCL operations have failed or timed out",
        "The GPUs waited for each other until they gave up: one of their processes hung, or did other work than the rest.",
        "Submit it again with --resume, which gets another machine; if it happens again, choose a --flavor with one GPU.",
        RESUME,
    ),
    cause(
        "launcher_stuck",
        r"Rendezvous(?:Timeout|Connection|Closed)Error|DistStoreError|The client socket has (?:timed out|failed to connect)"
        r"|DistNetworkError",
        "The processes of a run on several GPUs did not find each other.",
        "Submit it again: nothing had begun. If it happens again, choose a --flavor with one GPU.",
        AGAIN,
    ),
    cause(
        "multi_gpu",
        r"NCCL error in|ncclUnhandledCudaError|ncclInternalError|ncclSystemError|^\S*DistBackendError"
        r"|same device, but .*cuda:\d\D.*cuda:\d|^\S+: Caught \w+ in replica \d+ on device \d+",
        "The training was spread over several GPUs, and they could not work together.",
        "Choose a --flavor with one GPU, such as l4x1. Of several, templates/sft.py and dpo.py use each in a process of its own.",
        AGAIN,
        flavor="l4x1",
    ),
    cause(
        "gpu_fault",
        ERROR + r"CUDA error: (?:an illegal memory access|uncorrectable ECC error|unspecified launch failure|misaligned address"
        r"|an illegal instruction|unknown error|the launch timed out)",
        "The GPU failed in the middle of its work: broken hardware, or a fault in one of its programs.",
        "Submit it again with --resume, which gets another machine; if it happens at the same step, another --flavor.",
        RESUME,
    ),
    cause(
        "driver_too_old",
        r"The NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version",
        "The machine's GPU driver is older than this build of torch needs.",
        "Restore the torch version of templates/sft.py's header: a CUDA 12 build runs on older drivers.",
    ),
    cause(
        "gpu_unsupported",
        r"CUDA error: no kernel image is available for execution on the device",
        "One of the libraries was not built for this kind of GPU.",
        "Choose another --flavor, such as l4x1.",
        AGAIN,
        flavor="l4x1",
    ),
    cause(
        "no_bf16",
        r"Your setup doesn't support bf16|[Bb]float16 is only supported on GPUs with compute capability",
        "This GPU has no bf16 (a T4 has none).",
        "Choose a --flavor with bf16: l4x1 is the cheapest. templates/sft.py falls back to fp16 by itself.",
        AGAIN,
        flavor="l4x1",
    ),
    cause(
        "no_gpu",
        r"No CUDA GPUs are available|Torch not compiled with CUDA enabled|Found no NVIDIA driver on your system"
        r"|Unsloth cannot find any torch accelerator|Unsloth: No NVIDIA GPU found|Unsloth currently only works on NVIDIA",
        "torch sees no GPU on this machine.",
        "Choose a --flavor that has a GPU; where it has one, submit it again to get another machine.",
        AGAIN,
    ),
    cause(
        "no_compiler",
        r"Failed to find C compiler|No such file or directory: '(?:gcc|g\+\+|cc|c\+\+|clang[\w+-]*)'"
        r"|CalledProcessError: Command '\['[^']*/(?:gcc|cc|clang)', '[^']*\.c'",
        "The GPU's programs are compiled at the start, and the C compiler for that is missing or does not work.",
        "Leave the job's image and the variable CC as they are: the default image has gcc.",
        AGAIN,
    ),
    cause(
        "out_of_ram",
        r"DefaultCPUAllocator: (?:can't|not enough)|^MemoryError\b|is killed by signal: Killed|std::bad_alloc",
        "The machine ran out of main memory (not GPU memory).",
        "Choose a --flavor with more RAM: l4x1 has twice what a10g-small has.",
        ESTIMATE,
    ),
    cause(
        "disk_full",
        r"No space left on device|Disk quota exceeded|inline_container\.cc:\d+\] \. unexpected pos",
        "The machine's disk is full.",
        "Make room, or leave --merge-model out; on a rented machine, choose a --flavor with a larger disk (l4x1: 400 GB). With "
        "--resume it goes on from its checkpoint.",
        RESUME,
        flavor="l4x1",
    ),
    cause(
        "rate_limited",
        r"\b429 (?:Too Many Requests|Client Error)|exceeded the rate limit|'429 Too Many Requests'",
        "The Hub refused for a while: too many requests, or too many commits in an hour.",
        "Wait an hour, then submit it again with --resume and fewer checkpoints: --save-steps 0.25.",
        RESUME,
    ),
    cause(
        "gated",
        r"Cannot access gated repo|is a gated dataset on the Hub\.|trying to access a gated repo",
        "The model or data set is gated, and this token has no access to it.",
        "Accept its terms on its page on the Hub, then check again.",
        CHECK,
    ),
    cause(
        "storage_limit",
        r"storage limit reached|'402 Payment Required'",
        "The account has no room left for private repositories.",
        "Delete what is not needed, or add --public, which anybody can read: ask first.",
        RESUME,
    ),
    cause(
        "repo_gone",
        r"assumes that the repo already exists on the Huggingface Hub",
        "The output repository is not there any more: it was deleted or renamed while the job ran.",
        "Submit it again: the repository is created again.",
        AGAIN,
    ),
    cause(
        "dataset_not_found",
        ERROR + r"Dataset '[^']*' doesn't exist on the Hub or cannot be accessed",
        "The data set is not on the Hub, or this token may not see it.",
        "Correct --dataset; for a private one use a token of its owner.",
        CHECK,
    ),
    cause(
        "not_found",
        r"Repository Not Found for url|is not a valid model identifier listed on",
        "A repository is not on the Hub, or this token may not see it.",
        "Correct --base-model or --output-repo; for a private one use a token of its owner.",
        CHECK,
    ),
    cause(
        "unknown_revision",
        r"Revision Not Found for url|is not a valid git identifier",
        "The model or data set has no such revision.",
        "Leave --base-model-revision and --dataset-revision out, or name a commit.",
        CHECK,
    ),
    cause(
        "push_denied",
        r"\b403 Forbidden: You don't have the rights|You don't have the rights to (?:write|create)",
        "The token may not write to that account.",
        "Log in with a token that has write permission for the owner of --output-repo.",
        LOGIN,
    ),
    cause(
        "bad_token",
        r"'401 Unauthorized'|\b401 (?:Client Error|Unauthorized)|Invalid credentials in Authorization header",
        "The Hub did not accept the token: it has expired, or was revoked.",
        "Log in again, then submit again.",
        LOGIN,
    ),
    cause(
        "name_taken",
        r"'409 Conflict'|You already created this model repo",
        "A repository of this name exists already.",
        "Name another with --output-repo.",
        AGAIN,
    ),
    cause(
        "bad_repo_name",
        ERROR + r"Repo id must ",
        "A repository's name is not one that the Hub allows.",
        "Correct it: --output-repo OWNER/NAME, of letters, digits, `-`, `_` and `.`.",
        CHECK,
    ),
    cause(
        "transfer_failed",
        r"CAS service error|^Fatal Error: \"cas::|Network error: .*/(?:cas|xorb)|cas-server\.xethub",
        "A large file did not reach the Hub's file store, or did not come from it.",
        "Submit it again with --resume: it goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "forbidden",
        r"\b403 (?:Forbidden|Client Error)",
        "The Hub refused this to the token.",
        "Log in with a token that may read the model and the data set and write to the owner of --output-repo.",
        LOGIN,
    ),
    cause(
        "hub_error",
        r"Server error '5\d\d |\b5\d\d Server Error|Hub.*\b50[0234] (?:Internal Server Error|Bad Gateway|Service Unavailable)",
        "The Hub itself had a fault.",
        "Submit it again with --resume in a few minutes: it goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "hub_unreachable",
        r"We couldn't connect to '|Name or service not known|Temporary failure in name resolution|Failed to resolve '"
        r"|Connection reset by peer|Connection refused|disconnected without sending a response|Max retries exceeded with url"
        r"|^(?:httpx|httpcore|requests|urllib3)\.\S*Timeout",
        "The job lost its connection to the Hub.",
        "Submit it again with --resume: it goes on from the checkpoint.",
        RESUME,
    ),
    cause(
        "dataset_script",
        r"Dataset scripts are no longer supported",
        "The data set is a Python script, which the library no longer runs.",
        "Use a copy in Parquet: try --dataset-revision refs/convert/parquet, or another --dataset.",
        CHECK,
    ),
    cause(
        "config_needed",
        ERROR + r"Config name is missing",
        "The data set has several configurations, and none was named.",
        "Name one with --dataset-config.",
        CHECK,
    ),
    cause(
        "unknown_config",
        ERROR + r"BuilderConfig (?P<detail>'[^']*') not found",
        "The data set has no configuration {detail}.",
        "Name one that it has with --dataset-config.",
        CHECK,
    ),
    cause(
        "unknown_split",
        ERROR + r"Unknown split (?P<detail>\"[^\"]*\")",
        "The data set has no split {detail}.",
        "Name one that it has with --dataset-split.",
        CHECK,
    ),
    cause(
        "dataset_unreadable",
        r"^datasets\.\S+(?:DatasetGenerationError|DatasetGenerationCastError|EmptyDatasetError|DataFilesNotFoundError):",
        "The data set's files cannot be read: one is empty or broken, or they differ in their columns.",
        "Look at its files, or choose some of them with --dataset-config.",
        CHECK,
    ),
    cause(
        "no_chat_template",
        r"tokenizer\.chat_template is not set",
        "The model's tokenizer has no chat template, and the rows are conversations.",
        "Name the instruct version of this model with --base-model.",
        CHECK,
    ),
    cause(
        "template_refuses",
        r"^jinja2\.exceptions\.\w+: (?P<detail>.{1,200})",
        "The model's chat template refuses a row: {detail}",
        "Use templates/sft.py, which leaves such rows out and counts them, or mend the rows.",
        CHECK,
    ),
    cause(
        "nothing_supervised",
        r"All labels in your dataset are -100",
        "Not one token would be learned: the expected markers are not in the rows, or were cut off.",
        "Use templates/sft.py, which finds the answers by the model's own template; or a larger --max-seq-length.",
        CHECK,
    ),
    cause(
        "unknown_architecture",
        r"Transformers does not recognize this architecture",
        "The model is newer than the transformers version of the script.",
        "Choose another --base-model, or raise the pinned versions together.",
        CHECK,
    ),
    cause(
        "remote_code",
        r"contains custom code which must be executed|trust_remote_code=True",
        "The model brings Python code of its own, which is not run.",
        "Choose another --base-model. Only if the user trusts that code: turn it on in a copy of the script.",
        CHECK,
    ),
    cause(
        "no_weights",
        r"does not appear to have a file named (?:pytorch_model|model)",
        "The repository holds no weights that transformers can load.",
        "Name the model's original repository with --base-model.",
        CHECK,
    ),
    cause(
        "weights_broken",
        r"SafetensorError: Error while deserializing|UnpicklingError: Weights only load failed|Unable to load weights from",
        "A file of weights is broken: it was cut off on its way, or written while the disk was full.",
        "Submit it again: a new machine downloads it again. If it happens twice, the file on the Hub is broken.",
        AGAIN,
    ),
    cause(
        "checkpoint_broken",
        r"Can't find a valid checkpoint at|Error\(s\) in loading state_dict for",
        "The checkpoint is not whole, or of another model.",
        "Submit it again without --resume, to train from the beginning.",
        AGAIN,
    ),
    cause(
        "no_tokenizer",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for",
        "The repository holds no tokenizer that can be loaded.",
        "Name the model's original repository with --base-model.",
        CHECK,
    ),
    cause(
        "unknown_target",
        r"Target modules .* not found in the base model",
        "The model has no layers of these names.",
        "Leave --target-modules at auto.",
        AGAIN,
        lambda settings: ["--target-modules=auto"],
    ),
    cause(
        "version_mismatch",
        r"^TypeError: (?P<detail>\S+ got an unexpected keyword argument \S+)|^ImportError: (?P<name>cannot import name \S+ from \S+)",
        "The script was written for other versions of its libraries: {detail}.",
        "Use templates/sft.py, which pins the versions that it was tested with.",
        LOGS,
    ),
    cause(
        "missing_package",
        r"^ModuleNotFoundError: No module named (?P<detail>\S+)|requires (?P<name>[\w-]+): `pip install"
        r"|the package for (?P<package>\w+) doesn't seem to be installed",
        "A library is missing: {detail}.",
        "Add it, with its version, to the dependencies in the script's header.",
        LOGS,
    ),
)
# Last what a program says that ends without an exception of Python's.
AT_END = (
    cause(
        "disk_full",
        r"^\s+cause: .*No space left on device",
        "The machine's disk is full.",
        "Choose a --flavor with a larger disk (l4x1: 400 GB).",
        AGAIN,
        flavor="l4x1",
    ),
    cause(
        "unresolvable",
        r"^(?:error: |  × )No solution found when resolving",
        "The script's dependencies contradict each other, or do not exist.",
        "Restore the versions of templates/sft.py's header.",
        AGAIN,
    ),
    cause(
        "build_failed",
        r"^(?:error: |  × )Failed to build\b|^\s*ERROR: Failed building wheel for ",
        "A dependency has no finished package for this machine, and building it failed.",
        "Take it out of the script's header, or pin a version that has a wheel.",
        AGAIN,
    ),
    cause(
        "install_failed",
        r"^error: (?:Failed to (?:download|fetch)|Request failed)\b",
        "A library could not be downloaded.",
        "Submit it again: nothing had begun.",
        AGAIN,
    ),
    cause(
        "bad_arguments",
        r"^\S+\.py: error: (?P<detail>.{1,200})",
        "The script does not take these arguments: {detail}",
        "Correct them; the script's --help lists its flags.",
        LOGS,
    ),
)
CAUSES = (*IN_MESSAGE, *IN_ERROR, *AT_END)
