"""Prints docs/settings.md from the settings."""

import sys

from lorgnette.config import SECTIONS, TOP_LEVEL, Settings


def format_settings_page() -> str:
    """The page as Markdown: one table for the run and one for each section."""
    lines = [
        "# Settings",
        "",
        "A recipe holds them as YAML. `key=value` words on the command line override it; `data=PATH` is short for",
        "`data.path=PATH`. `make docs` generates this page from `src/lorgnette/config.py`.",
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
