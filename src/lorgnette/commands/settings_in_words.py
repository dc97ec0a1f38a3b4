"""Settings in words: by what a data set is judged, and the settings as they are typed in commands that pages name."""

from collections import Counter
from collections.abc import Collection, Sequence

from lorgnette.config import BOX_PROMPT, Settings
from lorgnette.data.example_table import group_by_question
from lorgnette.io.shell import quote_word
from lorgnette.processing.processor import describe_image_size
from lorgnette.report.html.page import flatten_settings
from lorgnette.resolve import complete_name
from lorgnette.types import Example

_ABOUT_DATA = (
    "data.test", "data.max_rows", "data.holdout", "data.split", "data.prompt", "data.trim", "data.images_from",
    "data.image_column", "data.caption_column",
)  # fmt: skip
_MAX_PROMPT = 80
_NAMED_APART = ("model", "image_size", "image_tokens", "data.prompt", "data.path", "run")
"""Settings that have a line of their own, or none."""


def list_changed_settings(settings: Settings, without: Collection[str] = ()) -> list[str]:
    """`name=value` of each setting that has not its default. without: names to leave out."""
    values, defaults = (flatten_settings(tree.model_dump(mode="json")) for tree in (settings, Settings()))
    return [f"{name}={value}" for name, value in values if (name, value) not in defaults and name not in without]


def describe_settings(
    settings: Settings, examples: Sequence[Example], recipe: str = "", token_side: int | None = None
) -> list[tuple[str, str]]:
    """(name, value) of what decides how rows become tokens.

    recipe: its name, if one was named; token_side: of the model's image tokens, if it is known.
    """
    changed = list_changed_settings(settings, _NAMED_APART)
    return [
        ("model", complete_name(settings.model)),
        ("images", describe_image_size(settings, token_side)),
        ("prompt", describe_prompt(settings, examples)),
        *([("recipe", recipe)] if recipe else []),
        ("settings", ", ".join(changed) if changed else "defaults"),
    ]


def describe_recipe_data(settings: Settings) -> str:
    """Which settings about its own data a recipe brings to other data; empty if there are none."""
    sources = settings.sources
    changed = {word.partition("=")[0]: word for word in list_changed_settings(settings)}
    names = [
        name
        for name in _ABOUT_DATA
        if name in changed and is_recipe(sources.get(name, "")) and sources[name] != sources.get("data.path")
        if not (name in ("data.holdout", "data.split") and settings.data.test)
    ]
    if not names or settings.data.path is None:
        return ""
    listed = ", ".join(quote_word(changed[name]) for name in names)
    rows = f": at most its first {settings.data.max_rows} rows are used" if "data.max_rows" in names else ""
    path = settings.data.path.name
    return f"{sources[names[0]]} sets {listed} also for {path}{rows}; the recipe default sets none of these"


def is_recipe(source: str) -> bool:
    """Whether a setting's source is a recipe."""
    return source not in ("", "arguments", "command line")


def describe_prompt(settings: Settings, examples: Sequence[Example]) -> str:
    """The prompt of most examples, and where it comes from: the settings or the data."""
    prompts = Counter[str]()
    for example, count in group_by_question(examples):
        for turn in example.turns[:-1]:
            if turn.role == "user":
                prompts[turn.text] += count
    own = settings.data.prompt
    source = settings.sources.get("data.prompt", "")
    origin = "the default" if own == Settings().data.prompt else "of data.prompt"
    origin = f"of the recipe {source}" if is_recipe(source) and source != "default" else origin
    if not prompts or set(prompts) == {own}:
        return f"{_shorten(own)} ({origin})" if own else "none"
    [(common, count)] = prompts.most_common(1)
    if len(prompts) == 1:
        is_own = common == BOX_PROMPT and own == Settings().data.prompt
        return f"{_shorten(common)} ({'the default for boxes' if is_own else 'in the data'})" if common else "none"
    in_data = f"{len(prompts)} different ones, {count} of {prompts.total()}: {_shorten(common)}"
    return f"{in_data} (in the data{f'; {_shorten(own)} where it has none' if own in prompts else ''})"


def _shorten(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _MAX_PROMPT else f"{prompt[: _MAX_PROMPT - 1]}…")
