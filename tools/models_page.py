"""Writes the output of `lorgnette model list` into docs/models.md."""

import re
from pathlib import Path

from lorgnette.commands.model import format_models, list_models

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_BLOCK = re.compile(r"(?<=```text\n).*?(?=\n```)", re.DOTALL)


def format_models_page() -> str:
    """The page, with the table as no machine has it: without marks of models on disk."""
    table = "\n".join(format_models(list_models(cached=False)))
    return _BLOCK.sub(lambda _: table, PAGE.read_text(encoding="utf-8"), count=1)


if __name__ == "__main__":
    PAGE.write_text(format_models_page(), encoding="utf-8")
