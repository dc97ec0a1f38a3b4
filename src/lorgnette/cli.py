"""The verbs on the command line, in the order of the work; no logic.

Heavy imports wait for the verb that needs them: `--help` answers at once.
"""

import io
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from lorgnette import __version__
from lorgnette.errors import LorgnetteError
from lorgnette.report.console import Terminal

if TYPE_CHECKING:
    from lorgnette.config import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune Qwen-VL models on your own pictures with LoRA, and see that it worked.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="Settings that belong together: list, show, copy.")
console = Console(stderr=True)
EXIT_INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it: 128 and the signal's number."""

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="such as train.learning_rate=1e-4")
]
Prompt = Annotated[str, typer.Option(help="what the user asks, where the data does not say")]
OnBadRow = Annotated[
    Literal["error", "skip"], typer.Option(help="stop over broken rows, or leave them out and name them")
]
Rows = Annotated[int | None, typer.Option(min=1, help="use the first so many rows only")]
PartName = Annotated[str | None, typer.Option(help="the part of a source that has several: a split, an entry")]
ImagesFrom = Annotated[
    str | None, typer.Option(help="a folder or zip with pictures by file name; of data on a hub also an address")
]
RUN_OR_MODEL_HELP = "an adapter or its run, `base`, a model, or a file of answers (.jsonl)"
BaseModel = Annotated[str | None, typer.Option(help="the base model, where it is not the adapter's own path")]
PromptOverride = Annotated[
    str | None, typer.Option(help="what to ask where the data does not say; default: the adapter's")
]
Metrics = Annotated[
    str | None,
    typer.Option(help="caption, latex, or names (docs/metrics.md), with commas; default: what the run was scored by"),
]
DataPath = Annotated[Path, typer.Argument(help="a data file or folder of any form (docs/data.md)")]


def _load_settings(recipe: str | None, words: list[str] | None) -> "tuple[str, Settings]":
    """A run's name and settings; the first word may be a setting where a recipe could stand."""
    from lorgnette import recipes as shelf

    given = list(words or [])
    if recipe is not None and "=" in recipe:
        given.insert(0, recipe)
        recipe = None
    return Path(recipe or "run").stem, shelf.load_settings(recipe, given)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lorgnette {__version__}")
        raise typer.Exit


@app.callback()
def _parse_global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="folder for the pictures and the run")] = None,
    images: Annotated[int, typer.Option(min=8, help="how many pictures to draw")] = 500,
    overrides: Overrides = None,
) -> None:
    """See it work: draw pictures, tune the built-in model on them, open the page."""
    from lorgnette.commands.demo import demo as run_demo

    run_demo(out, num_images=images, words=overrides or [], console=console)


@app.command()
def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="a data file or folder of any form, hf:NAME[:CONFIG][:SPLIT], modelscope:NAME[:SPLIT]"),
    ],
    out: Annotated[Path, typer.Option(help="folder the files are written to")] = Path("data"),
    prompt: Prompt = "COCO Yes:",
    holdout: Annotated[int, typer.Option(min=0, help="how many examples at the end are held out for the test")] = 4,
    split: Annotated[
        Literal["image", "tail"],
        typer.Option(help="picture: no picture in both parts; tail: literally the last rows"),
    ] = "image",
    rows: Rows = None,
    sample: Annotated[int | None, typer.Option(min=1, help="so many rows, drawn fairly")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the drawing")] = 0,
    to: Annotated[
        Literal["json", "csv", "llava", "llama-factory", "swift", "openai"], typer.Option(help="the form to write")
    ] = "json",
    name: PartName = None,
    images_from: ImagesFrom = None,
    image_column: Annotated[str | None, typer.Option(help="the column with pictures, where in doubt")] = None,
    caption_column: Annotated[str | None, typer.Option(help="the column with captions, where in doubt")] = None,
    on_bad_row: OnBadRow = "error",
) -> None:
    """A source → conversations JSON (or another form), split into a training and a test part."""
    import lorgnette

    lorgnette.prepare(
        source, out, prompt=prompt, holdout=holdout, split=split, max_rows=rows, sample=sample, seed=seed, to=to, name=name,
        images_from=images_from, image_column=image_column, caption_column=caption_column, on_bad_row=on_bad_row,
        console=console,
    )  # fmt: skip


@app.command()
def check(
    source: DataPath,
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="the recipe whose settings to check by")] = None,
    prompt: Annotated[str | None, typer.Option(help="what the user asks; default: data.prompt")] = None,
    rows: Rows = None,
    name: PartName = None,
    images_from: ImagesFrom = None,
    look_alikes: Annotated[bool, typer.Option("--looks/--no-looks", help="compare what pictures look like")] = True,
    out: Annotated[Path | None, typer.Option(help="also write a page")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Look a data set over before a GPU is spent on it; every row in question is named. Exit status 1 if training
    would refuse to start on it."""
    import lorgnette
    from lorgnette import recipes as shelf

    found = lorgnette.check(
        source, settings=shelf.load_settings(recipe, overrides or []), prompt=prompt, rows=rows, name=name,
        images_from=images_from, look_alikes=look_alikes, out=out, console=console,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.as_dict(), ensure_ascii=False, indent=2))
    if found.is_blocking:
        raise typer.Exit(1)


@app.command()
def preview(
    recipe: Annotated[str | None, typer.Argument(help="a recipe's name or file")] = None,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="how many, from the start")] = 4,
    out: Annotated[Path | None, typer.Option(help="write a page instead")] = None,
) -> None:
    """Rows as the model gets them: the resized picture, and every token coloured by whether it is trained."""
    import lorgnette

    _, chosen = _load_settings(recipe, overrides)
    lorgnette.preview(chosen, rows=rows, out=out, console=console)


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(help="a recipe's name or file")] = None,
    overrides: Overrides = None,
    memory: Annotated[float | None, typer.Option(min=1, help="the GPU's memory in GiB; default: usual sizes")] = None,
    gpu: Annotated[
        Literal["H200", "H100", "A100", "L40S", "RTX 4090", "L4"], typer.Option(help="what the time is predicted for")
    ] = "H200",
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """What `train` will compute, what memory and time it will take, and what makes it fit; no weights are read."""
    import lorgnette

    _, chosen = _load_settings(recipe, overrides)
    made = lorgnette.plan(chosen, memory=memory, gpu=gpu, console=console)
    if as_json:
        typer.echo(json.dumps(made.as_dict(), ensure_ascii=False, indent=2))


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="a recipe's name or file")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="go on with a run that was stopped")] = None,
) -> None:
    """Tune an adapter, answer the held-out pictures with and without it, write the page."""
    import lorgnette

    if resume is not None:
        if recipe or overrides:
            raise typer.BadParameter("a resumed run keeps its settings; give --resume RUN alone")
        lorgnette.resume(resume, console=console)
        return
    name, chosen = _load_settings(recipe, overrides)
    lorgnette.train(chosen, name=name, console=console)


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="a picture, a folder of pictures, or a data file")],
    adapter: Annotated[
        Path | None, typer.Option(help="a run, or its adapter folder; without: the untuned model")
    ] = None,
    model: Annotated[str | None, typer.Option(help="the base model, where it is not the adapter's own path")] = None,
    prompt: Annotated[str | None, typer.Option(help="what to ask; default: the adapter's prompt")] = None,
    both: Annotated[bool, typer.Option("--both", help="the untuned model's answer beside the tuned one's")] = False,
    images_from: ImagesFrom = None,
    out: Annotated[Path | None, typer.Option(help="also write the answers as JSONL")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="draw answers at this temperature")] = None,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
) -> None:
    """Answers to pictures, with or without an adapter."""
    import lorgnette

    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    lorgnette.predict(
        source, adapter=adapter, model=model, prompt=prompt, both=both, images_from=images_from, out=out,
        sampling=sampling, device=device, console=console,
    )  # fmt: skip


@app.command()
def evaluate(
    model_or_run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL_HELP", help=RUN_OR_MODEL_HELP)],
    source: DataPath,
    metrics: Metrics = None,
    out: Annotated[Path | None, typer.Option(help="folder for predictions.jsonl and scores.json")] = None,
    model: BaseModel = None,
    prompt: PromptOverride = None,
    rows: Rows = None,
    images_from: ImagesFrom = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
) -> None:
    """Answers held against the data's own, in the field's metrics with their intervals."""
    import lorgnette

    lorgnette.evaluate(
        model_or_run, source, metrics=metrics, out=out, model=model, prompt=prompt, rows=rows, images_from=images_from,
        max_new_tokens=max_new_tokens, batch_size=batch_size, device=device, console=console,
    )  # fmt: skip


@app.command()
def compare(
    models_and_data: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL_HELP [RUN_OR_MODEL_HELP]... DATA",
            help=f"{RUN_OR_MODEL_HELP}; then the data to ask about",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="the page; default: compare.html, or the next free name")] = None,
    metrics: Metrics = None,
    model: BaseModel = None,
    prompt: PromptOverride = None,
    rows: Rows = None,
    images_from: ImagesFrom = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
) -> None:
    """One page: scores, style and every picture with all answers. One alone is compared with its base."""
    import lorgnette

    lorgnette.compare(
        *models_and_data, out=out, metrics=metrics, model=model, prompt=prompt, rows=rows, images_from=images_from,
        max_new_tokens=max_new_tokens, batch_size=batch_size, device=device, console=console,
    )  # fmt: skip


@app.command()
def verify(
    adapter: Annotated[Path, typer.Argument(help="an adapter's folder, or its run's")],
    model: Annotated[str | None, typer.Option(help="the base model, where it is not the adapter's own path")] = None,
    data: Annotated[Path | None, typer.Option(help="pictures or a data file to ask about; without: drawn ones")] = None,
    rows: Annotated[int, typer.Option(min=1, help="of the data, the first so many")] = 4,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Does this adapter do anything, and anywhere else too? Asked in a process of plain transformers and peft. Exit
    status 1 where something is wrong with it."""
    import lorgnette

    verdict = lorgnette.verify(adapter, model=model, source=data, rows=rows, device=device, console=console)
    if as_json:
        typer.echo(json.dumps(verdict.as_dict(), ensure_ascii=False, indent=2))
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="an adapter's folder, or its run's")],
    out: Annotated[Path, typer.Argument(help="folder of the merged checkpoint")],
    model: Annotated[str | None, typer.Option(help="the base model, where it is not the adapter's own path")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="where the merged model is asked")] = "auto",
) -> None:
    """Base and adapter as one checkpoint in the hub's layout, compared with the two of them."""
    import lorgnette

    lorgnette.merge(adapter, out, model=model, device=device, console=console)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5092,
) -> None:
    """SwanLab's local dashboard of a run, until Ctrl-C."""
    import lorgnette

    lorgnette.watch(folder, port=port, console=console)


app.add_typer(recipes_app, name="recipe")


@recipes_app.command("list")
def recipe_list() -> None:
    """The recipes there are, one a line."""
    from lorgnette import recipes as shelf

    for name, first in shelf.list_titles():
        typer.echo(f"{name:24} {first}")


@recipes_app.command("show")
def recipe_show(name: str) -> None:
    """Print a recipe."""
    from lorgnette import recipes as shelf

    typer.echo(shelf.read_text(name), nl=False)


@recipes_app.command("copy")
def recipe_copy(name: str, to: Annotated[Path | None, typer.Argument()] = None) -> None:
    """Copy a recipe, to be changed."""
    from lorgnette import recipes as shelf

    typer.echo(shelf.copy_recipe(name, to))


def main() -> None:
    """The command `lorgnette`. A person's mistake is one line and exit status 1 or 2; ours keeps its traceback."""
    # What libraries tell each other's programmers is not for the person at this terminal.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # An answer or a file's name that the terminal has no letters for is written out, and costs no run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="lorgnette")
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer has made it of Ctrl-C, without a word
            Terminal(console).print("stopped")
        raise
    except LorgnetteError as error:
        Terminal(console).error(f"lorgnette: {error}")
        sys.exit(error.exit_status)
    except OSError as error:
        if error.errno is None:
            raise
        # A folder that may not be entered, a name too long, a disk that is full: the system's own words.
        where = error.filename or "a file"
        Terminal(console).error(
            f"lorgnette: {error.strerror} · {where} · see to its path, its permissions and the disk"
        )
        sys.exit(1)
    except KeyboardInterrupt:
        Terminal(console).print("stopped")
        sys.exit(EXIT_INTERRUPTED)
