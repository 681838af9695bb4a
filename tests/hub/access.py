"""Who may read and write which repository or bucket, and what requests to them have in common."""

from starlette.requests import Request

from . import errors
from .accounts import Token
from .store import Bucket, Repo, RepoType


def can_read(token: Token | None, repo: Repo | Bucket) -> bool:
    """Whether a repository or bucket may be seen at all; a gated one may."""
    return not repo.private or (token is not None and token.may_read(repo.namespace))


def find(request: Request) -> Repo:
    """The repository in the path, if the request's token may see it."""
    hub = request.app.state.hub
    token = hub.accounts.authenticate(request)
    repo_type = request.path_params["kind"].removesuffix("s")
    repo = hub.store.repos.get((repo_type, request.path_params["repo"]))
    if repo is None or not can_read(token, repo):
        raise errors.repo_not_found(logged_in=token is not None)
    return repo


def find_for_content(request: Request) -> Repo:
    """As `find`, but for the files: those of a gated repository are for whom was let in."""
    repo = find(request)
    token = request.app.state.hub.accounts.authenticate(request)
    if repo.gated and not (token and token.reads_gated and may_pass_gate(token, repo)):
        raise errors.gated(repo.type, repo.id, logged_in=token is not None)
    return repo


def may_pass_gate(token: Token, repo: Repo) -> bool:
    return token.user.name in repo.granted or token.may_read(repo.namespace)


def find_for_writing(request: Request) -> Repo:
    repo = find(request)
    require_write(request.app.state.hub.accounts.require(request), repo.namespace)
    return repo


def require_write(token: Token, namespace: str) -> None:
    if not token.may("repo.write", namespace):
        raise errors.forbidden(f'You don\'t have the rights to write to the namespace "{namespace}"')


def is_true(value: str | None) -> bool:
    return value is not None and value.lower() in ("true", "1")


def repo_url(request: Request, repo_type: RepoType, repo_id: str) -> str:
    prefix = "" if repo_type == "model" else f"{repo_type}s/"
    return f"{request.app.state.hub.url}/{prefix}{repo_id}"
