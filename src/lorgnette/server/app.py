"""The ASGI app: OpenAI's API, the page, health and metrics, behind the guard."""

import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lorgnette.server import metrics
from lorgnette.server.api_errors import ERROR_HANDLERS, ApiError
from lorgnette.server.chat import ChatEndpoint, find_model
from lorgnette.server.guard import Guard, GuardSettings
from lorgnette.server.models import ModelSet, ServedModel
from lorgnette.server.page import build_page_routes
from lorgnette.server.prompts import PromptEncoder
from lorgnette.server.scheduler import Scheduler


def build_app(models: ModelSet, scheduler: Scheduler, encoder: PromptEncoder, settings: GuardSettings) -> ASGIApp:
    """The whole app. Its caller closes the scheduler and the encoder."""
    created = int(time.time())

    def describe(model: ServedModel) -> dict[str, Any]:
        return describe_model(model, created, scheduler.max_tokens)

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [describe(model) for model in models.models]})

    async def get_model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse({**describe(find_model(models, name)), "id": name})

    async def get_health(_: Request) -> Response:
        state = scheduler.state
        return JSONResponse({"status": "ok" if state == "ready" else state}, 200 if state == "ready" else 503)

    async def get_metrics(_: Request) -> Response:
        text = metrics.format_metrics(scheduler.read_stats(), scheduler.state)
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE})

    routes = [
        Route("/v1/chat/completions", ChatEndpoint(models, scheduler, encoder).__call__, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", get_model),
        Route("/health", get_health),
        Route("/metrics", get_metrics),
        *build_page_routes(models, has_api_key=bool(settings.api_key)),
    ]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    app.router.redirect_slashes = False  # behind an HTTPS proxy it leads to http://, and would take the key there
    return Guard(app, settings)


def describe_model(model: ServedModel, created: int, max_tokens: int) -> dict[str, Any]:
    """The model as `/v1/models` has it. defaults: what is taken where a request says nothing."""
    size = model.processor.settings.image_size
    defaults = {
        "temperature": 0, "max_completion_tokens": model.max_new_tokens, "prompt": model.prompt,
        "image_size": size and list(size),
    }  # fmt: skip
    return {
        "id": model.name, "object": "model", "created": created, "owned_by": "lorgnette", "parent": model.parent,
        "max_model_len": max_tokens, "defaults": defaults,
    }  # fmt: skip


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """An unknown path or method."""
    url = f"{request.method} {request.url.path[:100]}"
    message = f"{url}: {error.detail}; POST /v1/chat/completions and GET /v1/models are served"
    code = "unknown_url" if error.status_code == 404 else None
    return ApiError(error.status_code, message, code=code, headers=error.headers).to_response()


_HANDLERS: dict[Any, Any] = {**ERROR_HANDLERS, HTTPException: _answer_http_error}
