"""The settings that a page names are those that were used, and can be typed."""

from pathlib import Path

import pytest

from lorgnette import config, recipes
from lorgnette.commands.arguments import build_settings
from lorgnette.commands.settings_in_words import (
    describe_prompt,
    describe_recipe_data,
    describe_settings,
    list_changed_settings,
)
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
    tutorials = recipes.load_settings("coco-caption")
    assert describe_prompt(tutorials, [build_row("COCO Yes:")]) == "'COCO Yes:' (of the recipe coco-caption)"
    assert describe_prompt(typed, [build_row("Read it.")] * 2) == "'Read it.' (in the data)"
    assert describe_prompt(typed, [build_row("")]) == "none"
    assert describe_prompt(default, [build_row(config.BOX_PROMPT)]).endswith("image.' (the default for boxes)")
    assert describe_prompt(typed, [build_row(config.BOX_PROMPT)]).endswith("image.' (in the data)")
    mixed = describe_prompt(typed, [build_row("Which color?"), build_row("Which color?"), build_row("What?")])
    assert mixed == "2 different ones, 2 of 3: 'Which color?' (in the data; 'What?' where it has none)"


def test_settings_in_words() -> None:
    settings = config.load_settings(None, ["model=demo", "image_size=56", "data.holdout=9"])
    assert dict(describe_settings(settings, [build_row("q")], "mine")) == {
        "model": "demo", "images": "56×56 pixels", "prompt": "'q' (in the data)", "recipe": "mine",
        "settings": "data.holdout=9",
    }  # fmt: skip


def test_what_a_recipe_brings_to_other_data_is_said() -> None:
    """A limit or a prompt that was meant for the recipe's own data is never applied to others in silence."""
    line = describe_recipe_data(recipes.load_settings("coco-caption", data="mine.csv"))
    assert line.startswith(
        "coco-caption sets data.max_rows=500, data.holdout=4, 'data.prompt=COCO Yes:' also for mine.csv"
    )
    assert "at most its first 500 rows are used" in line
    words = ["data=mine.csv", "data.max_rows=null", "data.holdout=9", "data.prompt=What?"]
    assert describe_recipe_data(recipes.load_settings("coco-caption", words)) == "", "the user chose them"
    assert describe_recipe_data(recipes.load_settings("coco-caption")) == "", "its own data"
    assert describe_recipe_data(recipes.load_settings("default", ["data=mine.csv"])) == ""
    assert describe_recipe_data(recipes.load_settings(None, ["data=mine.csv", "data.max_rows=5"])) == ""
    test = describe_recipe_data(recipes.load_settings("demo", ["data=mine.csv", "data.test=test.csv"]))
    assert "data.prompt" in test
    assert "data.holdout" not in test, "a test file replaces it"


@pytest.mark.parametrize("call", ["words", "arguments", "settings"])
def test_every_way_to_name_data_says_it(call: str, terminal, terminal_output) -> None:
    values = {"words": {"settings": recipes.load_settings("coco-caption", ["data=mine.csv"])},
              "arguments": {"data": "mine.csv", "recipe": "coco-caption"},
              "settings": {"data": "mine.csv", "settings": recipes.load_settings("coco-caption")}}[call]  # fmt: skip
    settings = build_settings(**values, terminal=terminal)
    assert settings == recipes.load_settings("coco-caption", data="mine.csv")
    assert terminal_output.getvalue().count("coco-caption sets data.max_rows=500") == 1
