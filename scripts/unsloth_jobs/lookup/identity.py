"""Whose token it is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi

from ..errors import HUB, UserError
from .client import asking

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
        return as_identity(api.whoami())


def as_identity(answer: dict[str, Any]) -> Identity:
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
