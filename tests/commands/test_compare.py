"""`compare`: the candidates, the output file, and the contents of the page."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import escape
from rich.console import Console

from lorgnette.commands import compare as compare_module
from lorgnette.commands.compare import compare
from lorgnette.commands.compare_candidates import Candidate
from lorgnette.commands.predict import read_examples
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.data import DEFAULT_PROMPT
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelCache, ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import read_predictions, write_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.types import Box, Example, Image, Turn
from lorgnette.verification.reference_sample import IMAGE_FILE, SAMPLE_FILE


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(make_settings: Callable[..., Settings], runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the runs `two` and `four` of these ranks, trained once."""
    monkeypatch.chdir(runs_folder)
    if not (runs_folder / "two").exists():
        for name, rank in (("two", 2), ("four", 4)):
            train(make_settings(f"run={runs_folder / name}", f"lora.rank={rank}", "train.eval_steps=1"))
    return runs_folder


def test_base_and_two_adapters_on_one_page(runs: Path, captions: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=200)
    with captions.open("a") as file:
        file.write("red.png,once more\n")
    page = compare("base", "two", "four/adapter", captions, max_new_tokens=4, console=console)
    html = page.path.read_text(encoding="utf-8")
    assert page.path == Path("compare.html")
    assert html.count('<article class="comparison-card') == 6
    assert "Reference 2" in html
    for text in ("lora.rank", "eval loss", ">two<", ">four<", "6, 6 with references", "all 3 give the same",
                 "<td>–</td><td>4 of 6 questions</td><td>4 of 6 questions</td>",
                 "<td>–</td><td>2 (the last)</td><td>2 (the last)</td>", "rank 4, alpha", "<dt>versions</dt>",
                 "image size 28×28 pixels; greedy; at most 4 tokens"):  # fmt: skip
        assert text.lower() in html.lower(), text
    assert html.count("trained on: two, four<") == 4
    assert "two was trained on the images of 4 of 6 questions" in " ".join(output.getvalue().split())
    assert "generated in different ways" not in output.getvalue()
    assert "cannot be compared" not in output.getvalue()  # the runs differ in the rank alone
    assert "train.epochs" not in html  # equal in both
    second = compare("two", captions, max_new_tokens=4, console=console)
    assert second.path == Path("compare-2.html")
    assert page.path.read_text(encoding="utf-8") == html
    compare("two", captions, out="compare-2.html", max_new_tokens=4, console=console)
    assert output.getvalue().count("compare-2.html (replaced)") == 1


def test_a_single_candidate_is_compared_with_its_base(runs: Path, captions: Path) -> None:
    single = compare_module._resolve_inputs(["two"], None, compare_module.Terminal(Console(file=io.StringIO())))
    assert [candidate.name for candidate in single] == ["base", "two"]
    both = compare_module._resolve_inputs(
        ["two/predictions.jsonl"], None, compare_module.Terminal(Console(file=io.StringIO()))
    )
    assert [candidate.name for candidate in both] == ["base", "two"]
    with pytest.raises(UsageError, match="nothing to compare with"):
        compare("base", captions)
    with pytest.raises(UsageError, match="no data to answer"):
        compare("two")


def test_the_base_model_shares_its_adapters_weights_with_equal_answers(
    runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorgnette.engine import peft_engine

    read: list[Path] = []
    real = peft_engine.load_base_model
    monkeypatch.setattr(
        peft_engine,
        "load_base_model",
        lambda checkpoint, *given: read.append(checkpoint.folder) or real(checkpoint, *given),
    )
    candidates = compare_module._resolve_inputs(
        ["base", "two", "four"], None, compare_module.Terminal(Console(file=io.StringIO()))
    )
    prompts = group_by_prompt(read_examples(captions, DEFAULT_PROMPT))
    model_cache, terminal = ModelCache("cpu"), compare_module.Terminal(Console(file=io.StringIO()))
    together = [side.answer(prompts, SamplingParams(max_new_tokens=6), terminal, model_cache) for side in candidates]
    assert len(read) == 2  # base and two share one, four has its own
    for candidate, answers in zip(candidates, together, strict=True):
        single = replace(candidate, weights_from=None)
        alone = single.answer(prompts, SamplingParams(max_new_tokens=6), terminal, ModelCache("cpu"))
        assert alone == answers
    assert len(read) == 5


def test_different_training_prompts_are_noted(runs: Path, captions: Path) -> None:
    """On the terminal and on the page, and only if they differ."""
    output = io.StringIO()
    console = Console(file=output, width=200)
    shutil.copytree("four/adapter", "other", dirs_exist_ok=True)
    metadata = AdapterMetadata.load(Path("other"))
    metadata.model_copy(update={"prompt": "Say <all>:"}).write(Path("other"))
    for name in (IMAGE_FILE, SAMPLE_FILE):  # they know the prompt
        Path("other", name).unlink()
    compare("base", "two", "four", captions, out="alike.html", max_new_tokens=2, console=console)
    assert "different prompts" not in output.getvalue() + Path("alike.html").read_text()
    compare("base", "two", "other", captions, out="unlike.html", max_new_tokens=2, console=console)
    note = f"trained with different prompts ('{DEFAULT_PROMPT}', 'Say <all>:'); all are asked '{DEFAULT_PROMPT}'"
    assert note in " ".join(output.getvalue().split())
    assert str(escape(note)) in Path("unlike.html").read_text()


def test_unlike_things_are_noted(runs: Path, captions: Path, make_settings: Callable[..., Settings]) -> None:
    """Answers of other sizes or of unknown origin, cut answers, eval losses of other examples."""
    output = io.StringIO()
    shutil.copytree("four", "moved", dirs_exist_ok=True)
    config = Path("moved/config.yaml")
    config.write_text(config.read_text().replace("holdout: 2", "holdout: 3"))
    rows = read_predictions(Path("two/predictions.jsonl"))
    write_predictions(Path("old.jsonl"), [replace(row, generation="", tuned_is_cut=False) for row in rows])
    data = Path("held.csv")
    data.write_text("image_path,caption\n" + "".join(f"{row.images[0]},{row.references[0]}\n" for row in rows))
    page = compare(
        "two", "moved", "old.jsonl", data, out="u.html", max_new_tokens=1, console=Console(file=output, width=500)
    )
    html = page.path.read_text(encoding="utf-8")
    for note in (
        "the answers are generated in different ways, so the scores may differ because of that (two: image size 28×28",
        "old.jsonl: unknown",
        "old.jsonl may have been trained on some of these questions: the run that trained it is not here",
        "the eval losses of the runs cannot be compared, because these differ: data.holdout",
        "two: 2 of 2 answers are cut at the token limit",
    ):
        assert note in output.getvalue(), note
        assert str(escape(note)) in html, note
    assert html.count("…</dd>") == 4


def test_runs_on_data_that_has_changed_have_unlike_losses(runs: Path) -> None:
    """With equal settings, the manifests' hashes of the examples tell."""
    candidates = compare_module._resolve_inputs(
        ["two", "four"], None, compare_module.Terminal(Console(file=io.StringIO()))
    )
    assert list(compare_module._compare_eval_losses(candidates)) == []
    shutil.copytree("four", "later", dirs_exist_ok=True)
    manifest = json.loads(Path("later/manifest.json").read_text())
    manifest["sha256"]["examples"] = "0"
    Path("later/manifest.json").write_text(json.dumps(manifest))
    changed = [candidates[0], replace(candidates[1], run=RunDir(Path("later")))]
    [note] = compare_module._compare_eval_losses(changed)
    assert note.endswith("cannot be compared, because these differ: the content of their data")
    Path("later/manifest.json").unlink()
    assert list(compare_module._compare_eval_losses(changed)) == []


def test_rows_without_an_answer_are_compared_without_scores(runs: Path, captions: Path) -> None:
    message = {"role": "user", "content": "<image>What?"}
    row = json.dumps({"messages": [message], "images": [str(captions.with_name("red.png"))]})
    Path("bare.jsonl").write_text(row + "\n")
    html = compare("two", "bare.jsonl", out="b.html", max_new_tokens=2).path.read_text(encoding="utf-8")
    assert "1 of 1 questions have no reference and are not scored" in html


def test_files_of_answers_need_no_model(runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    rows = read_predictions(Path("two/predictions.jsonl"))
    data = Path("held.csv")
    data.write_text("image_path,caption\n" + "".join(f"{row.images[0]},{row.references[0]}\n" for row in rows))
    write_predictions(Path("right.jsonl"), [replace(row, tuned=row.references[0]) for row in rows])
    page = compare("two/predictions.jsonl", "right.jsonl", data, out="c.html", metrics="exact-match,ROUGE-L")
    html = page.path.read_text(encoding="utf-8")
    assert "No difference that 2 images can show." in html
    assert "word for word in 2 of 2 images with right.jsonl, 0 with two." in html
    assert html.count("answers in a file") == 2


def test_without_references_only_style_is_compared(runs: Path, captions: Path) -> None:
    page = compare("two", captions.with_name("red.png"), out="bare.html", max_new_tokens=2)
    html = page.path.read_text(encoding="utf-8")
    assert 'id="scores"' not in html
    assert 'id="style"' in html
    assert "Cannot say which is better." in html
    assert "1 of 1 questions have no reference and are not scored" in html


def test_a_url_for_a_file_s_images_is_refused(runs: Path, captions: Path) -> None:
    with pytest.raises(UsageError, match=r"images_from is a URL.* · images_from https://x/y\.zip · download it"):
        compare("base", "two", captions, images_from="https://x/y.zip", out="never.html")
    assert not Path("never.html").exists()


def test_missing_answers_are_found_before_a_model_is_loaded(
    runs: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(LorgnetteError, match=r"no answer to \d of 6"):
        compare("four", "two/predictions.jsonl", captions, out="never.html")
    assert not Path("never.html").exists()


def test_the_page_does_not_overwrite_its_inputs(runs: Path, captions: Path) -> None:
    before = Path("two/predictions.jsonl").read_bytes()
    with pytest.raises(UsageError, match="would overwrite its own input"):
        compare("base", "two/predictions.jsonl", captions, out="two/predictions.jsonl")
    assert Path("two/predictions.jsonl").read_bytes() == before


def test_models_that_write_boxes_differently_are_noted(
    tiny_family: Callable[[str], Path], image_files: list[Path]
) -> None:
    """Their boxes are compared in pixels; other metrics would compare notations."""
    example = Example(
        "a", (Turn("user", (Image(image_files[0]),)), Turn("assistant", (Box((1, 2, 30, 40)),))), Path("a"), 1
    )
    specs = [ModelSpec.from_names(str(tiny_family(name)), None, Terminal()) for name in ("qwen2_vl", "qwen2_5_vl")]
    candidates, prompts = [Candidate(str(i), spec=spec) for i, spec in enumerate(specs)], group_by_prompt([example])
    note = "the models write boxes in different ways"
    assert note in " ".join(compare_module._collect_notes(candidates, prompts, ["greedy", "greedy"]))
    alike = [candidates[0], replace(candidates[0], name="1")]
    assert note not in " ".join(compare_module._collect_notes(alike, prompts, ["greedy", "greedy"]))
    bare = [replace(prompts[0], reference_boxes=())]
    assert note not in " ".join(compare_module._collect_notes(candidates, bare, ["greedy", "greedy"]))
