"""docs/settings.md is the printed page."""

from pathlib import Path

from settings_page import format_settings_page


def test_settings_page_is_printed_from_the_settings() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == format_settings_page()
