"""`demo`: the whole road on pictures that are drawn here and a model that comes with the package."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import recipes
from lorgnette.commands.prepare import prepare
from lorgnette.commands.train import train
from lorgnette.demo.captions import caption
from lorgnette.demo.scenes import draw, random_scene
from lorgnette.errors import UsageError
from lorgnette.io.atomic import written_whole
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunFolder, next_free

SEED = 20140
HELD_OUT = 64


def demo(
    out: Path | str | None = None, *, pictures: int = 500, words: Sequence[str] = (), console: Console | None = None
) -> RunFolder:
    """Draw pictures with short captions, prepare CSV and JSON, tune the built-in model on them, and show what it says
    of the held-out ones before and after."""
    terminal = Terminal(console)
    recipes.settings("demo", words)  # a wrong one is found before anything is drawn
    folder = Path(out) if out else next_free(Path("runs"), "demo")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError("something stands here already", where=f"--out {folder}", remedy="name a new folder")
    _draw(folder, pictures, terminal)
    holdout = min(HELD_OUT, pictures // 4)
    prepared = prepare(folder / "captions.csv", folder, holdout=holdout, console=console)
    paths = [f"data.path={prepared.train}", f"data.test={prepared.test}", f"run={folder / 'demo'}"]
    chosen = recipes.settings("demo", [*paths, *words])
    return train(chosen, console=console)


def _draw(folder: Path, count: int, terminal: Terminal) -> None:
    """Make the pictures and captions.csv in `folder`."""
    rng = random.Random(SEED)
    drawn = {folder.resolve() / "pictures" / f"{i:04}.png": random_scene(rng) for i in range(1, count + 1)}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with terminal.bar("drawing", count) as advance:
        for path, scene in drawn.items():
            draw(scene).save(path)
            advance(1)
    with written_whole(folder / "captions.csv") as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"pictures/{path.name}", caption(scene)] for path, scene in drawn.items())
    terminal.say(f"drawn      {count} pictures, {folder / 'captions.csv'}")
