"""The report of a run, from its log alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lorgnette.io.atomic import write_json
from lorgnette.report.manifest import build_manifest
from lorgnette.report.run_log import RunLog
from lorgnette.training.run_report import write_run_report
from lorgnette.training.step_count import STOPPED_BY_CALLBACK
from lorgnette.types import PredictionRow


def test_the_report_shows_steps_scores_and_trackers(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    run = prepare_run(f"run={tmp_path / 'first try'}", "predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        for step, loss in ((1, 2.5), (10, 1.25)):
            log.write({"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0})
        log.write({"kind": "stage", "name": "steps", "seconds": 3.2})
    rows = [PredictionRow("a", (), "", ("a dog",), base="a cat", tuned="a dog")]
    tracker: Any = SimpleNamespace(address="http://here")
    write_run_report(run.settings, run.run_dir, run.data, rows, [tracker], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    for part in (
        "first try",
        "10 steps on 4 examples in 3 s; loss 2.5",
        "exact-match",
        "1.000",
        "http://here",
        "Learning rate",
    ):
        assert part in page


def test_the_page_and_the_last_lines_say_the_same_verdict(
    prepare_run: Callable[..., Any], terminal_output: Any
) -> None:
    run = prepare_run("predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        for step, loss in ((0, 2.5), (2, 1.25), (4, 1.5)):
            log.write({"kind": "eval", "step": step, "eval_loss": loss})
        log.write({"kind": "train", "step": 4, "loss": 1.25, "learning_rate": 1e-4, "grad_norm": 1.0})
    images = [encoded.example.images[0].path for encoded in run.data.held_out]
    rows = [PredictionRow("a", (path,), "", ("a dog",), base="no", tuned="a dog") for path in images * 5]
    rows = [replace(row, images=(*row.images, Path(str(i)))) for i, row in enumerate(rows)]
    write_run_report(run.settings, run.run_dir, run.data, rows, [], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    evidence = "After tuning, the answer matches the reference word for word in 10 of 10 held-out images (0 before)"
    assert ">It worked.</h2>" in page.replace('<span class="sign" aria-hidden="true">✓</span>', "")
    assert evidence in page
    assert "best: step 2" in page
    _, headline, last_lines = " ".join(terminal_output.getvalue().split()).rpartition("It worked.")
    assert headline
    assert last_lines.index(evidence) < last_lines.index("adapter ") < last_lines.index("report ")
    assert "without an adapter" in page


def test_early_stopping_is_a_doubt(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    for words in ([], ["train.early_stopping_patience=2"]):
        run = prepare_run("predict.metrics=exact-match", f"run={tmp_path / str(len(words))}", *words)
        run.run_dir.log.touch()
        rows = [PredictionRow(str(i), (Path(str(i)),), "", ("a dog",), base="no", tuned="a dog") for i in range(9)]
        write_run_report(run.settings, run.run_dir, run.data, rows, [], run.terminal)
        page = run.run_dir.report.read_text(encoding="utf-8")
        assert ("chosen on these same rows" in page) == bool(words)


def test_a_step_that_is_worse_than_the_base_is_not_called_best(prepare_run: Callable[..., Any]) -> None:
    run = prepare_run("predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        for step, loss in ((0, 2.5), (2, 5.0), (4, 4.0)):
            log.write({"kind": "eval", "step": step, "eval_loss": loss})
        log.write({"kind": "train", "step": 4, "loss": 1.25, "learning_rate": 1e-4, "grad_norm": 1.0})
    write_run_report(run.settings, run.run_dir, run.data, [], [], run.terminal)
    assert "best: step" not in run.run_dir.report.read_text(encoding="utf-8")


def test_a_run_that_a_callback_stopped_counts_the_steps_taken(prepare_run: Callable[..., Any]) -> None:
    run = prepare_run("train.max_steps=10", "predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        log.write({"kind": "train", "step": 1, "loss": 2.5, "learning_rate": 2e-6, "grad_norm": 1.0})
        log.write({"kind": "event", "step": 1, "text": f"step 1: {STOPPED_BY_CALLBACK} stop_early", "level": "info"})
    write_run_report(run.settings, run.run_dir, run.data, [], [], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    assert "Training took 1 step, stopped by the callback stop_early: too few to change much." in page
    assert "10 optimizer steps" not in page


def test_a_run_without_effect_says_so_and_why(prepare_run: Callable[..., Any], terminal_output: Any) -> None:
    run = prepare_run("train.warmup_steps=50", "predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        for step in (0, 2):
            log.write({"kind": "eval", "step": step, "eval_loss": 1.25})
        log.write({"kind": "train", "step": 2, "loss": 2.5, "learning_rate": 2e-6, "grad_norm": 1.0})
    rows = [PredictionRow("a", (), "", ("a dog",), base="a cat", tuned="a cat", tuned_is_cut=True, generation="greedy")]
    write_run_report(run.settings, run.run_dir, run.data, rows, [], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    assert "2 steps on 4 examples; eval loss 1.25\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}1.25." in page
    for part in ("The eval loss did not change: 1.25", "all 2 steps are in the warm-up (train.warmup_steps=50)",
                 "The answer is the same as before", "1 of 1 answers are cut at predict.max_new_tokens=2",
                 ">greedy</dd>"):  # fmt: skip
        assert part in page, part
        assert part in " ".join(terminal_output.getvalue().split()) or part.startswith(">"), part
    assert 'class="worse"' not in page


def test_labels_are_counted_before_and_after(prepare_run: Callable[..., Any], terminal_output: Any) -> None:
    run = prepare_run("predict.metrics=label")
    run.run_dir.log.touch()
    rows = [
        PredictionRow(str(i), (), "", (label,), base=f"I see a {label}", tuned="cat")
        for i, label in enumerate(("cat", "cat", "dog"))
    ]
    write_run_report(run.settings, run.run_dir, run.data, rows, [], run.terminal)
    said = [" ".join(line.split()) for line in terminal_output.getvalue().splitlines()]
    for line in ("accuracy 0.000 (0.000–0.561) → 0.667", "cat 2 – → 0.67 0.00 → 1.00 0.00 → 0.80", "dog 1 0 0",
                 "3 of 3 answers are no label, before: 'I see a cat' 2×, 'I see a dog' 1×"):  # fmt: skip
        assert any(text.startswith(line) for text in said), line
    assert '<h2 id="labels">' in run.run_dir.report.read_text(encoding="utf-8")


def test_held_out_images_that_were_trained_on_are_marked(prepare_run: Callable[..., Any], terminal_output: Any) -> None:
    """data.split=tail lets an image be in both parts."""
    run = prepare_run("data.split=tail", "predict.metrics=exact-match")
    run.run_dir.log.touch()
    images = [encoded.example.images[0].path for encoded in (run.data.examples[0], run.data.held_out[0])]
    content = build_manifest(
        seed=0, command=[], image_hashes=run.data.hash_images(), num_training_images=run.data.num_training_images
    )
    write_json(run.run_dir.manifest, content)
    rows = [PredictionRow(path.name, (path,), "p", ("r",), base="b", tuned="t") for path in images]
    write_run_report(run.settings, run.run_dir, run.data, rows, [], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    assert ['class="trained-on"' in card for card in page.split("<article")[1:]] == [True, False]
    assert "this run was trained on the images of 1 of 2 questions" in " ".join(terminal_output.getvalue().split())


def test_an_empty_log_leaves_out_the_curves_only(prepare_run: Callable[..., Any]) -> None:
    run = prepare_run()
    run.run_dir.log.touch()
    write_run_report(run.settings, run.run_dir, run.data, [], [], run.terminal)
    assert "4 trained on, 2 held out" in run.run_dir.report.read_text(encoding="utf-8")


def test_the_page_says_what_the_number_of_steps_means(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    """Too few of them, why the training ended, and on which examples the best one was chosen."""
    losses = ((0, 2.5), (1, 1.25), (2, 1.5))
    pages = {}
    for epochs in ("1", "auto"):
        run = prepare_run("predict.metrics=exact-match", f"run={tmp_path / epochs}", f"train.epochs={epochs}")
        with RunLog(run.run_dir.log) as log:
            for step, loss in losses if epochs == "1" else losses[:2]:
                log.write({"kind": "eval", "step": step, "eval_loss": loss})
            log.write({"kind": "train", "step": 1, "loss": 1.25, "learning_rate": 1e-4, "grad_norm": 1.0})
            log.write({"kind": "end", "step": 1, "reason": "limit", "text": "70 steps, the limit"})
        settings = run.settings.model_copy(update={"model": "demo"})
        rows = [PredictionRow("a", (), "", ("a dog",), base="a cat", tuned="a dog")]
        write_run_report(settings, run.run_dir, run.data, rows, [], run.terminal)
        pages[epochs] = run.run_dir.report.read_text(encoding="utf-8")
    few = "Only 2 optimizer steps: too few to change much; train.epochs=auto chooses enough."
    chosen = "The 2 held-out examples that are scored also chose the best step"
    for part, epochs in ((few, "1"), (chosen, "1"), ("Training took 70 steps, the limit.", "auto")):
        assert [name for name, page in pages.items() if part in page] == [epochs], part
    assert all("The built-in model (model=demo) knows drawn scenes only" in page for page in pages.values())
