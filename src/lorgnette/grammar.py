"""The grammar of the command line, one for all commands: which word is a recipe, data or a setting.

    lorgnette train [RECIPE] [DATA] [SETTING=VALUE]...

A word with `=` is a setting, and `--setting VALUE` is the same. A word that names a data file or folder is data, as
`data=FILE` is. Another word is a recipe. Where a command has an option of its own for a setting, that one is meant.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.examples import format_examples
from lorgnette.io.shell import quote_word

if TYPE_CHECKING:
    from lorgnette.config import Settings

WORDS = "words"
"""The argument of commands that take settings."""
NAMED_MODELS = "named_models"
"""The argument of commands that take models as NAME=PATH."""
_SETTING_OPTIONS = {
    "adapter": "--adapter",
    "data.caption_column": "--caption-column",
    "data.holdout": "--holdout",
    "data.image_column": "--image-column",
    "data.images_from": "--images-from",
    "data.max_rows": "--rows",
    "data.on_bad_row": "--on-bad-row",
    "data.path": "--data",
    "data.prompt": "--prompt",
    "data.split": "--split",
    "device": "--device",
    "image_size": "--image-size",
    "model": "--model",
    "predict.batch_size": "--batch-size",
    "predict.max_new_tokens": "--max-new-tokens",
    "predict.metrics": "--metrics",
    "seed": "--seed",
}
"""Setting → the option that commands without settings have for it."""
_ADAPTER_ARGUMENTS = ("adapter", "model_or_run", "models_and_data", "folder", NAMED_MODELS)
_DATA_ARGUMENTS = ("source", "models_and_data")
_RECIPE_SUFFIXES = (".yaml", ".yml")
_MAX_RECIPE_BYTES = 100_000
_ROW_KEYS = frozenset(
    {"image", "images", "caption", "text", "messages", "conversations", "query", "response", "annotations"}
)


# Words of commands that take settings.


@dataclass(frozen=True, slots=True)
class Request:
    """What the words of a command mean. settings: `key=value` words, the data among them; name: of a new run."""

    recipe: str | None
    data: str | None
    settings: list[str]

    @property
    def name(self) -> str:
        return Path(self.recipe).stem if self.recipe else _name_data(self.data) if self.data else "run"

    @property
    def draws_demo(self) -> bool:
        """Whether the demo's own images are meant, and are not there."""
        from lorgnette import recipes

        if self.recipe != "demo" or self.data is not None:
            return False
        path = recipes.load_settings("demo").data.path
        return path is not None and not path.exists()

    def require_data(self, settings: "Settings") -> Path:
        """The data of the settings. Raises UsageError if there is none."""
        if settings.data.path is None:
            raise UsageError("no data", where="data.path", hint="name a file or folder, such as captions.csv")
        return settings.data.path

    def load(self, on_remark: Callable[[str], None], command: str = "") -> "Settings":
        """The settings. command: one that cannot draw the demo's images."""
        from lorgnette import recipes

        settings = recipes.load_settings(self.recipe, self.settings, on_remark=on_remark)
        if command and self.draws_demo:
            hint = f"`lorgnette demo` draws them; then: lorgnette {command} demo runs/demo/captions.csv"
            raise UsageError("the demo's images are not drawn yet", where="demo", hint=hint)
        return settings


def parse_words(words: Sequence[str], recipe: str | None = None) -> Request:
    """Recipe, data and settings, in any order. Raises UsageError for a word that is none of them."""
    settings, sources, recipes = list[str](), list[str](), [] if recipe is None else [recipe]
    named_data: str | None = None
    for word in words:
        key, value = split_setting(word)
        if key is not None and _find_settings(key) == ["data.path"]:
            named_data = value
        elif key == "recipe":
            recipes.append(value)
            continue
        if key is None:
            (sources if _is_data(word) else recipes).append(word)
        else:
            settings.append(word)
    if len(recipes) > 1:
        raise UsageError("two recipes", where=" ".join(recipes), hint="name one; it may inherit the other")
    if sources and named_data is not None:
        raise UsageError("the data is named twice", where=f"{sources[0]} and data={named_data}", hint="name it once")
    if sources:
        named_data = ",".join(sources)
        settings.insert(0, f"data={named_data}")
    return Request(recipes[0] if recipes else None, named_data, settings)


@dataclass(frozen=True, slots=True)
class TeachWords:
    """What the words of `teach` name. images: "demo", or None for those of the run. request: without the images."""

    images: str | None
    run: Path | None
    request: Request


def parse_teach_words(words: Sequence[str], run: Path | None = None) -> TeachWords:
    """A run among the words is the one that goes on. Raises UsageError as `parse_words`."""
    from lorgnette.io.folder_kind import find_folder_kind

    runs = [word for word in words if _exists(word) and find_folder_kind(Path(word)) == "run"] if run is None else []
    request = parse_words([word for word in words if word not in runs[:1]])
    is_demo = request.data is None and request.recipe in ("demo", "teach-demo")
    recipe = "teach-demo" if is_demo else request.recipe or "teach"
    settings = [word for word in request.settings if _find_settings(split_setting(word)[0] or "") != ["data.path"]]
    images = "demo" if is_demo else request.data
    return TeachWords(images, Path(runs[0]) if runs else run, Request(recipe, None, settings))


def split_setting(word: str) -> tuple[str | None, str]:
    """(key, value) of `key=value`; (None, word) for a word that is no setting, such as a file."""
    match = re.match(r"([A-Za-z_][\w.-]*|)=", word)
    return (match[1], word[match.end() :]) if match and not _exists(word) else (None, word)


def _is_data(word: str) -> bool:
    """Whether a word is data, not a recipe. Raises UsageError if it is neither."""
    from lorgnette import recipes
    from lorgnette.hub.address import is_hub_address
    from lorgnette.io.folder_kind import find_folder_kind, format_resume_command, is_data_file, is_taught
    from lorgnette.io.paths import split_sources

    if is_hub_address(word) or word.startswith("coco:") or len(split_sources(Path(word))) > 1:
        return True
    if word in dict(recipes.list_titles()):
        return False
    path, quoted = Path(word), quote_word(word)
    if not path.exists():
        if is_data_file(path) or (len(path.parts) > 1 and path.suffix.lower() not in _RECIPE_SUFFIXES):
            return True  # whose reader says what is wrong
        raise _explain_missing(path)
    kind = find_folder_kind(path)
    if kind == "run":
        command, answers = format_resume_command(path), quote_word(path / "captions.csv")
        hint = f"continue it: {command}; or train its adapter on new data: adapter={quoted}"
        if is_taught(path):
            hint = f"its answers are data: {answers}; go on with it: {command}"
        raise UsageError("a run, not data", where=word, hint=hint)
    if kind in ("model", "adapter"):
        hint = f"write {kind}={quoted}" if kind == "model" else f"write adapter={quoted}"
        raise UsageError(f"a{'n' if kind == 'adapter' else ''} {kind}, not data", where=word, hint=hint)
    return path.is_dir() or not _is_recipe(path)


def _is_recipe(path: Path) -> bool:
    """Whether a file holds settings: YAML, or a JSON object most of whose keys are words for settings."""
    from lorgnette import config
    from lorgnette.io.parse import parse_config, read_small_file

    if path.suffix.lower() != ".json":
        return path.suffix.lower() in _RECIPE_SUFFIXES or path.suffix == ""
    try:
        tree = parse_config(read_small_file(path, _MAX_RECIPE_BYTES))
    except LorgnetteError:  # too large for a recipe, or broken: the data's reader says it
        return False
    keys = list(tree) if isinstance(tree, dict) else []
    known = [key for key in keys if key in config.SECTIONS or config.is_setting(key)]
    return 2 * len(known) > len(keys) and not _ROW_KEYS & set(keys)


def _explain_missing(path: Path) -> UsageError:
    """The error for a word that is neither a recipe nor a file; names the nearest of both."""
    from lorgnette import config, recipes
    from lorgnette.io.paths import suggest_path
    from lorgnette.models.released_models import find_hub_name

    if config.is_setting(str(path)):
        hint = f"write key=value, as in {quote_word(path)}=VALUE; `lorgnette settings {quote_word(path)}` explains it"
        return UsageError("a setting without a value", where=str(path), hint=hint)
    if find_hub_name(str(path)) is not None:
        return UsageError("a model, not data", where=str(path), hint=f"write model={quote_word(path)}")
    names = [name for name, _ in recipes.list_titles()]
    similar = difflib.get_close_matches(str(path), names, n=1)
    recipe = f"did you mean {similar[0]}?" if similar else ""
    file = suggest_path(path, "")
    is_file = path.suffix or len(path.parts) > 1
    hint = (
        file or recipe if is_file else recipe or file
    ) or "name data or a recipe: `lorgnette recipe list` lists them"
    message = "no such file or folder" if is_file else "no such recipe, file or folder"
    return UsageError(message, where=str(path), hint=hint)


def _name_data(data: str) -> str:
    """A run's name: `captions` for captions.csv, the folder's or the data set's own name."""
    source = data.split(",", maxsplit=1)[0].rstrip("/")
    if re.match(r"(hf|modelscope):", source):
        return source.split(":")[1].rpartition("/")[2]
    path = Path(source.removeprefix("coco:"))
    return (path.name if path.is_dir() else path.stem) or "run"


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


# Options and settings of all commands.


class Commands(TyperGroup):
    """The group of all commands: `help`, `version`, examples in their help, and options as in `rewrite`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, command in self.commands.items():
            command.epilog = format_examples(f"{self.name} {name}" if self.name else name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its arguments, rewritten."""
        if args[0] == "help":
            args = [*args[1:], "--help"]
        elif args[0] == "version":
            args = ["--version"]
        if args[0].startswith("-"):  # an option of the group, after all
            self.parse_args(ctx, args)
        name, command, rest = super().resolve_command(ctx, args)
        if command is None or isinstance(command, TyperGroup):
            return name, command, rest
        options = {
            option: not getattr(param, "is_flag", False)
            for param in command.params
            if param.param_type_name == "option"
            for option in (*param.opts, *param.secondary_opts)
        }
        arguments = [param.name or "" for param in command.params if param.param_type_name == "argument"]
        return name, command, rewrite(rest, options | {"--help": False, "-h": False}, arguments, name or "")


def rewrite(args: Sequence[str], options: Mapping[str, bool], arguments: Collection[str], command: str) -> list[str]:
    """Settings → the command's own options, and options that it does not have → settings, where it takes them.

    options: the command's options → whether they take a value. arguments: the names of its arguments.
    """
    result, first, last = list[str](), list[str](), list[str]()
    rest = list(args)
    if "=" in rest[1:-1]:
        place = rest.index("=", 1)
        before, after = rest[place - 1], rest[place + 1]
        hint = f"write {quote_word(f'{before}={after}')}"
        raise UsageError("blanks around =", where=f"{before} = {after}", hint=hint)
    while rest:
        arg = rest.pop(0)
        if arg == "--":
            result += [arg, *rest]
            break
        name, equals, text = arg.partition("=")
        option = _find_option(name, options)
        if option and (equals or not options[option] or not rest):
            result.append(option + equals + text)
            continue
        if option:
            result += [option, rest.pop(0)]
            continue
        key: str | None
        if re.match(r"--\w", arg) and not _is_misspelled(name, options):
            key = name.lstrip("-")
            value = text if equals else _take_value(rest)
            if key.startswith("no-") and not equals and value == "true":
                key, value = key.removeprefix("no-"), "false"
        else:
            key, value = split_setting(arg)
            if key and not value and rest and _is_value(rest[0]):  # a shell's completion ends with a blank
                value = rest.pop(0)
        if key is None:
            result += ["--adapter", arg] if "--adapter" in options and _is_adapter(arg) else [arg]
            continue
        target = _place_setting(key, value, options, arguments, command, is_option=arg.startswith("-"))
        (first if target.is_first else last if target.is_last else result).extend(target.words)
    return [*first, *result, *last]


@dataclass(frozen=True, slots=True)
class _Placed:
    """The words of a setting, and whether they come before or after all others."""

    words: list[str]
    is_first: bool = False
    is_last: bool = False


def _place_setting(
    key: str, value: str, options: Mapping[str, bool], arguments: Collection[str], command: str, *, is_option: bool
) -> _Placed:
    from lorgnette import config

    if (option := _find_option(f"--{key}", options)) and key not in config.list_settings():
        return _Placed([option, value] if options[option] else [option] * (value != "false"))
    if WORDS in arguments:
        return _Placed([f"{key}={value}"])
    for setting in _find_settings(key):
        if (option := _SETTING_OPTIONS.get(setting)) in options:
            return _Placed([str(option), value])
        if setting == "data.path" and any(name in arguments for name in _DATA_ARGUMENTS):
            return _Placed([value], is_last=True)
        if setting == "adapter" and any(name in arguments for name in _ADAPTER_ARGUMENTS):
            return _Placed([value], is_first=True)
    if NAMED_MODELS in arguments and not is_option and (_exists(value) or not _find_settings(key)):
        return _Placed([f"{key}={value}"])
    names = ", ".join(option for option in options if option.startswith("--") and option != "--help")
    raise UsageError(f"`lorgnette {command}` has no setting {key}", where=f"{key}={value}", hint=f"it has {names}")


def _find_settings(key: str) -> list[str]:
    """The settings that a key of any trainer may mean."""
    from lorgnette import config, synonyms

    synonym = synonyms.SYNONYMS.get(synonyms.normalize(key))
    if synonym is not None:
        return [synonym.setting] if synonym.kind == "accepted" else []
    return synonyms.find_settings(key, config.list_settings())


def _find_option(name: str, options: Collection[str]) -> str | None:
    """The command's option: `--max_new_tokens` is `--max-new-tokens`."""
    if not name.startswith("-"):
        return None
    return next((option for option in (name, name.replace("_", "-")) if option in options), None)


def _is_misspelled(name: str, options: Collection[str]) -> bool:
    """Whether an option of the command is probably meant; click says so."""
    from lorgnette import config

    return not config.is_setting(name) and bool(difflib.get_close_matches(name, options, n=1, cutoff=0.8))


def _is_adapter(word: str) -> bool:
    """Whether a word names a run or an adapter, which is no data."""
    from lorgnette.io.folder_kind import find_folder_kind

    return _exists(word) and find_folder_kind(Path(word)) in ("run", "adapter")


def _take_value(rest: list[str]) -> str:
    """Remove an option's value: the next word, or all of a list such as `q_proj v_proj`. It is true without one."""
    from lorgnette.synonyms import TARGET_MODULES

    if not rest or not _is_value(rest[0]):
        return "true"
    words = [rest.pop(0)]
    while words[0] in TARGET_MODULES and rest and rest[0] in TARGET_MODULES:
        words.append(rest.pop(0))
    return ",".join(words)


def _is_value(arg: str) -> bool:
    """Whether the word after an option is its value: not another option, and not a setting."""
    return bool(re.fullmatch(r"-\d.*", arg)) or not (arg.startswith("-") or split_setting(arg)[0])


# Completion of words in a shell.


def complete_recipes(incomplete: str) -> list[str]:
    """Recipes that begin with what is typed, the package's and files."""
    from lorgnette import recipes

    names = [name for name, _ in recipes.list_titles()] + [str(path) for path in Path().glob("*.y*ml")]
    return [name for name in names if name.startswith(incomplete)]


def complete_words(incomplete: str) -> list[str]:
    """Recipes, files and settings that begin with what is typed."""
    from lorgnette import config, recipes, synonyms

    folder, slash, _ = incomplete.rpartition("/")
    names = [name for name, _ in recipes.list_titles()] + [f"{name}=" for name in config.list_settings()]
    if incomplete:
        names += [f"{word}=" for word, synonym in synonyms.SYNONYMS.items() if synonym.kind == "accepted"]
    place = Path(f"{folder}{slash}" or ".")
    files = sorted(place.iterdir()) if place.is_dir() else []
    paths = [f"{folder}{slash}{file.name}{'/' if file.is_dir() else ''}" for file in files if file.name[0] != "."]
    return [name for name in (*paths, *names) if name.startswith(incomplete)]
