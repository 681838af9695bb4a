"""The Hub: who the token belongs to, and what it says of a model and a data set."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    JobNotFoundError,
    LocalTokenNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from .errors import HUB, UserError

TIMEOUT_S = 30
LOGIN = "Log in with `hf auth login`, with a token from https://huggingface.co/settings/tokens"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")


def _client():
    client = default_client_factory()  # which waits for ever where a call sets no timeout of its own
    client.timeout = TIMEOUT_S
    return client


def connect() -> HfApi:
    """The Hub's client, at HF_ENDPOINT, with the token of HF_TOKEN or of `hf auth login`."""
    huggingface_hub.set_client_factory(_client)
    huggingface_hub.utils.disable_progress_bars()
    return HfApi(library_name="unsloth-jobs")


def redact(text: str) -> str:
    """text without tokens: errors and logs may quote one."""
    return TOKEN.sub("hf_***", text)


@contextlib.contextmanager
def asking(about: str) -> Iterator[None]:
    """Turn what the client raises while it asks about something into a UserError that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            "gated",
            f"{about} is gated and this token has no access to it.",
            f"Accept its terms at {page(about)}, then try again.",
            HUB,
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
        raise UserError(
            "hub_unreachable",
            f"The Hub at {endpoint()} did not answer: {redact(str(error)).rstrip('.')}.",
            "Check the network and HF_ENDPOINT, then try again.",
            HUB,
        ) from error


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
    said = redact(error.server_message or str(error)).strip().splitlines()[0]
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
            "Use a token with write permission for that owner.",
            HUB,
        )
    if status == 404:
        return UserError("not_found", f"{about} is not on the Hub, or this token may not see it.", spelling(about))
    if status == 429:
        return UserError("rate_limited", f"The Hub asks for a pause: {said}.", "Wait a few minutes, then try again.", HUB)
    return UserError("hub_error", f"The Hub answered {status} about {about}: {said}.", "Try again in a minute.", HUB)


def endpoint() -> str:
    return huggingface_hub.constants.ENDPOINT


# ---- the token


@dataclass(frozen=True)
class Identity:
    """Whose token this is: what it may do and who pays. `scopes` maps an owner to a fine-grained token's permissions."""

    name: str
    role: str
    can_pay: bool
    organizations: dict[str, bool]  # name -> can pay
    scopes: dict[str, frozenset[str]] = field(default_factory=dict)

    def may(self, permission: str, owner: str) -> bool:
        """Whether the token carries a permission ("repo.write", "job.write") for an owner."""
        if self.role == "fineGrained":
            return permission in self.scopes.get(owner, frozenset())
        return self.role == "write" and (owner == self.name or owner in self.organizations)


def whoami(api: HfApi) -> Identity:
    """Identity of the token; one call, which the Hub limits strictly. Raises UserError."""
    with asking("the token"):
        answer = api.whoami()
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
    )


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
        """Number of weights. Packed 4-bit tensors hold two in a byte; their scales are not weights."""
        total = 0
        for name, (dtype, shape) in self.tensors.items():
            if re.search(r"\.weight\.(absmax|quant_map|quant_state|nested_)", name):
                continue
            total += math.prod(shape) * (2 if dtype in ("U8", "I8") and name.endswith(".weight") else 1)
        return total

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of each two-dimensional weight by its module's name."""
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, (_, shape) in self.tensors.items()
            if name.endswith(".weight") and len(shape) == 2
        }


def model(api: HfApi, name: str, revision: str | None = None) -> Model:
    """A model on the Hub, or in a local folder. Reads headers, never weights. Raises UserError."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return local_model(folder)
    if name.startswith((".", "/", "~")):
        raise UserError("not_found", f"There is no model folder {name}.", "Correct the path, or name a model on the Hub.")
    with asking(f"model {name}"):
        info = api.model_info(name, revision=revision)
        if info.gated:
            api.auth_check(name)
        config = json.loads(Path(api.hf_hub_download(name, "config.json", revision=info.sha)).read_text("utf-8"))
    try:
        with asking(f"model {name}"):
            metadata = api.get_safetensors_metadata(name, revision=info.sha, timeout=TIMEOUT_S)
    except NotASafetensorsRepoError as error:
        raise UserError(
            "no_safetensors",
            f"{name} has no safetensors weights.",
            "Choose the original repository of this model, not a GGUF or a converted one.",
        ) from error
    tensors = {
        tensor: (facts.dtype, tuple(facts.shape))
        for file in metadata.files_metadata.values()
        for tensor, facts in file.tensors.items()
    }
    return Model(name, info.sha, architecture(config), config, bool(info.gated), tensors)


def local_model(folder: Path) -> Model:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except OSError as error:
        raise UserError("not_a_model", f"{folder} holds no config.json.", "Name a folder that holds a model.") from error
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        tensors |= {name: (facts["dtype"], tuple(facts["shape"])) for name, facts in header.items() if name != "__metadata__"}
    if not tensors:
        raise UserError("no_safetensors", f"{folder} holds no safetensors weights.", "Save the model with transformers.")
    return Model(str(folder), None, architecture(config), config, False, tensors)


def architecture(config: dict[str, Any]) -> str:
    return (config.get("architectures") or ["unknown"])[0]


# ---- the data set


def dataset_revision(api: HfApi, name: str, revision: str | None = None) -> str | None:
    """The commit that a data set's revision stands at; None for one on this machine. Raises UserError."""
    if is_local(name):
        return None
    with asking(f"data set {name}"):
        return api.dataset_info(name, revision=revision).sha


def is_local(name: str) -> bool:
    """Whether a model's or data set's name is a path here rather than an id on the Hub."""
    return name.startswith((".", "/", "~")) or os.path.exists(name)
