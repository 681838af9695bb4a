"""The Hub's way of saying no: a status, a message and, for repositories, an `X-Error-Code`.

`huggingface_hub` chooses its exception class by that code, so the codes here are the real ones.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """An answer other than success; `handle` turns it into the response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


def bad_request(message: str) -> HubError:
    return HubError(400, message)


def bad_credentials() -> HubError:
    return HubError(401, "Invalid credentials in Authorization header")


def not_logged_in() -> HubError:
    return HubError(401, "Invalid username or password.")


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def repo_not_found(logged_in: bool) -> HubError:
    """Private and missing repositories look the same; without a token the Hub says 401, not 404."""
    if logged_in:
        return HubError(404, "Repository not found", "RepoNotFound")
    return HubError(401, "Invalid username or password.", "RepoNotFound")


def gated(repo_type: str, repo_id: str, logged_in: bool) -> HubError:
    restricted = f"Access to {repo_type} {repo_id} is restricted"
    if logged_in:
        message = f"{restricted} and you are not in the authorized list. Visit the repository's page to ask for access."
        return HubError(403, message, "GatedRepo")
    return HubError(401, f"{restricted}. You must have access to it and be authenticated to access it.", "GatedRepo")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found() -> HubError:
    return HubError(404, "Entry not found", "EntryNotFound")


def handle(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for `HubError`."""
    assert isinstance(error, HubError)
    headers = {"X-Error-Message": error.message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, headers)
