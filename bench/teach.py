"""Teach a model as a person would, without a page: what is taken as it stands, and what a round takes.

    python bench/teach.py --out FILE [--answers 64] [--seeds 1,2,3] [--wishes caption,terse,alphabet] [--rate 2e-3]
    python bench/teach.py --job OUT --out FILE [--captions FILE] [--budget SECONDS]    # of bench/job.py, on a GPU

Curves: the built-in model, drawn scenes, and a person who wants one of three ways to describe them:

    caption    A small red car to the left of a big green tree.      as demo/captions.py writes
    terse      small red car, left of, big green tree                without articles and verbs
    alphabet   red car, green tree                                   by the letters of the two things, not by the image

The person takes a suggestion if it is what they want to the letter, and corrects it otherwise. Order of images, rules
of rounds and scores are those of `teach`; the person waits for a round that is due, so no suggestion is older than the
last round. Keys: Enter, and one for each edited character. The file has the suggestions taken in each eight answers,
the rounds, and at how many answers the page would first say "enough", "flat" and "does not learn this yet".

Rounds: JOB's model, of real shapes and random weights, learns its captions. The file has the seconds of a round at
8, 24 and 64 answers (twice: the second time no CUDA graph is captured), from an answer to the next suggestion without a
round and with one, of eight suggestions, and the memory. --captions: a file of other captions for the same images, a
line each: how far the loss of real ones falls depends on them and the model.
"""

import argparse
import csv
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from machine import DEVICE, HAS_GPU, describe_machine, name_device, time_seconds
from results_file import ResultsFile
from rich.console import Console

from lorgnette import recipes
from lorgnette.config import Settings
from lorgnette.demo.captions import format_thing, write_caption
from lorgnette.demo.scenes import Scene, draw_scene, sample_scene
from lorgnette.device import measure_peak_gib, measure_reserved_gib
from lorgnette.metrics.edit_distance import levenshtein
from lorgnette.report.console import Terminal
from lorgnette.teaching.events import Answered, Event, RoundBegun, RoundDone, Suggested
from lorgnette.teaching.image_order import ImageQueue
from lorgnette.teaching.learner import Answer, Learner, RoundResult
from lorgnette.teaching.run_state import RunState
from lorgnette.teaching.score import WINDOW, Score, compute_score, is_taken

Figures = dict[str, Any]
EVERY = 8
NUM_HELD_OUT = 64
ROUND_SIZES = (8, 24, 64)
NUM_JOB_IMAGES = 256


def write_terse(scene: Scene) -> str:
    """The caption without its articles and verbs."""
    text = write_caption(scene).removeprefix("A ").removesuffix(".")
    for full, short in (
        (" to the ", ", "),
        (" of a ", " of, "),
        (" above a ", ", above, "),
        (" below a ", ", below, "),
    ):
        text = text.replace(full, short)
    return text


def write_by_alphabet(scene: Scene) -> str:
    """The two things by their names, in the order of the letters."""
    things = sorted((scene.first, scene.second), key=lambda thing: thing.kind)
    return ", ".join(format_thing(thing).split(" ", 1)[1] for thing in things)


WISHES: dict[str, Callable[[Scene], str]] = {
    "caption": write_caption,
    "terse": write_terse,
    "alphabet": write_by_alphabet,
}


def draw_images(folder: Path, scenes: Sequence[Scene]) -> list[Path]:
    paths = [folder / f"{number:04}.png" for number in range(len(scenes))]
    for path, scene in zip(paths, scenes, strict=True):
        draw_scene(scene).save(path)
    return paths


def open_learner(settings: Settings, images: Sequence[Path]) -> Learner:
    learner = Learner(settings, images, Terminal(Console(file=io.StringIO())))
    if broken := learner.open(lambda done, total: None):
        raise SystemExit(f"{len(broken)} images cannot be read: {next(iter(broken.values()))}")
    return learner


class SimulatedPerson:
    """A person who wants these texts, and a learner that learns them. events: as a journal has them."""

    def __init__(self, learner: Learner, names: Sequence[str], texts: Sequence[str], seed: int) -> None:
        """names, texts: of the images that are asked about, the first of the learner's."""
        self.events: list[Event] = []
        self.state, self.scores = RunState(every=EVERY), list[Score]()
        self._learner, self._names, self._texts = learner, names, texts
        self._queue = ImageQueue(len(names), seed, (), use_hardest=False)
        self._queue.means = learner.feature_means[: len(names)]
        self._used: list[int] = []
        self._round = 0

    def answer(self, count: int) -> None:
        """Answer images, and train whenever a round is due. count: of the images."""
        for _ in range(count):
            if self.state.is_round_due:
                self._train()
            self._answer_next()
            self.scores.append(compute_score(self.events))

    def _answer_next(self) -> None:
        item = self._queue.peek(self._used)
        assert item is not None, "there are fewer images than answers"
        if item.text is None:
            missing = self._queue.fill(self._used)
            for image, made in zip(missing, self._learner.suggest(missing, tuned=self._round > 0), strict=True):
                self._queue.receive(image, made.text, made.surety, self._round)
            item = self._queue.peek(self._used)
        assert item is not None
        assert item.text is not None
        id_, name, text = f"s{len(self._used)}", self._names[item.image], self._texts[item.image]
        common = {"id": id_, "image": name, "sha": "", "round": self._round, "pick": item.pick}
        self._write(Suggested(t=0.0, **common, text=item.text, surety=item.surety))
        keys = 1 + (0 if is_taken(item.text, text) else levenshtein(item.text, text))
        self._write(Answered(t=0.0, id=id_, text=text, seconds=0.0, keys=keys, counts=True))
        self._used.append(item.image)

    def _train(self) -> None:
        answers = [Answer(image, self._texts[image]) for image in self._used]
        self._round += 1
        self._write(RoundBegun(t=0.0, round=self._round, answers=len(answers), digest=""))
        result = self._learner.train(answers, on_step=lambda *_: None, should_stop=lambda: False)
        self._write(RoundDone(t=0.0, round=self._round, answers=len(answers), **vars(result)))
        self._queue.discard_texts()

    def _write(self, event: Event) -> None:
        self.events.append(event)
        self.state.apply(event)


def teach(
    wish: str, seed: int, num_answers: int, words: Sequence[str] = (), num_held_out: int = NUM_HELD_OUT
) -> Figures:
    """One person's session. words: settings beside those of `teach demo`."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng) for _ in range(num_answers + 2 * EVERY + num_held_out)]
    texts, num_asked = [WISHES[wish](scene) for scene in scenes], num_answers + 2 * EVERY
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        paths = draw_images(Path(name), scenes)
        settings = recipes.load_settings("teach-demo", ["device=cpu", "predict.max_new_tokens=32", *words])
        learner = open_learner(settings, paths)
        person = SimulatedPerson(learner, [path.name for path in paths[:num_asked]], texts, seed)
        person.answer(num_answers)
        held_out = range(num_asked, len(scenes))
        made = learner.suggest(held_out, tuned=True) if num_held_out else []
        learner.close()
    score = person.scores[-1]
    right = [is_taken(suggestion.text, texts[image]) for suggestion, image in zip(made, held_out, strict=True)]
    return {
        "wish": wish, "seed": seed, "answers": num_answers, **summarize(score),
        "held_out": [sum(right), len(right)],
        "enough_at": find_first(person.scores, lambda score: score.is_enough),
        "flat_at": find_first(person.scores, lambda score: score.flat is not None),
        "unlearned_at": find_first(person.scores, lambda score: score.unlearned),
        "unlearned_until": max((n for n, score in enumerate(person.scores, 1) if score.unlearned), default=None),
        "rounds": [describe_round(done) for done in score.rounds],
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def summarize(score: Score) -> Figures:
    """Taken of the first 8 answers, of 9 to 40, of all after 8, and in each eight; what the last answers still cost."""
    taken, recent = score.taken, score.recent
    assert recent is not None
    return {
        "taken_1_8": sum(taken[:8]), "taken_9_40": sum(taken[8:40]), "taken_from_9": sum(taken[8:]),
        "taken_by_eights": [sum(taken[i : i + 8]) for i in range(0, len(taken), 8)],
        "edit_by_eights": [round(sum(score.edits[i : i + 8]) / len(score.edits[i : i + 8]), 3)
                           for i in range(0, len(taken), 8)],
        f"last_{WINDOW}": {"edit": round(recent.edit, 3), "words_changed": round(recent.words_changed, 3),
                           "keys_saved": round(recent.keys_saved, 3)},
    }  # fmt: skip


def describe_round(done: RoundDone) -> Figures:
    return {
        "answers": done.answers, "steps": done.steps, "loss": round(done.loss, 3), "reason": done.end_reason,
        "seconds": round(done.seconds, 2),
    }  # fmt: skip


def find_first(scores: Sequence[Score], is_met: Callable[[Score], bool]) -> int | None:
    """The number of answers at which it is first met."""
    return next((number for number, score in enumerate(scores, 1) if is_met(score)), None)


def print_table(runs: Sequence[Figures]) -> None:
    print("| wish | seed | taken by eights | of 9 to 40 | held out | steps of rounds | says |")
    print("|---|---:|---|---:|---:|---|---|")
    for run in runs:
        says = [f"{name} at {run[f'{name}_at']}" for name in ("enough", "flat", "unlearned") if run[f"{name}_at"]]
        eights, steps = (" ".join(map(str, values)) for values in
                         (run["taken_by_eights"], [f"{r['steps']} {r['reason']}" for r in run["rounds"]]))  # fmt: skip
        right, count = run["held_out"]
        print(f"| {run['wish']} | {run['seed']} | {eights} | {run['taken_9_40']} | {right} of {count} | {steps} | "
              f"{', '.join(says) or '–'} |")  # fmt: skip


def read_job(job: Path, captions: Path | None) -> tuple[list[Path], list[str]]:
    """The job's images and captions. captions: a file with other ones, repeated."""
    with (job / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [(job / row["image_path"], row["caption"]) for row in csv.DictReader(file)]
    images, texts = zip(*rows, strict=True)
    if captions is not None:
        lines = captions.read_text(encoding="utf-8").splitlines()
        texts = tuple(lines[i % len(lines)] for i in range(len(images)))
    return list(images), list(texts)


class RoundTimer:
    """Times the parts of a session on a job's images."""

    def __init__(self, job: Path, captions: Path | None, words: Sequence[str]) -> None:
        images, texts = read_job(job, captions)
        self.images = images[:NUM_JOB_IMAGES]
        self._answers = [Answer(i, text) for i, text in enumerate(texts[:NUM_JOB_IMAGES])]
        settings = recipes.load_settings("teach", [f"model={job / 'model'}", "predict.max_new_tokens=32", *words])
        self._next_image = 0
        self.open_s = time_seconds(lambda: self._open(settings))

    def _open(self, settings: Settings) -> None:
        self.learner = open_learner(settings, self.images)

    def suggest(self, count: int, *, tuned: bool = True) -> float:
        """The seconds that these suggestions take; each is for the next image."""
        first = self._next_image % (len(self.images) - count + 1)
        self._next_image = first + count
        return time_seconds(lambda: self.learner.suggest(range(first, first + count), tuned=tuned))

    def train(self, count: int) -> Figures:
        """Time a round, and the suggestions after it."""
        results: list[RoundResult] = []
        answers = self._answers[:count]

        def run() -> None:
            results.append(self.learner.train(answers, on_step=lambda *_: None, should_stop=lambda: False))

        seconds = time_seconds(run)
        [result], next_s = results, self.suggest(1)
        return {
            "answers": count, "steps": result.steps, "reason": result.end_reason, "loss": result.loss,
            "seconds": seconds, "ms_per_step": 1000 * seconds / result.steps,
            "answer_to_suggestion_s": seconds + next_s, "suggestion_s": next_s,
            "eight_suggestions_s": self.suggest(EVERY), "untuned_suggestion_s": self.suggest(1, tuned=False),
            "peak_gib": measure_peak_gib(DEVICE), "reserved_gib": measure_reserved_gib(DEVICE),
        }  # fmt: skip


def measure_rounds(job: Path, captions: Path | None, words: Sequence[str], results: ResultsFile) -> None:
    """Write the figures of JOB after each measurement."""
    timer = RoundTimer(job, captions, words)
    figures: Figures = {
        "images": len(timer.images), "open_s": timer.open_s,
        "first_suggestion_s": timer.suggest(1, tuned=False),
        "suggestion_s": [timer.suggest(1, tuned=False) for _ in range(3)],
        "eight_suggestions_s": [timer.suggest(EVERY, tuned=False) for _ in range(3)],
    }  # fmt: skip
    results.update(job=figures)
    rounds: list[Figures] = []
    for count, number in product(ROUND_SIZES, range(2)):
        if count <= len(timer.images) and results.fits(10, f"{count} answers, round {number}"):
            rounds.append(timer.train(count))
            results.update(rounds=rounds)
            print(rounds[-1], flush=True)
    with tempfile.TemporaryDirectory() as name:
        figures["save_s"] = time_seconds(lambda: timer.learner.save(Path(name) / "adapter"))
    results.update(job=figures)
    timer.learner.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--job", type=Path, help="measure rounds of this job's model instead")
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--wishes", default=",".join(WISHES))
    parser.add_argument("--rate", help="the learning rate, if not the recipe's")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, sys.argv, name_device() if arguments.job else "CPU", arguments.budget)
    words = [f"train.learning_rate={arguments.rate}"] if arguments.rate else []
    if arguments.job:
        results.update(machine=describe_machine())
        measure_rounds(arguments.job, arguments.captions, words if HAS_GPU else [*words, "device=cpu"], results)
    else:
        runs: list[Figures] = []
        for seed in map(int, arguments.seeds.split(",")):
            for wish in arguments.wishes.split(","):
                if results.fits(60, f"{wish}, seed {seed}"):
                    runs.append(teach(wish, seed, arguments.answers, words))
                    print(runs[-1], flush=True)
                    results.update(runs=runs)
        print_table(runs)
