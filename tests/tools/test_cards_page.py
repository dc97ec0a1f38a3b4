import re

import pytest
from cards_page import CARDS, IMAGE_TOKENS, PAGE, SEVERAL, describe

from lorgnette.models.registry import FAMILIES

SIZES = {size.names[0].removeprefix("Qwen/"): size for family in FAMILIES.values() for size in family.sizes}


@pytest.mark.parametrize(("table", "image_tokens"), list(enumerate(IMAGE_TOKENS)))
def test_the_cards_page_says_what_the_plan_says(table: int, image_tokens: int | None) -> None:
    """`make docs` writes the whole page; three models show that it was run."""
    block = PAGE.read_text(encoding="utf-8").split("```\n")[1 + 2 * table]
    for name in ("Qwen2-VL-2B-Instruct", "Qwen2-VL-7B-Instruct", "Qwen3-VL-8B-Instruct"):
        [row] = [line for line in block.splitlines() if line.startswith(name.removesuffix("-Instruct"))]
        cells = re.split(r"(?<=\S) {2,}|(?<=\*) ", row)[1:]
        assert cells == [describe(SIZES[name], gib, image_tokens) for gib in CARDS]


def test_the_table_of_several_gpus() -> None:
    block = PAGE.read_text(encoding="utf-8").split("```\n")[5]
    [row] = [line for line in block.splitlines() if line.startswith("Qwen3-VL-32B")]
    assert row.split()[1:] == [describe(SIZES["Qwen3-VL-32B-Instruct"], gib, None, count) for count, gib in SEVERAL]
