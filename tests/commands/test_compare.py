"""`compare`: who is compared with whom, what is replaced, and what the page is given."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape
from rich.console import Console

from lorgnette.commands import compare as compare_module
from lorgnette.commands.compare import compare
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.data import DEFAULT_PROMPT
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelCache
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.metrics.eval_prompts import group_by_prompt, read_examples
from lorgnette.report.predictions import read_predictions, write_predictions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(chosen: Callable[..., Settings], place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two runs `two` and `four` of those ranks, made once."""
    monkeypatch.chdir(place)
    if not (place / "two").exists():
        for name, rank in (("two", 2), ("four", 4)):
            train(chosen(f"run={place / name}", f"lora.rank={rank}", "train.eval_steps=1"))
    return place


def test_base_and_two_adapters_on_one_page(runs: Path, captions: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=200)
    with captions.open("a") as file:
        file.write("red.png,once more\n")
    page = compare("base", "two", "four/adapter", captions, max_new_tokens=4, console=console)
    html = page.read_text(encoding="utf-8")
    assert page == Path("compare.html")
    assert html.count('<article class="pair') == 6
    assert "Reference 2" in html
    for text in ("lora.rank", "eval loss", ">two<", ">four<", "with references", "6 questions, 3 answers each"):
        assert text.lower() in html.lower(), text
    assert "train.epochs" not in html  # the same in both
    again = compare("two", captions, max_new_tokens=4, console=console)
    assert again == Path("compare-2.html")
    assert page.read_text(encoding="utf-8") == html
    compare("two", captions, out="compare-2.html", max_new_tokens=4, console=console)
    assert said.getvalue().count("compare-2.html, in the place of the one that was there") == 1


def test_alone_it_is_compared_with_its_base(runs: Path, captions: Path) -> None:
    one = compare_module._resolve_inputs(["two"], None, compare_module.Terminal(Console(file=io.StringIO())))
    assert [side.name for side in one] == ["base", "two"]
    both = compare_module._resolve_inputs(
        ["two/predictions.jsonl"], None, compare_module.Terminal(Console(file=io.StringIO()))
    )
    assert [side.name for side in both] == ["base", "two"]
    with pytest.raises(UsageError, match="nothing to compare it with"):
        compare("base", captions)
    with pytest.raises(UsageError, match="nothing to ask"):
        compare("two")


def test_a_base_is_asked_in_its_adapters_weights_and_says_what_it_says_alone(
    runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorgnette.engine import hf_loading

    read: list[Path] = []
    real = hf_loading.load_base_model
    monkeypatch.setattr(
        hf_loading,
        "load_base_model",
        lambda checkpoint, *given: read.append(checkpoint.folder) or real(checkpoint, *given),
    )
    sides = compare_module._resolve_inputs(
        ["base", "two", "four"], None, compare_module.Terminal(Console(file=io.StringIO()))
    )
    asked = group_by_prompt(read_examples(captions, DEFAULT_PROMPT))
    weights, terminal = ModelCache("cpu"), compare_module.Terminal(Console(file=io.StringIO()))
    together = [side.answer(asked, SamplingParams(max_new_tokens=6), terminal, weights) for side in sides]
    assert len(read) == 2  # base and two are one, four another
    for side, said in zip(sides, together, strict=True):
        alone = replace(side, inside=None).answer(asked, SamplingParams(max_new_tokens=6), terminal, ModelCache("cpu"))
        assert alone == said
    assert len(read) == 5


def test_who_was_trained_with_another_prompt_is_told_of(runs: Path, captions: Path) -> None:
    """On the terminal and on the page; not where the prompts are one."""
    said = io.StringIO()
    console = Console(file=said, width=200)
    shutil.copytree("four/adapter", "other", dirs_exist_ok=True)
    kept = AdapterMetadata.load(Path("other"))
    kept.model_copy(update={"prompt": "Say <all>:"}).write(Path("other"))
    compare("base", "two", "four", captions, out="alike.html", max_new_tokens=2, console=console)
    assert "different prompts" not in said.getvalue() + Path("alike.html").read_text()
    compare("base", "two", "other", captions, out="unlike.html", max_new_tokens=2, console=console)
    told = f"trained with different prompts ('{DEFAULT_PROMPT}', 'Say <all>:'); all are asked '{DEFAULT_PROMPT}'"
    assert told in " ".join(said.getvalue().split())
    assert str(escape(told)) in Path("unlike.html").read_text()


def test_files_of_answers_need_no_weights(runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.engine.hf_loading.load_base_model", lambda *_: pytest.fail("weights were read"))
    rows = read_predictions(Path("two/predictions.jsonl"))
    data = Path("held.csv")
    data.write_text("image_path,caption\n" + "".join(f"{row.images[0]},{row.references[0]}\n" for row in rows))
    write_predictions(Path("right.jsonl"), [replace(row, tuned=row.references[0]) for row in rows])
    page = compare("two/predictions.jsonl", "right.jsonl", data, out="c.html", metrics="exact-match,ROUGE-L")
    assert "right.jsonl differs from two by +1.000" in page.read_text(encoding="utf-8").replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_pictures_without_references_are_compared_by_style(runs: Path, captions: Path) -> None:
    page = compare("two", captions.with_name("red.png"), out="bare.html", max_new_tokens=2)
    html = page.read_text(encoding="utf-8")
    assert 'id="scores"' not in html
    assert 'id="style"' in html
    assert "1 question, 2 answers each" in html
    assert "1 of 1 questions have no reference and are not scored" in html


def test_an_address_for_a_files_pictures_is_refused(runs: Path, captions: Path) -> None:
    with pytest.raises(UsageError, match=r"an address, .* · images_from https://x/y\.zip · download it"):
        compare("base", "two", captions, images_from="https://x/y.zip", out="never.html")
    assert not Path("never.html").exists()


def test_nothing_is_asked_where_an_answer_is_missing(
    runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.engine.hf_loading.load_base_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(LorgnetteError, match=r"no answer to \d of 6"):
        compare("four", "two/predictions.jsonl", captions, out="never.html")
    assert not Path("never.html").exists()


def test_answers_are_not_overwritten_by_the_page_made_of_them(runs: Path, captions: Path) -> None:
    before = Path("two/predictions.jsonl").read_bytes()
    with pytest.raises(UsageError, match="would overwrite what it is made from"):
        compare("base", "two/predictions.jsonl", captions, out="two/predictions.jsonl")
    assert Path("two/predictions.jsonl").read_bytes() == before
