from models_page import PAGE, format_models_page


def test_the_models_page_has_the_list() -> None:
    """`make docs` renews it."""
    assert PAGE.read_text(encoding="utf-8") == format_models_page()
    assert "\nQwen3-VL-4B-Instruct " in format_models_page()
