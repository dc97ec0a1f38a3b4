"""The settings that a page names are those that were used, and can be typed."""

from pathlib import Path

import pytest

from lorgnette import config
from lorgnette.commands.settings_in_words import describe_prompt, describe_settings, list_changed_settings
from lorgnette.types import Example, Image, Turn


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model=demo", "data=a.csv", "image_size=56", "train.learning_rate=1e-5"],
        ["image_size=null", "image_tokens=[4,100]", "lora.parts=[vision]", "predict.metrics=[caption,exact-match]"],
        ["data.prompt=a, 'b'", "data.test=my file.csv", "data.trim=false"],
        ["data.prompt=", "data.on_bad_row=skip"],
    ],
)
def test_changed_settings_are_typed_as_they_are_read(words: list[str]) -> None:
    settings = config.load_settings(None, words)
    changed = list_changed_settings(settings)
    assert config.load_settings(None, changed) == settings
    assert len(changed) == len(words)
    assert "data.path=a.csv" not in list_changed_settings(settings, without=("data.path",))


def build_row(prompt: str) -> Example:
    return Example("x", (Turn("user", (Image(Path("a.jpg")), prompt)), Turn("assistant", ("b",))), Path("a.csv"), 2)


def test_prompt_and_where_it_comes_from() -> None:
    default = config.Settings()
    own = default.data.prompt
    typed = config.load_settings(None, ["data.prompt=What?"])
    assert describe_prompt(default, [build_row(own)]) == f"{own!r} (the default)"
    assert describe_prompt(typed, [build_row("What?")]) == "'What?' (of data.prompt)"
    assert describe_prompt(typed, [build_row("Read it.")] * 2) == "'Read it.' (in the data)"
    assert describe_prompt(typed, [build_row("")]) == "none"
    mixed = describe_prompt(typed, [build_row("Which color?"), build_row("Which color?"), build_row("What?")])
    assert mixed == "2 different ones, 2 of 3: 'Which color?' (in the data; 'What?' where it has none)"


def test_settings_in_words() -> None:
    settings = config.load_settings(None, ["model=demo", "image_size=56", "data.holdout=9"])
    assert dict(describe_settings(settings, [build_row("q")], "mine")) == {
        "model": "demo", "images": "56×56 pixels", "prompt": "'q' (in the data)", "recipe": "mine",
        "settings": "data.holdout=9",
    }  # fmt: skip
