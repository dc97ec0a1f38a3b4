"""A template of this room and what it shows → one HTML file that opens anywhere and asks for nothing.

Style and script lie in it; a policy in its head forbids every request. Knows nothing about what is shown.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lorgnette.files import write_text
from lorgnette.report.thumbnail import UnreadableError, jpeg


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as a template gets it: an address with the bytes in it, or what stands in its place."""

    name: str
    source: str = ""
    problem: str = ""

    @classmethod
    def of(cls, path: Path, budget: int) -> "Shown":
        """Its thumbnail in at most so many bytes, as far as `thumbnail.jpeg` goes."""
        try:
            return cls(path.name, data_uri(jpeg(path, budget), "jpeg"))
        except UnreadableError as error:
            return cls(path.name, problem=str(error))


def data_uri(content: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"


def write_html(
    path: Path, template: str, *, title: str, lead: str = "", data: Sequence[object] = (), **shown: object
) -> None:
    """template: a file beside this one that extends frame.html.j2. data: for its charts. All is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(title=title, lead=lead, data=data, **shown))
