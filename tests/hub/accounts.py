"""Users, their tokens, and what each token may do."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.requests import Request

from . import errors


def object_id(*parts: str) -> str:
    """A stable id of 24 hex digits, the shape of the Hub's own."""
    return hashlib.sha1("/".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Organization:
    name: str
    can_pay: bool = True
    role: str = "admin"

    def info(self) -> dict:
        return {
            "type": "org",
            "id": object_id("org", self.name),
            "name": self.name,
            "fullname": self.name,
            "canPay": self.can_pay,
            "plan": "team" if self.can_pay else None,
            "roleInOrg": self.role,
        }


@dataclass(frozen=True)
class User:
    name: str
    can_pay: bool = True
    is_pro: bool = False
    orgs: tuple[Organization, ...] = ()

    @property
    def id(self) -> str:
        return object_id("user", self.name)

    def can_pay_for(self, namespace: str) -> bool:
        if namespace == self.name:
            return self.can_pay
        return any(org.can_pay for org in self.orgs if org.name == namespace)

    def role_in(self, namespace: str) -> str | None:
        """`admin` in the own namespace, the role in an organization, else None."""
        if namespace == self.name:
            return "admin"
        return next((org.role for org in self.orgs if org.name == namespace), None)


@dataclass(frozen=True)
class Token:
    """A user as seen through one token. `permissions` count only for a fine-grained token."""

    user: User
    role: str = "write"
    permissions: frozenset[str] = field(default_factory=frozenset)
    reads_gated: bool = True

    def may(self, permission: str, namespace: str) -> bool:
        """Whether the token allows e.g. `repo.write` or `job.write` in a namespace."""
        if self.user.role_in(namespace) in (None, "read"):
            return False
        if self.role == "fineGrained":
            return permission in self.permissions
        return self.role == "write"

    def may_read(self, namespace: str) -> bool:
        if self.user.role_in(namespace) is None:
            return False
        return self.role != "fineGrained" or bool(self.permissions & {"repo.content.read", "repo.write"})

    def whoami(self) -> dict:
        access_token: dict = {"displayName": "test", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        if self.role == "fineGrained":
            entities = [{"_id": self.user.id, "type": "user", "name": self.user.name}]
            entities += [{"_id": object_id("org", org.name), "type": "org", "name": org.name} for org in self.user.orgs]
            access_token["fineGrained"] = {
                "canReadGatedRepos": self.reads_gated,
                "global": [],
                "scoped": [{"entity": entity, "permissions": sorted(self.permissions)} for entity in entities],
            }
        return {
            "type": "user",
            "id": self.user.id,
            "name": self.user.name,
            "fullname": self.user.name,
            "email": f"{self.user.name}@example.com",
            "emailVerified": True,
            "canPay": self.user.can_pay,
            "isPro": self.user.is_pro,
            "periodEnd": None,
            "avatarUrl": "",
            "orgs": [org.info() for org in self.user.orgs],
            "auth": {"type": "access_token", "accessToken": access_token},
        }


class Accounts:
    """All tokens that the server knows."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}

    def add(
        self,
        name: str,
        token: str,
        *,
        role: str = "write",
        permissions: Iterable[str] = (),
        reads_gated: bool = True,
        can_pay: bool = True,
        is_pro: bool = False,
        orgs: Iterable[str | Organization] = (),
    ) -> None:
        """Register a token; a second call with the same name gives that user another token."""
        organizations = tuple(org if isinstance(org, Organization) else Organization(org) for org in orgs)
        user = User(name, can_pay, is_pro, organizations)
        self._tokens[token] = Token(user, role, frozenset(permissions), reads_gated)

    def revoke(self, token: str) -> None:
        """From now on the token is unknown."""
        del self._tokens[token]

    def authenticate(self, request: Request) -> Token | None:
        """The request's token; None without one. An unknown one is refused everywhere, as on the Hub."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        token = self._tokens.get(header.removeprefix("Bearer ").strip())
        if token is None:
            raise errors.bad_credentials()
        return token

    def require(self, request: Request) -> Token:
        token = self.authenticate(request)
        if token is None:
            raise errors.not_logged_in()
        return token
