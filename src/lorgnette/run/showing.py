"""`demo`: the whole road on pictures that are drawn here and a model that comes with the package."""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import recipe
from lorgnette.demo.captions import Judgement, caption, judge
from lorgnette.demo.scenes import Scene, draw, random_scene
from lorgnette.errors import UsageError
from lorgnette.files import written_whole
from lorgnette.report.folder import RunFolder, next_free
from lorgnette.report.page import Score
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.terminal import Terminal
from lorgnette.run.preparing import prepare
from lorgnette.run.starting import train

SEED = 20140
HELD_OUT = 64


def demo(
    out: Path | str | None = None, *, pictures: int = 500, words: Sequence[str] = (), console: Console | None = None
) -> RunFolder:
    """Draw pictures with short captions, prepare CSV and JSON, tune the built-in model on them, and show what it says
    of the held-out ones before and after."""
    terminal = Terminal(console)
    recipe.settings("demo", words)  # a wrong one is found before anything is drawn
    folder = Path(out) if out else next_free(Path("runs"), "demo")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError("something stands here already", where=f"--out {folder}", remedy="name a new folder")
    scenes = _drawn(folder, pictures, terminal)
    holdout = min(HELD_OUT, pictures // 4)
    prepared = prepare(folder / "captions.csv", folder, holdout=holdout, console=console)
    paths = [f"data.path={prepared.train}", f"data.test={prepared.test}", f"run={folder / 'demo'}"]
    chosen = recipe.settings("demo", [*paths, *words])
    return train(chosen, console=console, score=lambda rows: _scores(rows, scenes))


def _drawn(folder: Path, count: int, terminal: Terminal) -> dict[Path, Scene]:
    """The pictures and captions.csv in `folder`; the scene of each picture."""
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
    return drawn


def _scores(rows: Sequence[PredictionRow], scenes: dict[Path, Scene]) -> list[Score]:
    """How many answers state what is to be seen, and how long they are, before and after. Of the drawn pictures, that
    is: words can give other data."""
    rows = [row for row in rows if row.pictures and row.pictures[0] in scenes]
    if not rows:
        return []
    answers = [[row.base or "" for row in rows], [row.tuned or "" for row in rows]]
    judged = [
        [judge(text, scenes[row.pictures[0]]) for row, text in zip(rows, texts, strict=True)] for texts in answers
    ]
    words = [sum(len(text.split()) for text in texts) / len(rows) for texts in answers]
    alike = [sum(text == row.reference for row, text in zip(rows, texts, strict=True)) for texts in answers]

    def counted(name: str, right: Callable[[Judgement], bool]) -> Score:
        before, after = (f"{sum(map(right, found))} of {len(rows)}" for found in judged)
        return name, before, after

    return [
        counted("both objects right", lambda found: found.objects),
        counted("both colours right", lambda found: found.colours),
        counted("relation right", lambda found: found.relation),
        counted("all three right", lambda found: found.right),
        ("word for word the reference", f"{alike[0]} of {len(rows)}", f"{alike[1]} of {len(rows)}"),
        ("words an answer", f"{words[0]:.0f}", f"{words[1]:.0f}"),
    ]
