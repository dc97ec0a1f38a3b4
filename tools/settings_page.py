"""Prints docs/settings.md from the settings."""

import sys

from lorgnette.config import SECTIONS, TOP_LEVEL, Settings


def format_settings_page() -> str:
    """The page as Markdown: one table for the run and one for each section."""
    lines = [
        "# Settings",
        "",
        "A recipe holds them as YAML. On the command line `train.learning_rate=1e-4` and `--train.learning_rate 1e-4`",
        "override it; the end of a name is enough where it is clear: `--learning-rate 1e-4`. `data=FILE`, or the file",
        "alone, is short for `data.path=FILE`, and `rows` for `data.max_rows`. Words of other trainers work too:",
        "[Coming from another trainer](coming-from.md). `lorgnette settings WORD` searches this page. `make docs`",
        "generates it from `src/lorgnette/config.py`.",
    ]
    tables = [("The run", "", [(name, Settings.model_fields[name]) for name in TOP_LEVEL])]
    tables += [(name, f"{name}.", list(section.model_fields.items())) for name, section in SECTIONS.items()]
    for title, prefix, fields in tables:
        lines += ["", f"## {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        for name, field in fields:
            description = (field.description or "").replace("|", r"\|")
            lines.append(f"| `{prefix}{name}` | `{_format_default(field.default)}` | {description} |")
    return "\n".join(lines) + "\n"


def _format_default(default: object) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else "null" if default is None else str(default)


if __name__ == "__main__":
    sys.stdout.write(format_settings_page())
