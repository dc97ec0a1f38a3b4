"""Renders the templates of this folder. Values are escaped; a missing value is an error."""

from pathlib import Path
from typing import Any

import jinja2


def render_template(name: str, **values: Any) -> str:
    """Fill the template `name` of this folder with values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
