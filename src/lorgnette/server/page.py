"""The page that asks the served models beside each other: its HTML, and the files that it loads."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lorgnette.processing.boxes import ImageSize, parse_boxes
from lorgnette.report.html import templates
from lorgnette.server.api_errors import ApiError
from lorgnette.server.guard import MAX_BODY_BYTES

if TYPE_CHECKING:
    from lorgnette.server.models import ModelSet, ServedModel

MAX_IMAGE_BYTES = (MAX_BODY_BYTES - 2**20) // 4 * 3
"""The page sends no larger file: in base64 it would be over the server's limit."""
_STATIC, _OF_REPORTS = Path(__file__).with_name("static"), Path(templates.__file__).parent
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ACCEPTED = "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/avif"
"""What the API takes and browsers show. An iPhone turns its HEIC into JPEG then."""
_MAX_NAMES = 3
"""Adapters that the title names."""
_BOX_STYLES = ("boxes2", "boxes1", "boxes3", "boxes4", "boxes5", "boxes6")
"""Classes of base.css: the base model's, then the adapters', of which the first is green."""
_MAX_BOXES = 100
"""Of an answer: more cannot be told apart."""


class AnswerText(BaseModel):
    """The body of `POST /boxes`: an answer about an image of width × height pixels, as people see it."""

    model: str
    text: str = Field(max_length=2**16)
    width: int = Field(ge=1, le=2**16)
    height: int = Field(ge=1, le=2**16)


def build_page_routes(models: "ModelSet", *, has_api_key: bool) -> list[Route]:
    """The page at `/`, and what it loads. has_api_key: clients need a key, so the page's examples send one."""
    html = render_page(models, has_api_key=has_api_key)

    async def get_page(_: Request) -> Response:
        return HTMLResponse(html)

    async def post_boxes(request: Request) -> Response:
        try:
            answer = AnswerText.model_validate_json(await request.body())
        except ValidationError as error:
            raise ApiError(400, f"the body is no answer with its image's size: {error.errors()[0]['msg']}") from None
        return JSONResponse({"boxes": await run_in_threadpool(find_boxes, models, answer)})

    return [Route("/", get_page), Route("/boxes", post_boxes, methods=["POST"]), *build_static_routes()]


def find_boxes(models: "ModelSet", answer: AnswerText) -> list[dict[str, Any]]:
    """The boxes and points in an answer, in pixels of the image. Raises ApiError for an unknown model."""
    if (model := models.find(answer.model)) is None:
        raise ApiError(404, f"there is no model {answer.model[:100]!r}", param="model", code="model_not_found")
    resized_height, resized_width = model.processor.image_processor.compute_size(answer.width, answer.height)
    size = ImageSize(answer.width, answer.height, resized_width, resized_height)
    found = parse_boxes(answer.text, model.processor.box_convention, size)[:_MAX_BOXES]
    return [{"corners": box.corners, "label": box.label} for box, *_ in found]


def build_static_routes(*folders: Path) -> list[Route]:
    """`/static/NAME` for each file; folders: more of them, for another page. No request is turned into a path."""
    return [_build_static_route(*file) for file in read_static_files(*folders)]


@cache
def read_static_files(*folders: Path) -> tuple[tuple[str, bytes, str], ...]:
    """Name, content and media type of each file that a page may load; two are the reports'."""
    own = [path for folder in (_STATIC, *folders) for path in sorted(folder.iterdir()) if path.suffix in _MEDIA_TYPES]
    paths = [_OF_REPORTS / "base.css", _OF_REPORTS / "theme.js", *own]
    return tuple((path.name, path.read_bytes(), _MEDIA_TYPES[path.suffix]) for path in paths)


def render_template(name: str, *folders: Path, **values: Any) -> str:
    """A page of the server's frame; folders: where another package's templates are. See `templates.render`."""
    return templates.render(name, template_folders=(*folders, _STATIC), **values)


def render_page(models: "ModelSet", *, has_api_key: bool) -> str:
    """The page's HTML, with a place for each model's answer: the base model's first."""
    adapters = [model.name for model in models.models if model.parent]
    base_name = "built-in model" if models.base_model == "demo" else models.base_model.rsplit("/", 1)[-1]
    ordered = sorted(models.models, key=lambda model: model.parent is not None)
    cards = [_describe_model(i, model, "Untuned" if adapters else model.name) for i, model in enumerate(ordered)]
    title = _build_title(adapters) or ordered[0].name
    return render_template(
        "serve.html.j2",
        title=title,
        summary=_summarize("" if base_name == title else base_name, ordered),
        models=cards,
        accept=_ACCEPTED,
        data={"models": cards, "has_api_key": has_api_key, "max_image_bytes": MAX_IMAGE_BYTES},
    )


def _describe_model(index: int, model: "ServedModel", base_title: str) -> dict[str, Any]:
    return {
        "box_style": _BOX_STYLES[index % len(_BOX_STYLES)],
        "name": model.name,
        "title": model.name if model.parent else base_title,
        "is_base": model.parent is None,
        "prompt": model.prompt,
        "max_new_tokens": model.max_new_tokens,
    }


def _build_title(adapters: Sequence[str]) -> str:
    """The page's title; empty without adapters."""
    if len(adapters) > _MAX_NAMES:
        return f"{len(adapters)} adapters, beside their base"
    names = " and ".join([", ".join(adapters[:-1]), adapters[-1]] if len(adapters) > 1 else adapters)
    return f"{names}, beside {'its' if len(adapters) == 1 else 'their'} base" if names else ""


def _summarize(base_name: str, models: "Sequence[ServedModel]") -> str:
    """The base model, the size of images if all models have the same, and how answers are chosen."""
    sizes = {model.processor.settings.image_size for model in models}
    (size, *others) = sizes
    parts = [base_name, f"{size[1]} × {size[0]}" if size and not others else "", "greedy"]
    return " · ".join(part for part in parts if part).replace(" × ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}")


def _build_static_route(name: str, content: bytes, media_type: str) -> Route:
    async def get_file(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(f"/static/{name}", get_file)
