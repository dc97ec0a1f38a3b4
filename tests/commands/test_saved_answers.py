"""Answers out of a file: found where their pictures lie, and by name where those have moved; never another's."""

from pathlib import Path

import pytest

from lorgnette.commands.saved_answers import SavedAnswers
from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example, Image, Turn


def question(picture: Path, prompt: str = "p") -> EvalPrompt:
    return EvalPrompt(Example(picture.name, (Turn("user", (Image(picture), prompt)),), Path("d.csv"), 1), ())


def said(*given: tuple[Path, str], prompt: str = "p") -> SavedAnswers:
    rows = [(PredictionRow(place.name, (place,), prompt, ()), text) for place, text in given]
    return SavedAnswers.from_rows("a.jsonl", rows)


def there(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_a_row_may_stand_twice_but_not_with_two_answers() -> None:
    one = Path("/gone/a.png")
    assert said((one, "yes"), (one, "yes")).lookup([question(one)]) == ["yes"]
    with pytest.raises(LorgnetteError, match=r"two answers to one question: a\.png \('p'\) · a\.jsonl"):
        said((one, "yes"), (one, "no"))


def test_pictures_that_moved_are_known_by_their_names(tmp_path: Path) -> None:
    asked = [question(tmp_path / "here" / name) for name in ("a.png", "b.png")]
    file = said((Path("/gone/b.png"), "b"), (Path("/gone/a.png"), "a"))
    assert (file.lookup(asked), file.num_matched_by_name(asked)) == (["a", "b"], 2)
    at_home = said((tmp_path / "here" / "a.png", "a"))
    assert (at_home.lookup(asked[:1]), at_home.num_matched_by_name(asked[:1])) == (["a"], 0)


def test_a_picture_of_the_same_name_is_another_while_the_first_is_there(tmp_path: Path) -> None:
    first, second = there(tmp_path / "train" / "1.png"), there(tmp_path / "val" / "1.png")
    with pytest.raises(LorgnetteError, match="no answer to 1 of 1"):
        said((first, "train's")).lookup([question(second)])
    first.unlink()
    assert said((first, "train's")).lookup([question(second)]) == ["train's"]


def test_a_name_that_two_share_names_neither(tmp_path: Path) -> None:
    asked = [question(tmp_path / "val" / "1.png")]
    with pytest.raises(LorgnetteError, match="no answer"):
        said((Path("/gone/train/1.png"), "a"), (Path("/gone/val/1.png"), "b")).lookup(asked)
    with pytest.raises(LorgnetteError, match="no answer to 2 of 2"):
        said((Path("/gone/1.png"), "a")).lookup([*asked, question(tmp_path / "train" / "1.png")])


def test_another_prompt_is_named() -> None:
    one = Path("/gone/a.png")
    with pytest.raises(LorgnetteError, match=r"no answer to 1 of 1(.|\n)*here the prompt was 'q': --prompt"):
        said((one, "yes"), prompt="q").lookup([question(one)])


def test_texts_without_pictures_are_found_by_prompt_alone() -> None:
    bare = EvalPrompt(Example("x", (Turn("user", ("hello",)),), Path("d.csv"), 1), ())
    file = SavedAnswers.from_rows("a.jsonl", [(PredictionRow("x", (), "hello", ()), "hi")])
    assert file.lookup([bare]) == ["hi"]
