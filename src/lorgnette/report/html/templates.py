"""A page's template with its values filled in: everything escaped, nothing that is missing passed over."""

from pathlib import Path
from typing import Any

import jinja2


def render_template(name: str, **values: Any) -> str:
    """The template `name` of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
