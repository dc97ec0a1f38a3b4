"""Fills the templates of this folder. Values are escaped; a missing value is an error."""

from pathlib import Path
from typing import Any

import jinja2

from lorgnette.io.atomic import write_text
from lorgnette.report.html.charts import tabulate_charts


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill the template with values, and replace the file `path`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tabulate_charts"] = tabulate_charts
    write_text(path, environment.get_template(template).render(**values))
