"""The Hub: who the token belongs to, and what it says of a model and a data set."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import re
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    JobNotFoundError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import DatasetInfo, RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils._http import default_client_factory

from .errors import HUB, UserError
from .redaction import plain
from .training.lora import EXPERTS

T = TypeVar("T")
TIMEOUT_S = 30
LOOK_UP_S = huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT  # what the ecosystem waits for metadata: 10 s, unless set
VIEWER_S = 5
LONGEST_PAUSE_S = 5  # a Hub that asks for more is reported instead of waited for
PATIENCE_S = 4  # after which a read that fails again and again is reported
FIRST_PAUSE_S = 0.25
LONGEST_NAME = 250  # of an id or a file, in characters
MOST_LAYERS = 10_000  # or experts: a configuration that says more is no model's, and would be given memory for each
LONGEST_HEADER = 100_000_000  # bytes of a safetensors file's, as that library has it
IS_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
MANY_FILES = 1000  # whose sizes are not asked for
FAULTS = {"hub_unreachable", "hub_error", "hub_garbled", "rate_limited"}  # the Hub has not answered: nothing is known
LOGIN = "Log in with `hf auth login`, with a token from https://huggingface.co/settings/tokens"


def connect(timeout_s: float = TIMEOUT_S) -> HfApi:
    """The Hub's client, at HF_ENDPOINT, with the token of HF_TOKEN or of `hf auth login`."""

    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")  # an upload that fails again is reported, not waited for
    huggingface_hub.constants.HF_DEBUG = False  # with it the client prints what it sends: a job's secrets, too

    def client() -> Any:
        made: Any = default_client_factory()
        made.event_hooks["request"].append(functools.partial(limit, timeout_s))
        made.event_hooks["response"].insert(0, refuse_to_hand_on)
        made.send = functools.partial(send_patiently, made.send)
        return made

    huggingface_hub.set_client_factory(client)
    huggingface_hub.utils.disable_progress_bars()
    return HfApi(library_name="unsloth-jobs")


def limit(timeout_s: float, request: Any) -> None:
    """Give a request the timeout that its call has left open or has set to None: the client would wait for ever."""
    request.extensions["timeout"] = {part: limit or timeout_s for part, limit in request.extensions["timeout"].items()}


def refuse_to_hand_on(response: Any) -> None:
    """Raises HTTPError where another host is to be sent the body of a request: that of a job holds the token."""
    target = response.headers.get("location")
    if response.status_code in (307, 308) and target and response.request.method not in ("GET", "HEAD"):
        host = response.request.url.join(target).netloc
        if host != response.request.url.netloc:
            raise HTTPError(f"it sends the request on to {plain(host.decode('ascii', 'replace'))}, which is not the Hub")


def send_patiently(send: Callable, request: Any, **options: Any) -> Any:
    """Send a request; a read of the Hub that fails in passing is sent again, with growing pauses, for PATIENCE_S.

    What is raised then the client does not try again: it would go on for half a minute, or for as long as a
    Retry-After says. Anything but a read is sent once: it may have been done although its answer was lost.
    """
    if not str(request.url).startswith(endpoint()):
        return send(request, **options)  # such as the dataset viewer, which is only a shortcut
    is_read = request.method in ("GET", "HEAD")
    ends, pause = time.monotonic() + (PATIENCE_S if is_read else 0), FIRST_PAUSE_S
    while True:
        try:
            response = send(request, **options)
        except HTTPError as error:
            if not is_read:
                raise
            wait = pause
            if time.monotonic() + wait > ends:
                raise HTTPError(str(error) or type(error).__name__) from error
        else:
            require_part(request, response)
            if response.status_code != 429 and response.status_code < 500:
                return response
            wait = retry_after(response) or pause
            if not is_read and wait <= LONGEST_PAUSE_S:
                return response
            if time.monotonic() + wait > ends:
                response.read()
                hf_raise_for_status(response)
            response.close()
        time.sleep(wait)
        pause *= 2


def require_part(request: Any, response: Any) -> None:
    """Raises HTTPError where something else answers for a part of a file: the reader would ask for the rest without end."""
    part = re.fullmatch(r"bytes=(\d+)-\d+", request.headers.get("range", ""))
    is_page = response.headers.get("content-type", "").startswith("text/html")
    if part and response.status_code == 200 and (int(part[1]) or is_page):
        response.close()
        raise HTTPError("for a part of a file came another page, of a proxy or a login perhaps")


def retry_after(response: Any) -> int:
    """Seconds that the Hub asks to wait; 0 where it does not say."""
    said = response.headers.get("retry-after", "")
    return int(said) if said.isdigit() else 0


@contextlib.contextmanager
def asking(about: str) -> Iterator[None]:
    """Turn what the client raises while it asks about something into a UserError that says what to do."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # by this name the download of one file hides what the Hub answered
        with asking(about):
            answers = (HfHubHTTPError, HTTPError, OfflineModeIsEnabled)
            raise error.__cause__ if isinstance(error.__cause__, answers) else HTTPError(str(error)) from error
    except GatedRepoError as error:
        raise UserError(
            "gated",
            f"{about} is gated and this token has no access to it.",
            f"Accept its terms at {page(about)}, then try again.",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            "unknown_revision", f"{about} has no such revision.", "Leave the revision out, or name a commit."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            "not_found",
            f"{about} is not on the Hub, or this token may not see it.",
            f"{spelling(about)} If it is private: {LOGIN}.",
        ) from error
    except JobNotFoundError as error:
        raise UserError(
            "unknown_job", f"The Hub knows no {about}.", "See status.py --all, or name its owner: --namespace OWNER."
        ) from error
    except LocalTokenNotFoundError as error:
        raise UserError("no_token", "No Hugging Face token was found.", LOGIN + ".", HUB) from error
    except HfHubHTTPError as error:
        raise http_error(about, error) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise unreachable(error) from error
    except OSError as error:
        if error.errno is not None:  # of this machine
            raise
        raise garbled(about, error) from error  # a file of another length than the Hub has said
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise garbled(about, error) from error


def garbled(about: str, error: Exception) -> UserError:
    return UserError(
        "hub_garbled",
        f"What {endpoint()} answered about {about} is not what the Hub answers ({type(error).__name__}: {error}).",
        "A proxy or a login page may stand between: check the network and HF_ENDPOINT, then try again.",
        HUB,
    )


def unreachable(error: BaseException) -> UserError:
    return UserError(
        "hub_unreachable",
        f"The Hub at {endpoint()} did not answer: {plain(str(error) or type(error).__name__).rstrip('.')}.",
        "Check the network and HF_ENDPOINT, then try again.",
        HUB,
    )


def look_up(api: HfApi, kind: str, name: str, look: Callable[[], T]) -> T:
    """What look returns of a model or a data set. Raises UserError, with similar ids where there is none of this name."""
    try:
        with asking(f"{kind} {name}"):
            return look()
    except UserError as error:
        near = similar(api, kind, name) if error.problem.code == "not_found" else []
        if not near:
            raise
        told = error.problem
        raise UserError(told.code, told.message, f"Did you mean {' or '.join(near)}? {told.fix}", error.exit_code) from error


def similar(api: HfApi, kind: str, name: str) -> list[str]:
    """Up to three ids on the Hub that are spelt almost like this one; none where the search fails: it is a courtesy."""
    owner, _, short = name.rpartition("/")
    search: Callable[..., Any] = api.list_models if kind == "model" else api.list_datasets
    words = sorted(re.split(r"[-_.]", short), key=len, reverse=True)
    wanted: list[dict[str, str]] = [{"search": short}, {"search": words[0]}, *([{"author": owner}] if owner else [])]
    try:
        with asking(f"{kind} {name}"):
            ids = {found.id for query in wanted for found in search(**query, limit=50)}
    except UserError:
        return []
    by_spelling = {(one if owner else one.rpartition("/")[2]).lower(): one for one in sorted(ids)}
    return [by_spelling[one] for one in difflib.get_close_matches(name.lower(), by_spelling, n=3)]


def page(about: str) -> str:
    return f"{endpoint()}/{'datasets/' if about.startswith('data set') else ''}{about.split()[-1]}"


def spelling(about: str) -> str:
    """What to look at in an id that was not found."""
    name = about.split()[-1]
    if Path(name).suffix in (".jsonl", ".json", ".csv", ".parquet", ".txt"):
        return f"There is no file {name} here either: correct its path."
    return "Correct the id." if "/" in name else f"Correct the id: on the Hub it is OWNER/{name}."


def http_error(about: str, error: HfHubHTTPError) -> UserError:
    status = error.response.status_code if error.response is not None else 0
    said = plain(error.server_message or str(error)).strip().splitlines()[0].rstrip(".")
    if status == 401:
        return UserError("bad_token", f"The Hub does not accept this token ({said}).", LOGIN + ".", HUB)
    if status == 402:
        return UserError(
            "no_credit",
            f"The account cannot pay for this: {said}.",
            "Add a payment method or credits at https://huggingface.co/settings/billing.",
            HUB,
        )
    if status == 403:
        return UserError(
            "forbidden",
            f"The token may not do this for {about}: {said}.",
            "Use a token that may read it." if is_read(error) else "Use a token with write permission for that owner.",
            HUB,
        )
    if status == 404 and about in ("the token", "the list of hardware"):  # which every Hub has
        return UserError(
            "hub_garbled",
            f"{endpoint()} does not know {about}: it is not the Hub.",
            "Correct HF_ENDPOINT, or leave it out: the Hub is at https://huggingface.co.",
            HUB,
        )
    if status == 404:
        return UserError("not_found", f"{about} is not on the Hub, or this token may not see it.", spelling(about))
    if status == 429:
        pause = f"{seconds} seconds" if (seconds := retry_after(error.response)) else "a few minutes"
        return UserError("rate_limited", f"The Hub asks for a pause: {said}.", f"Wait {pause}, then try again.", HUB)
    if 400 <= status < 500:
        return UserError("refused", f"The Hub refuses {about}: {said}.", "Change what it names, then try again.", HUB)
    return UserError("hub_error", f"The Hub answered {status} about {about}: {said}.", "Try again in a minute.", HUB)


def is_read(error: HfHubHTTPError) -> bool:
    return error.response is not None and error.response.request.method in ("GET", "HEAD")


def endpoint() -> str:
    return huggingface_hub.constants.ENDPOINT


# ---- the token

NEEDED_RIGHTS = {"repo.write": "write repositories", "job.write": "start jobs"}


@dataclass(frozen=True)
class Identity:
    """Whose token this is: what it may do and who pays. `scopes` maps an owner to a fine-grained token's permissions."""

    name: str
    role: str
    can_pay: bool
    organizations: dict[str, bool]  # name -> can pay
    scopes: dict[str, frozenset[str]] = field(default_factory=dict)
    read_only: frozenset[str] = frozenset()  # organisations in which the user may only read

    def may(self, permission: str, owner: str) -> bool:
        """Whether the token carries a permission ("repo.write", "job.write") for an owner."""
        if owner in self.read_only:
            return False
        if self.role == "fineGrained":
            return permission in self.scopes.get(owner, frozenset())
        return self.role == "write" and (owner == self.name or owner in self.organizations)

    def pays(self, owner: str) -> bool:
        return self.can_pay if owner == self.name else self.organizations.get(owner, False)

    @property
    def payers(self) -> list[str]:
        """Owners that can pay and for whom this token may write and start jobs."""
        owners = [self.name, *self.organizations]
        return [one for one in owners if self.pays(one) and all(self.may(right, one) for right in NEEDED_RIGHTS)]


def whoami(api: HfApi) -> Identity:
    """Identity of the token; one call, which the Hub limits strictly. Raises UserError."""
    with asking("the token"):
        return identity(api.whoami())


def identity(answer: dict[str, Any]) -> Identity:
    """What the Hub answers of a token."""
    token = answer.get("auth", {}).get("accessToken", {})
    scoped = token.get("fineGrained", {}).get("scoped", [])
    scopes: dict[str, frozenset[str]] = {}
    for scope in scoped:
        owner = scope.get("entity", {}).get("name", "").split("/")[0]
        scopes[owner] = scopes.get(owner, frozenset()) | frozenset(scope.get("permissions", ()))
    return Identity(
        name=answer["name"],
        role=token.get("role", "write"),
        can_pay=bool(answer.get("canPay")),
        organizations={org["name"]: bool(org.get("canPay")) for org in answer.get("orgs", ())},
        scopes=scopes,
        read_only=frozenset(org["name"] for org in answer.get("orgs", ()) if org.get("roleInOrg") == "read"),
    )


def writable_namespace(identity: Identity, namespace: str | None) -> str:
    """The account that the job and its result belong to, once the token may do both. Raises UserError."""
    owner = namespace or identity.name
    if owner != identity.name and owner not in identity.organizations:
        raise UserError(
            "not_a_member",
            f"The token of {identity.name} has no access to {owner}.",
            "Use one of: " + ", ".join(f"--namespace {one}" for one in [identity.name, *identity.organizations]),
            HUB,
        )
    for right, what in NEEDED_RIGHTS.items():
        if not identity.may(right, owner):
            raise UserError(
                "token_cannot_write",
                f"The {identity.role} token of {identity.name} may not {what} for {owner}.",
                "Make a write token at https://huggingface.co/settings/tokens, then `hf auth login`.",
                HUB,
            )
    return owner


# ---- the model


@dataclass(frozen=True)
class Model:
    """What is known of a model without its weights. `tensors` maps a name to (dtype, shape), from safetensors headers."""

    id: str
    revision: str | None
    architecture: str
    config: dict[str, Any]
    gated: bool
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def parameters(self) -> int:
        """Number of weights, each counted once."""
        return sum(self.count(name) for name in self.tensors if not NO_PARAMETER.search(name) and not self.is_copy(name))

    @property
    def file_bytes(self) -> int:
        """What its weights take on disk: what a job downloads."""
        return sum(math.prod(shape) * bits_of(dtype) // 8 for dtype, shape in self.tensors.values())

    def count(self, name: str) -> int:
        """Weights in a tensor; a packed one holds two in a byte."""
        return math.prod(self.tensors[name][1]) * (2 if self.is_packed(name) else 1)

    def is_packed(self, name: str) -> bool:
        """Whether a tensor holds two weights in a byte: bitsandbytes' layers, and MXFP4's experts."""
        marked = f"{name}.absmax" in self.tensors if name.endswith(".weight") else name.endswith("_blocks")
        return marked and self.tensors[name][0] in ("U8", "I8")

    def is_copy(self, name: str) -> bool:
        """Whether this is an output layer that was saved although it shares the input embedding's weights."""
        tied = self.config.get("tie_word_embeddings") or text_config(self.config).get("tie_word_embeddings")
        return bool(tied) and name.endswith("lm_head.weight") and any("embed_tokens" in other for other in self.tensors)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of each two-dimensional weight by its module's name."""
        return {
            name.removesuffix(".weight"): self.unpacked(name) if self.is_packed(name) else (shape[0], shape[1])
            for name, (_, shape) in self.tensors.items()
            if name.endswith(".weight") and len(shape) == 2
        }

    @property
    def experts(self) -> dict[str, list[tuple[int, int]]]:
        """Shape of each expert's weight by the tensor that holds it: one file keeps them apart, another one stacked.

        transformers stacks them all when it loads them, so none is a linear layer that an adapter could be put on.
        """
        apart = {name: [shape] for name, shape in self.linears.items() if EXPERTS.search(name)}
        stacked = {
            name: [(shape[1], math.prod(shape[2:]) * (2 if self.is_packed(name) else 1))] * shape[0]
            for name, (_, shape) in self.tensors.items()
            if EXPERTS.search(name) and len(shape) > 2 and not NO_PARAMETER.search(name)
        }
        return apart | stacked

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made to read, with the scaling of positions that its configuration turns on."""
        config = text_config(self.config)
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        original = scaling.get("original_max_position_embeddings") or 0
        stated = next((config[key] for key in CONTEXT_KEYS if config.get(key)), 0)
        return max(stated, round(original * (scaling.get("factor") or 1))) or None

    def unpacked(self, name: str) -> tuple[int, int]:
        """Shape of a packed layer. Each one in a decoder reads or writes the hidden state, so one side is its width."""
        hidden = text_config(self.config).get("hidden_size") or 1
        other = self.count(name) // hidden
        writes = name.removesuffix(".weight").endswith(("o_proj", "out_proj", "down_proj", "w2"))
        return (hidden, other) if writes else (other, hidden)


NO_PARAMETER = re.compile(
    r"\.weight\.(absmax|quant_map|quant_state|nested_)|_scales$|\.(weight|input)_scale(_inv)?$|rotary_emb\.inv_freq$"
)
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


def bits_of(dtype: str) -> int:
    """Bits of a safetensors type, by the number in its name; those of the usual one where there is none."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else {"BOOL": 8}.get(dtype, 16)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    return config.get("text_config") or config


def model(api: HfApi, name: str, revision: str | None = None) -> Model:
    """A model on the Hub, or in a local folder. Reads headers, never weights. Raises UserError."""
    require_id(name)
    folder = Path(os.path.expanduser(name))  # which leaves ~nobody as it is
    if folder.is_dir():
        return local_model(folder)
    if name.startswith((".", "/", "~")):
        raise UserError("not_found", f"There is no model folder {name}.", "Correct the path, or name a model on the Hub.")
    info = look_up(api, "model", name, lambda: api.model_info(name, revision=revision, timeout=LOOK_UP_S))
    with asking(f"model {name}"):
        if info.gated:
            api.auth_check(name)
        files = {sibling.rfilename for sibling in info.siblings or ()}

    def read(file: str) -> str:
        with asking(f"model {name}"):
            return Path(api.hf_hub_download(name, file, revision=info.sha)).read_text("utf-8", errors="replace")

    require_weights(name, files, lambda file: configuration(name, file, read(file)))
    config = configuration(name, "config.json", read("config.json"))
    for file in TOKENIZER_FILES & files:  # transformers says of each fault of the Hub that there is no tokenizer
        require_no_page(name, file, read(file))
    with asking(f"model {name}"):
        try:
            metadata = api.get_safetensors_metadata(name, revision=info.sha, timeout=LOOK_UP_S)
        except (SafetensorsParsingError, NotASafetensorsRepoError) as error:
            raise broken_weights(name, error) from error
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            tensor: (facts.dtype, tuple(facts.shape))
            for file in metadata.files_metadata.values()
            for tensor, facts in file.tensors.items()
        }
    return Model(name, info.sha, architecture(config), config, bool(info.gated), tensors)


def require_id(name: str) -> None:
    """Raises UserError on a name with the Hub's address before it, or one that is too long to be any."""
    address = re.match(r"(?:https?://[^/]+/|hf://)(?:models/|datasets/)?(.*)", name)
    if address:
        raise UserError("not_found", f"{name} is an address, not an id.", f"Leave what is before the id out: {address[1]}")
    if len(name) > LONGEST_NAME:
        raise UserError("not_found", f"{name[:60]}… is too long for an id or a path.", "Correct the id: it is OWNER/NAME.")


def configuration(name: str, file: str, text: str) -> dict[str, Any]:
    """What a JSON file of a model says. Raises UserError where it is none, or describes a model that cannot be."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        require_no_page(name, file, text)
        raise bad_config(name, f"{file} is no whole JSON ({error})") from error
    if not isinstance(config, dict):
        raise bad_config(name, f"{file} holds no JSON object")
    for part in (config, config["text_config"] if isinstance(config.get("text_config"), dict) else {}):
        for key, value in part.items():
            if re.search(r"layers?$|experts$", key) and isinstance(value, int) and value > MOST_LAYERS:
                raise bad_config(name, f"{file} says {key} = {value:.3g}")
        if not has_usual_form(part):
            raise bad_config(name, f"{file} has another form than transformers' own")
    return config


def has_usual_form(config: dict[str, Any]) -> bool:
    """Whether what is read here of a model's configuration is of the kinds that transformers writes."""
    parts = [config.get(key) or {} for key in ("text_config", "quantization_config", "rope_parameters", "rope_scaling")]
    names, amounts = config.get("architectures") or [], ("hidden_size", "num_hidden_layers", "vocab_size", *CONTEXT_KEYS)
    if not isinstance(names, list) or not all(isinstance(part, dict) for part in parts):
        return False
    names = [*names, config.get("model_type"), parts[1].get("quant_method")]
    numbers = [config.get(key) for key in amounts]
    numbers += [part.get(key) for part in parts[2:] for key in ("factor", "original_max_position_embeddings")]
    return all(one is None or isinstance(one, str) and re.fullmatch(r"[\w.-]{1,100}", one) for one in names) and all(
        one is None or isinstance(one, int | float) and math.isfinite(one) for one in numbers
    )


def require_no_page(name: str, file: str, text: str) -> None:
    if file.endswith(".json") and text.lstrip()[:1] == "<":
        raise UserError(
            "hub_garbled",
            f"What {endpoint()} answered about {file} of {name} is a page for people.",
            "A proxy or a login page may stand between: check the network and HF_ENDPOINT, then try again.",
            HUB,
        )


def bad_config(name: str, why: str) -> UserError:
    return UserError("bad_config", f"{name} cannot be loaded: its {why}.", "Name the model's original repository.")


def broken_weights(name: str, error: Exception) -> UserError:
    return UserError(
        "no_safetensors",
        f"The safetensors files of {name} cannot be read: {plain(str(error)).splitlines()[0] if str(error) else type(error).__name__}.",
        "Choose the original repository of this model, or save it again with transformers' save_pretrained.",
    )


def local_model(folder: Path) -> Model:
    read = lambda file: configuration(str(folder), file, (folder / file).read_text("utf-8", errors="replace"))  # noqa: E731
    require_weights(str(folder), {path.name for path in folder.iterdir()}, read)
    config = read("config.json")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            tensors |= header_of(path)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise broken_weights(str(path), error) from error
    return Model(str(folder), None, architecture(config), config, False, tensors)


def header_of(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a safetensors file. Raises ValueError and others on what is none."""
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > min(path.stat().st_size, LONGEST_HEADER):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(size))
    return {
        name: (str(facts["dtype"]), tuple(map(int, facts["shape"]))) for name, facts in header.items() if name != "__metadata__"
    }


def require_weights(name: str, files: set[str], read: Callable[[str], dict[str, Any]]) -> None:
    """Raises UserError where these files are not a whole model in safetensors, and says what they are instead."""
    whole = {"model.safetensors", "model.safetensors.index.json"} & files
    if whole and "config.json" in files:
        return
    if "adapter_config.json" in files and not whole:
        base = read("adapter_config.json").get("base_model_name_or_path")
        named = base if isinstance(base, str) and IS_ID.fullmatch(base) else "the model that it was trained on"
        raise UserError("adapter_repo", f"{name} is a LoRA adapter, not a whole model.", f"Name its base model: {named}")
    if any(file.endswith(".gguf") for file in files) and not whole:
        original = re.sub(r"[-_.]gguf$", "", name, flags=re.IGNORECASE)
        raise UserError(
            "gguf_only",
            f"{name} holds GGUF files, which are for running a model, not for training it.",
            f"Name the model that they were made from: {original if original != name else 'its card says which'}",
        )
    if "config.json" not in files:
        raise UserError(
            "no_config", f"{name} holds no config.json, so it is no model for transformers.", "Name the model's own repository."
        )
    raise UserError(
        "no_safetensors",
        f"{name} has no weights in model.safetensors.",
        "Choose the original repository of this model, or save it again with transformers' save_pretrained.",
    )


def architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or ["unknown"])[0])


# ---- the data set


def dataset_revision(api: HfApi, name: str, revision: str | None = None) -> str | None:
    """The commit that a data set's revision stands at; None for one on this machine. Raises UserError."""
    require_id(name)
    return None if is_local(name) else dataset_info(api, name, revision).sha


def dataset_info(api: HfApi, name: str, revision: str | None = None) -> DatasetInfo:
    """What the Hub says of a data set that this token can read. Raises UserError."""
    info = look_up(api, "data set", name, lambda: api.dataset_info(name, revision=revision, timeout=LOOK_UP_S))
    if info.gated:
        with asking(f"data set {name}"):
            api.auth_check(name, repo_type="dataset")
    return info


def viewer_rows(api: HfApi, name: str, config: str, split: str) -> tuple[int, str] | None:
    """Rows of a split by the dataset viewer, and how it knows; None where it does not: it is only a shortcut."""
    server = os.environ.get("HF_DATASETS_SERVER") or endpoint().replace("://", "://datasets-server.")
    try:
        with asking(f"data set {name}"):
            answer = get_session().get(
                f"{server}/size", params={"dataset": name}, headers=build_hf_headers(token=api.token), timeout=VIEWER_S
            )
            hf_raise_for_status(answer)
            splits = answer.json()["size"]["splits"]
    except (UserError, ValueError, KeyError, TypeError):
        return None
    said: dict[str, Any] = next((one for one in splits if (one.get("config"), one.get("split")) == (config, split)), {})
    if said.get("estimated_num_rows"):
        return said["estimated_num_rows"], "estimated"
    return (said["num_rows"], "viewer") if said.get("num_rows") and not answer.json().get("partial") else None


def file_sizes(api: HfApi, name: str, revision: str, urls: list[str]) -> int | None:
    """Bytes of these files of a data set; None where one of them is elsewhere, they are many, or the Hub does not say."""
    paths = [url.partition(f"@{revision}/")[2] for url in urls]
    if not all(paths) or len(paths) > MANY_FILES:
        return None
    try:
        with asking(f"data set {name}"):
            found = api.get_paths_info(name, paths, repo_type="dataset", revision=revision)
    except UserError:
        return None
    sizes = [file.size for file in found if isinstance(file, RepoFile)]
    return sum(sizes) if len(sizes) == len(paths) else None


def is_local(name: str) -> bool:
    """Whether a model's or data set's name is a path here rather than an id on the Hub."""
    return name.startswith((".", "/", "~")) or (len(name) <= LONGEST_NAME and os.path.exists(name))
