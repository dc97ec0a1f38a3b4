"""`auto` chooses the metrics of labels, JSON objects and texts, and says which."""

import pytest

from lorgnette.metrics.answer_kind import choose_metrics


@pytest.mark.parametrize(
    ("texts", "group", "reason"),
    [
        (["cat", "dog"] * 5, "label", "the answers are one of 2 labels (cat, dog)"),
        ([str(i) for i in range(8)] * 2, "label", "the answers are one of 8 labels (0, 1, 2, 3, 4, 5, …)"),
        (['{"a": 1}', '{"a": 2}'] * 5, "json", "the answers are JSON objects"),
        (['{"a": 1}', "{}", "{"], "caption", "the answers are texts; 1 of 3 are no JSON object"),
        (["a red car on a street", "two dogs"], "caption", "the answers are texts"),
        (["[1, 2]", "[3]"], "caption", "the answers are texts"),
        (["[1, 2, 3, 4]", "(1,2),(3,4)"], "caption", "the answers are texts"),
        (['{"box": [1, 2, 3, 4]}'] * 4, "json", "the answers are JSON objects"),
        (['{"bbox_2d": [1, 2, 3, 4]}'] * 4, "box", "the answers have boxes"),
        (['[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', "[]"], "box", "1 of 2 answers have boxes"),
        (["cat<|box_start|>(1,2),(3,4)<|box_end|>", "none", "none"], "caption", "the answers are texts"),
        (['{"point_2d": [1, 2]}'] * 4, "json", "the answers are JSON objects"),
        ([], "caption", "the answers are texts"),
    ],
)
def test_auto_follows_the_references(texts: list[str], group: str, reason: str) -> None:
    choice = choose_metrics(["auto"], [[text] for text in texts])
    assert (choice.names, choice.reason) == ((group,), reason)


def test_boxes_of_other_notations_are_known_from_the_data() -> None:
    references = [["[1, 2, 3, 4]"], ["a cat"], []]
    assert choose_metrics(["auto"], references, [True, False, True]).reason == "1 of 2 answers have boxes"


def test_prompts_without_references_do_not_count() -> None:
    assert choose_metrics(["auto"], [(), ("cat",), (), ("dog",), ("cat",), ("dog",)]).names == ("label",)


def test_named_metrics_stay() -> None:
    references = [["cat"], ["dog"]] * 5
    assert choose_metrics(["caption"], references).names == ("caption",)
    assert choose_metrics(["caption"], references).reason == ""
    assert choose_metrics(["ANLS", "auto"], references).names == ("ANLS", "label")


def test_the_choice_is_described() -> None:
    choice = choose_metrics(["auto"], [["cat"], ["dog"]] * 5)
    assert choice.describe("--metrics ") == (
        "accuracy, macro-F1, because the answers are one of 2 labels (cat, dog); --metrics NAMES takes others"
    )
