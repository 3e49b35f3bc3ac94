"""Lay out the routes. Knows nothing of sockets or the command line."""

import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_server.dialects import BODIES, Body
from gpu_server.refusal import Refusal, error_body
from gpu_server.service import Service
from gpu_server.speaking import SpeechAnswer

_MOCKS = ("tone",)  # engines that make no speech


def build_app(service: Service) -> ASGIApp:
    """The whole ASGI application for one service."""
    app = FastAPI(title="Cicada gpu_server", version="1", docs_url="/docs", redoc_url=None)
    for path, body in BODIES.items():
        app.add_api_route(
            path,
            _speech_route(service),
            methods=["POST"],
            summary=(body.__doc__ or "").splitlines()[0],
            response_model=None,
            response_class=Response,
            openapi_extra=_body_schema(body),
        )

    @app.get("/v1/voices")
    async def voices() -> dict[str, list[str]]:
        """The names `voice` and `speaker_id` take."""
        return {"voices": list(service.engine.voices)}

    @app.get("/health")
    async def health() -> JSONResponse:
        """Ready or warming, its own limits, whether it only pretends to speak, and what its model's weights are.

        `weights`: `random` where the model knows no voice; null for an engine without a model. The clocks let a client
        align its own with this host's.
        """
        return JSONResponse(
            {
                "status": "ready" if service.warm else "warming",
                "engine": service.engine.name,
                "mock": service.engine.name in _MOCKS,
                "weights": getattr(service.engine, "weights", None),
                "monotonic_s": time.monotonic(),
                "wall_s": time.time(),
                "streams": service.admission.active,
                "queued": service.admission.queued,
                "calls": service.calls,
                "sessions": service.sessions.active,
                "sessions_waiting": service.sessions.queued,
                "streams_most": service.admission.streams,
                "queue_most": service.admission.queue,
                "calls_most": service.calls_most,
                "sessions_most": service.sessions.streams,
                "duplex_mock": service.duplex_mock,
            },
            status_code=200 if service.warm else 503,
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, "not_found", f"{request.method} {request.url.path}: {error.detail}")
        return Response(error_body(refusal), error.status_code, error.headers, "application/json")

    return _Stamped(app)


class _Stamped:
    """Notes when a request came, before any routing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["received_at"] = time.monotonic()
        await self._app(scope, receive, send)


def _speech_route(service: Service) -> Any:
    async def speech(request: Request) -> Response:
        return SpeechAnswer(service, request.scope["received_at"])

    return speech


def _body_schema(body: Body) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body.model_json_schema()}}}}
