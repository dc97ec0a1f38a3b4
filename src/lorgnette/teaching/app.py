"""The ASGI app of `teach`, behind the guard: the page, its images, its state, and what the user does.

GET /state?tab=T&after=V  the state once its version is above V, or after WAIT_SECONDS
GET /image/7?side=192     image 7, 2048 pixels at most without `side`
POST /answer …            an action: JSON with the tab; its answer is the state's new version
"""

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lorgnette.errors import LorgnetteError
from lorgnette.server.api_errors import ERROR_HANDLERS, ApiError
from lorgnette.server.guard import Guard, GuardSettings
from lorgnette.server.page import build_static_routes, render_template
from lorgnette.teaching.image_bytes import MAX_SIDE, THUMBNAIL_SIDE, ImageBytes, read_image_bytes

if TYPE_CHECKING:
    from lorgnette.teaching.images import ImageList
    from lorgnette.teaching.session import Session

WAIT_SECONDS = 20
"""How long a request for a state may wait for a change."""
_SLICE_SECONDS = 1.0
"""How long a thread waits at once: then it looks whether the client is still there."""
STATIC = Path(__file__).with_name("static")
_CACHE = {"cache-control": "private, max-age=86400"}
"""Of images. Their addresses have the server's start in them, so a number never shows another image."""

Tab = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=2**16)]


class Action(BaseModel):
    """The body of a POST. tab: the page that sends it. run: the run that its page shows; "" is any."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    tab: Tab
    run: str = ""


class SuggestionAction(Action):
    """About one suggestion."""

    id: str = Field(min_length=1, max_length=64)


class TextAction(SuggestionAction):
    """A text for one suggestion."""

    text: Text


class AnswerAction(TextAction):
    """An answer. keys: key presses that the user made. seconds: since the suggestion was shown."""

    keys: int = Field(ge=0, le=2**31)
    seconds: float = Field(ge=0, le=1e9)


def build_app(
    session: "Session", images: "ImageList", settings: GuardSettings, *, run: str = "", command: str = "lorgnette teach"
) -> ASGIApp:
    """The whole app. Its caller closes the session.

    run: the run's folder, which names the page and tells this run from others: a page of another run may not answer
    here. command: what starts it again.
    """
    start = secrets.token_hex(8)
    title = Path(run).name.removeprefix("teach-") or images.folder.resolve().name or "images"
    about = {"command": command, "run": run, "start": start, "thumbnail_side": THUMBNAIL_SIDE}
    html = render_template("teach.html.j2", STATIC, title=title, data=about)

    async def get_page(_: Request) -> Response:
        return HTMLResponse(html)

    async def get_state(request: Request) -> Response:
        tab, after = _read_query(request)
        deadline, version = time.monotonic() + WAIT_SECONDS, -1
        while version <= after and (rest := deadline - time.monotonic()) > 0:
            begin, wait = time.monotonic(), min(rest, _SLICE_SECONDS)
            version = await run_in_threadpool(session.wait_for_change, after, wait)
            is_closed = version <= after and time.monotonic() - begin < wait / 2
            if is_closed or await request.is_disconnected():
                break
        view = await run_in_threadpool(session.view, tab)
        return JSONResponse({**view, "run": run, "start": start})

    async def get_image(request: Request) -> Response:
        image = await run_in_threadpool(_read_image, images, request.path_params["number"], _read_side(request))
        return Response(image.content, media_type=image.media_type, headers=_CACHE)

    def build_action(path: str, model: type[Action], act: Callable[[Any], int]) -> Route:
        async def post(request: Request) -> Response:
            try:
                action = model.model_validate_json(await request.body())
            except ValidationError as error:
                raise ApiError(400, f"{path}: {_describe(error)}", code="invalid_action") from None
            if action.run and action.run != run:
                message = "this page is of another run; its words stay there until they are copied"
                raise ApiError(409, message, code="other_run")
            return JSONResponse({"version": await run_in_threadpool(act, action)})

        return Route(path, post, methods=["POST"])

    routes = [
        Route("/", get_page),
        Route("/state", get_state),
        Route("/image/{number}", get_image),
        build_action("/answer", AnswerAction, lambda a: session.answer(a.tab, a.id, a.text, a.keys, a.seconds)),
        build_action("/skip", SuggestionAction, lambda a: session.skip(a.tab, a.id)),
        build_action("/undo", Action, lambda a: session.undo(a.tab)),
        build_action("/mend", TextAction, lambda a: session.mend(a.tab, a.id, a.text)),
        build_action("/draft", TextAction, lambda a: session.draft(a.tab, a.id, a.text)),
        build_action("/untuned", SuggestionAction, lambda a: session.request_untuned(a.tab, a.id)),
        build_action("/stop", SuggestionAction, lambda a: session.stop_text(a.tab, a.id)),
        build_action("/claim", Action, lambda a: session.claim(a.tab)),
        build_action("/train", Action, lambda a: session.request_round(a.tab)),
        build_action("/finish", Action, lambda a: session.finish(a.tab)),
        *build_static_routes(STATIC),
    ]
    return Guard(Starlette(routes=routes, exception_handlers=_HANDLERS), settings)


def _read_query(request: Request) -> tuple[str, int]:
    """The tab and the version that it has. Raises ApiError 400."""
    tab, after = request.query_params.get("tab", ""), request.query_params.get("after", "-1")
    if not 1 <= len(tab) <= 64 or not after.removeprefix("-").isdecimal() or len(after) > 15:
        raise ApiError(400, "/state needs tab=NAME and after=VERSION", code="invalid_query")
    return tab, int(after)


def _read_side(request: Request) -> int:
    """Raises ApiError 400 for any side but that of thumbnails: each is an image to compute."""
    side = request.query_params.get("side", "")
    if side not in ("", str(THUMBNAIL_SIDE)):
        raise ApiError(400, f"side is {THUMBNAIL_SIDE}, or left out", param="side")
    return THUMBNAIL_SIDE if side else MAX_SIDE


def _read_image(images: "ImageList", name: str, side: int) -> ImageBytes:
    """Raises ApiError 404 for a number that is not in the list, 422 for a file that cannot be read."""
    number = int(name) if re.fullmatch("[0-9]{1,9}", name) else len(images.paths)  # Python refuses 4300 digits
    if number >= len(images.paths):
        raise ApiError(404, f"there is no image {name[:20]}", code="unknown_image")
    try:
        return read_image_bytes(images.paths[number], side)
    except LorgnetteError as error:
        raise ApiError(422, error.message, code="broken_image") from None


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}"


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    """An unknown path or method."""
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return ApiError(error.status_code, message, code="unknown_url", headers=error.headers).to_response()


_HANDLERS: dict[Any, Any] = {**ERROR_HANDLERS, HTTPException: _answer_http_error}
