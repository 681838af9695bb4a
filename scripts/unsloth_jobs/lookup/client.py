"""The Hub's client: patience, timeouts, and errors that say what to do."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
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
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status
from huggingface_hub.utils._http import default_client_factory

from ..errors import HUB, UserError
from ..redaction import plain

T = TypeVar("T")
TIMEOUT_S = 30
LOOKUP_TIMEOUT_S = huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT  # what the ecosystem waits for metadata: 10 s, unless set
LONGEST_PAUSE_S = 5  # a Hub that asks for more is reported instead of waited for
PATIENCE_S = 4  # after which a read that fails again and again is reported
FIRST_PAUSE_S = 0.25
LONGEST_NAME = 250  # of an id or a file, in characters
IS_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
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
            raise HTTPError(f"it redirects the request to {plain(host.decode('ascii', 'replace'))}, which is not the Hub")


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
    seconds = response.headers.get("retry-after", "")
    return int(seconds) if seconds.isdigit() else 0


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


def fetch_or_suggest(api: HfApi, kind: str, name: str, look: Callable[[], T]) -> T:
    """What look returns of a model or a data set. Raises UserError, with similar ids where there is none of this name."""
    try:
        with asking(f"{kind} {name}"):
            return look()
    except UserError as error:
        near = similar(api, kind, name) if error.problem.code == "not_found" else []
        if not near:
            raise
        problem = error.problem
        raise UserError(
            problem.code, problem.message, f"Did you mean {' or '.join(near)}? {problem.fix}", error.exit_code
        ) from error


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
    """What to check in an id that was not found."""
    name = about.split()[-1]
    if Path(name).suffix in (".jsonl", ".json", ".csv", ".parquet", ".txt"):
        return f"There is no file {name} here either: correct its path."
    return "Correct the id." if "/" in name else f"Correct the id: on the Hub it is OWNER/{name}."


def http_error(about: str, error: HfHubHTTPError) -> UserError:
    status = error.response.status_code if error.response is not None else 0
    reason = plain(error.server_message or str(error)).strip().splitlines()[0].rstrip(".")
    if status == 401:
        return UserError("bad_token", f"The Hub does not accept this token ({reason}).", LOGIN + ".", HUB)
    if status == 402:
        return UserError(
            "no_credit",
            f"The account cannot pay for this: {reason}.",
            "Add a payment method or credits at https://huggingface.co/settings/billing.",
            HUB,
        )
    if status == 403:
        return UserError(
            "forbidden",
            f"The token may not do this for {about}: {reason}.",
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
        return UserError("rate_limited", f"The Hub asks for a pause: {reason}.", f"Wait {pause}, then try again.", HUB)
    if 400 <= status < 500:
        return UserError("refused", f"The Hub refuses {about}: {reason}.", "Change what it names, then try again.", HUB)
    return UserError("hub_error", f"The Hub answered {status} about {about}: {reason}.", "Try again in a minute.", HUB)


def is_read(error: HfHubHTTPError) -> bool:
    return error.response is not None and error.response.request.method in ("GET", "HEAD")


def endpoint() -> str:
    return huggingface_hub.constants.ENDPOINT


def require_id(name: str) -> None:
    """Raises UserError on a name with the Hub's address before it, or one that is too long to be any."""
    address = re.match(r"(?:https?://[^/]+/|hf://)(?:models/|datasets/)?(.*)", name)
    if address:
        raise UserError("not_found", f"{name} is an address, not an id.", f"Pass the id alone: {address[1]}")
    if len(name) > LONGEST_NAME:
        raise UserError("not_found", f"{name[:60]}… is too long for an id or a path.", "Correct the id: it is OWNER/NAME.")
