"""Answers from a file: matched by image path, and by file name if the images have moved."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.commands.saved_answers import SavedAnswers
from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.types import Example, Image, PredictionRow, Turn


def build_prompt(image: Path, text: str = "p") -> EvalPrompt:
    return EvalPrompt(Example(image.name, (Turn("user", (Image(image), text)),), Path("d.csv"), 1), ())


def build_answers(*answers: tuple[Path, str], prompt: str = "p") -> SavedAnswers:
    rows = [PredictionRow(image.name, (image,), prompt, (), tuned=text) for image, text in answers]
    return SavedAnswers.from_rows("a.jsonl", rows)


def lookup_texts(answers: SavedAnswers, prompts: list[EvalPrompt]) -> list[str]:
    return [answer.text for answer in answers.lookup(prompts)]


def create_file(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_a_prompt_may_occur_twice_but_not_with_two_answers() -> None:
    image = Path("/gone/a.png")
    assert lookup_texts(build_answers((image, "yes"), (image, "yes")), [build_prompt(image)]) == ["yes"]
    with pytest.raises(LorgnetteError, match=r"two answers to one question: a\.png \('p'\) · a\.jsonl"):
        build_answers((image, "yes"), (image, "no"))


def test_moved_images_are_matched_by_name(tmp_path: Path) -> None:
    prompts = [build_prompt(tmp_path / "here" / name) for name in ("a.png", "b.png")]
    moved = build_answers((Path("/gone/b.png"), "b"), (Path("/gone/a.png"), "a"))
    assert (lookup_texts(moved, prompts), moved.num_matched_by_name(prompts)) == (["a", "b"], 2)
    same = build_answers((tmp_path / "here" / "a.png", "a"))
    assert (lookup_texts(same, prompts[:1]), same.num_matched_by_name(prompts[:1])) == (["a"], 0)


def test_an_existing_image_is_not_matched_by_name(tmp_path: Path) -> None:
    first, second = create_file(tmp_path / "train" / "1.png"), create_file(tmp_path / "val" / "1.png")
    with pytest.raises(LorgnetteError, match="no answer to 1 of 1"):
        build_answers((first, "train's")).lookup([build_prompt(second)])
    first.unlink()
    assert lookup_texts(build_answers((first, "train's")), [build_prompt(second)]) == ["train's"]


def test_an_ambiguous_name_matches_nothing(tmp_path: Path) -> None:
    prompts = [build_prompt(tmp_path / "val" / "1.png")]
    with pytest.raises(LorgnetteError, match="no answer"):
        build_answers((Path("/gone/train/1.png"), "a"), (Path("/gone/val/1.png"), "b")).lookup(prompts)
    with pytest.raises(LorgnetteError, match="no answer to 2 of 2"):
        build_answers((Path("/gone/1.png"), "a")).lookup([*prompts, build_prompt(tmp_path / "train" / "1.png")])


def test_the_file_s_prompt_is_suggested() -> None:
    image = Path("/gone/a.png")
    with pytest.raises(LorgnetteError, match=r"no answer to 1 of 1(.|\n)*in this file: --prompt 'q'"):
        build_answers((image, "yes"), prompt="q").lookup([build_prompt(image)])


def test_prompts_without_images_are_matched_by_text() -> None:
    prompt = EvalPrompt(Example("x", (Turn("user", ("hello",)),), Path("d.csv"), 1), ())
    answers = SavedAnswers.from_rows("a.jsonl", [PredictionRow("x", (), "hello", (), tuned="hi")])
    assert lookup_texts(answers, [prompt]) == ["hi"]


def test_answers_of_two_models_are_not_mixed() -> None:
    rows = [PredictionRow("x", (), "a", (), base="1", tuned="2"), PredictionRow("y", (), "b", (), base="3")]
    with pytest.raises(LorgnetteError, match=r"1 of 2 answers are only the base model's.* · a\.jsonl · keep the rows"):
        SavedAnswers.from_rows("a.jsonl", rows)
    base, tuned = SavedAnswers.from_rows("a", rows, use_base=True), SavedAnswers.from_rows("a", rows[:1])
    assert (base.is_tuned, tuned.is_tuned, SavedAnswers.from_rows("a", rows[1:]).is_tuned) == (False, True, False)
    assert (list(base.by_path.values()), list(tuned.by_path.values())) == (
        [("1", False, ()), ("3", False, ())], [("2", False, ())],
    )  # fmt: skip


def test_saved_answers_know_how_they_were_generated_and_whether_they_are_cut() -> None:
    rows = [PredictionRow(text, (), text, (), tuned=text, tuned_is_cut=text == "b", generation=text) for text in "ab"]
    assert SavedAnswers.from_rows("a.jsonl", rows).generation == "a / b"
    assert SavedAnswers.from_rows("a.jsonl", [replace(rows[0], generation="")]).generation == "unknown"
    prompts = [EvalPrompt(Example(t, (Turn("user", (t,)),), Path("d.csv"), 1), ()) for t in "ab"]
    assert [p.is_complete for p in SavedAnswers.from_rows("a.jsonl", rows).lookup(prompts)] == [True, False]
