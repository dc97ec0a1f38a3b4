"""Fills the templates of this folder and of other packages. Values are escaped; a missing value is an error."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.bccache import Bucket
from markupsafe import Markup, escape

from lorgnette.io.atomic import write_text
from lorgnette.report.html.charts import tabulate_charts
from lorgnette.report.manifest import hide_home


class _CompiledTemplates(jinja2.BytecodeCache):
    """The code of the templates that this process has compiled, which takes longer than to fill them."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, str], Any] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._codes.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _CompiledTemplates()
_REFERENCES = re.compile(r'{%-? *(?:extends|from|include|import) "([^"]+)"')


def write_page(path: Path, template: str, *, folders: Iterable[Path] = (), **values: Any) -> None:
    """Fill the template with values, and replace the file `path`. See `render`."""
    write_text(path, render(template, folders=folders, **values))


def render(template: str, *, folders: Iterable[Path] = (), template_folders: Sequence[Path] = (), **values: Any) -> str:
    """The template filled with values. template_folders: where templates of other packages are.

    People share pages: paths lose these absolute `folders`, except in commands (the filter `as_typed`), and the home
    folder is written `~`.
    """
    environment = _build_environment(folders, template_folders)
    return environment.get_template(template).render(**values)


def compile_template(template: str) -> None:
    """Compile the template and those that it names, which takes longer than to fill them; `render` then finds them."""
    environment, names, done = _build_environment((), ()), [template], set[str]()
    while names:
        if (name := names.pop()) not in done:
            done.add(name)
            environment.get_template(name)
            names += _REFERENCES.findall(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _build_environment(folders: Iterable[Path], template_folders: Sequence[Path]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*template_folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_build_path_shortener(folders),
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_COMPILED,
    )
    environment.filters |= {"tabulate_charts": tabulate_charts, "as_typed": _keep_folders}
    return environment


def _build_path_shortener(folders: Iterable[Path]) -> Callable[[object], object]:
    """A function of every value that a template shows. A folder matches as a whole, where a path begins."""
    names = [re.escape(str(folder)) for folder in folders if folder.is_absolute() and folder != Path(folder.anchor)]
    pattern = re.compile(rf"(?<![\w.~/-])(?:{'|'.join(names)})[/\\]") if names else None

    def shorten(value: object) -> object:
        if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:"):
            return value
        return hide_home(pattern.sub("", value) if pattern else value)

    return shorten


def _keep_folders(command: str) -> Markup:
    """A command as it is typed, with `~` where a shell knows it: before a quote, and not in one."""
    home = str(Path.home())
    return escape(hide_home(command.replace(f"'{home}/", "~/'")))
