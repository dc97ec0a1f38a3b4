"""`demo`: draw a data set and train the built-in model on it, through the public functions and without any download."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import lorgnette
from lorgnette.demo.captions import write_caption
from lorgnette.demo.facts_metric import register_facts_metric
from lorgnette.demo.scenes import Scene, draw_scene, sample_scene
from lorgnette.errors import UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir, find_free_path, is_free
from lorgnette.training.launch import NumGpus

__all__ = ["demo", "register_facts_metric"]
SEED = 20140
NUM_HELD_OUT = 64


def demo(
    out: Path | str | None = None,
    *,
    num_images: int = 500,
    overrides: Sequence[str] = (),
    gpus: NumGpus = None,
    console: Console | None = None,
) -> Run:
    """Draw images with short captions, train the built-in model on them, and compare its answers before and after.

    out: a new folder, default runs/demo. Raises UsageError if it is not empty. Returns the training's run.
    """
    terminal = Terminal(console)
    settings = lorgnette.recipes.load_settings("demo", overrides)  # report a wrong override before anything is drawn
    folder = Path(out) if out else find_free_path(Path("runs"), "demo")
    if not is_free(folder):
        run_dir = RunDir(folder / "demo")
        resume = f", or resume its run: {run_dir.resume_command}" if run_dir.config.is_file() else ""
        raise UsageError("this folder is not empty", where=f"--out {folder}", hint=f"name a new folder{resume}")
    _draw_dataset(folder, num_images, terminal)
    holdout = min(NUM_HELD_OUT, num_images // 4)
    prompt = settings.data.prompt
    prepared = lorgnette.prepare(folder / "captions.csv", folder, prompt=prompt, holdout=holdout, console=console)
    files = [f"data.path={prepared.train_path}", f"data.test={prepared.test_path}"]
    data_and_run = [*files, f"data.prompt={prompt}", f"run={folder / 'demo'}"]
    settings = lorgnette.recipes.load_settings("demo", [*data_and_run, *overrides])
    return lorgnette.train(settings, gpus=gpus, console=console)


def draw_images(folder: Path, num_images: int, terminal: Terminal) -> dict[str, Scene]:
    """Draw images into an existing folder. Returns file name → what is drawn; it depends on the number alone."""
    rng = random.Random(SEED)
    scenes = {f"{i:04}.png": sample_scene(rng) for i in range(1, num_images + 1)}
    with terminal.show_progress("drawing", num_images) as advance:
        for name, scene in scenes.items():
            with (folder / name).open("xb") as file:
                draw_scene(scene).save(file, "PNG")
            advance(1)
    return scenes


def _draw_dataset(folder: Path, num_images: int, terminal: Terminal) -> None:
    """Write the images and captions.csv."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scenes = draw_images(folder / "images", num_images, terminal)
    with atomic_write(folder / "captions.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"images/{name}", write_caption(scene)] for name, scene in scenes.items())
    terminal.print(f"drawn      {num_images} images, {folder / 'captions.csv'}")
