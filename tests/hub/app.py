"""The routes of all parts in one Starlette application."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from . import buckets, errors, jobs_api, repos, viewer, xet
from .faults import FaultsMiddleware
from .journal import JournalMiddleware

if TYPE_CHECKING:
    from .server import Hub


def whoami(request: Request) -> Response:
    return JSONResponse(request.app.state.hub.accounts.require(request).whoami())


def create_app(hub: "Hub") -> Starlette:
    app = Starlette(
        routes=[
            Route("/api/whoami-v2", whoami),
            *jobs_api.routes,
            *buckets.routes,
            Mount("/cas", routes=xet.routes),
            Mount("/viewer", routes=viewer.routes),
            *repos.routes,
        ],
        middleware=[
            Middleware(JournalMiddleware, journal=hub.journal),
            Middleware(FaultsMiddleware, faults=hub.faults, drop_connection=hub.drop_connection),
        ],
        exception_handlers={errors.HubError: errors.handle},
    )
    app.state.hub = hub
    return app
