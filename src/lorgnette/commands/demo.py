"""`demo`: the whole road on pictures that are drawn here and a model that comes with the package."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import recipes
from lorgnette.commands.prepare import prepare
from lorgnette.commands.train import train
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.errors import UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir, find_free_path

SEED = 20140
NUM_HELD_OUT = 64


def demo(
    out: Path | str | None = None, *, num_images: int = 500, words: Sequence[str] = (), console: Console | None = None
) -> RunDir:
    """Draw pictures with short captions, prepare CSV and JSON, tune the built-in model on them, and show what it says
    of the held-out ones before and after."""
    terminal = Terminal(console)
    recipes.load_settings("demo", words)  # a wrong one is found before anything is drawn
    folder = Path(out) if out else find_free_path(Path("runs"), "demo")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError("something stands here already", where=f"--out {folder}", hint="name a new folder")
    _draw_dataset(folder, num_images, terminal)
    holdout = min(NUM_HELD_OUT, num_images // 4)
    prepared = prepare(folder / "captions.csv", folder, holdout=holdout, console=console)
    paths = [f"data.path={prepared.train_path}", f"data.test={prepared.test_path}", f"run={folder / 'demo'}"]
    chosen = recipes.load_settings("demo", [*paths, *words])
    return train(chosen, console=console)


def _draw_dataset(folder: Path, num_images: int, terminal: Terminal) -> None:
    """Make the pictures and captions.csv in `folder`."""
    rng = random.Random(SEED)
    drawn = {folder.resolve() / "pictures" / f"{i:04}.png": sample_scene(rng) for i in range(1, num_images + 1)}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with terminal.show_progress("drawing", num_images) as advance:
        for path, scene in drawn.items():
            draw_scene(scene).save(path)
            advance(1)
    with atomic_write(folder / "captions.csv") as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"pictures/{path.name}", write_caption(scene)] for path, scene in drawn.items())
    terminal.print(f"drawn      {num_images} pictures, {folder / 'captions.csv'}")
