"""The commands on the command line, in the order in which they are used; no logic.

Heavy imports wait for the command that needs them, so that `--help` answers at once.
"""

import json
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from typer import Argument, Option

import lorgnette
from lorgnette.errors import LorgnetteError
from lorgnette.grammar import Commands, Request, complete_recipes, complete_words, parse_teach_words, parse_words
from lorgnette.io.standard_streams import guard_standard_streams
from lorgnette.planning.gpus import GPU_NAMES
from lorgnette.report.console import Terminal, is_silent_rank, print_result
from lorgnette.startup import check_system, let_threads_sleep, start_loading_torch
from lorgnette.training.interrupt import StopSignals

if TYPE_CHECKING:
    from lorgnette.config import Settings

HELP = "Fine-tune Qwen vision-language models on your own images with LoRA, and check the result."
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_NAMES, help=HELP,
)  # fmt: skip
recipes_app = typer.Typer(cls=Commands, no_args_is_help=True, help="List, show or copy recipes: files of settings.")
models_app = typer.Typer(cls=Commands, no_args_is_help=True, help="List the models that can be trained.")
cache_app = typer.Typer(cls=Commands, invoke_without_command=True)
console = Console(stderr=True)
EXIT_INTERRUPTED = 130
"""typer's exit status after a KeyboardInterrupt, and ours after Ctrl-C: as in shells, 128 plus the signal's number."""
SOURCE_HELP = "a data file or folder in any supported format, hf:NAME[:CONFIG][:SPLIT], modelscope:NAME[:SPLIT]"
IMAGES_FROM_HELP = "folder or zip with the images by file name; for a data set on a hub also a URL"
METRICS_HELP = (
    "auto, box, label, json, caption, latex, or metric names (docs/metrics.md), with commas; default: the run's metrics"
)
IMAGE_SIZE_HELP = "native, train, or height and width in pixels (280x420); default: as the adapter's run answers"
SETTINGS_HELP = "settings, as epochs=3 or --epochs 3; `lorgnette settings` lists them"
WORDS_HELP = f"a recipe's name or file, a data file or folder, and {SETTINGS_HELP}"
TEACH_HELP = f"a folder of images, a data file without answers, `demo`, or a run of `teach`; and {SETTINGS_HELP}"
RUN_OR_MODEL_HELP = "a run, an adapter, `base`, a model, or a file of saved answers (.jsonl)"
SERVED_HELP = (
    "runs, adapters or a model, each under its run's name or NAME; the base model is served beside them as `base`"
)

SplitBy = Literal["image", "tail"]
OutputFormat = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]
OnBadRow = Literal["error", "skip"]
TextBoxUnit = Literal["pixels", "thousandths"]
MergedDtype = Literal["base", "float32"]
# Arguments and options of several commands.
Words = Annotated[
    list[str] | None,
    Argument(metavar="RECIPE|DATA|SETTING=VALUE", help=WORDS_HELP, autocompletion=complete_words),
]
RecipeName = Annotated[str, Argument(help="a recipe's name or file", autocompletion=complete_recipes)]
Overrides = Annotated[
    list[str] | None, Argument(metavar="SETTING=VALUE", help=SETTINGS_HELP, autocompletion=complete_words)
]
DataPath = Annotated[Path, Argument(help="a data file or folder in any supported format (docs/data.md)")]
AdapterPath = Annotated[Path, Argument(help="a run, or its adapter folder")]
Rows = Annotated[int | None, Option(min=1, help="use only the first N rows")]
PartName = Annotated[str | None, Option(help="the part to use if the source has several: a split or an entry")]
ImagesFrom = Annotated[str | None, Option(help=IMAGES_FROM_HELP)]
ImageColumn = Annotated[str | None, Option(help="the table's column with images, if it is not recognized")]
CaptionColumn = Annotated[str | None, Option(help="the table's column with captions, if it is not recognized")]
BaseModel = Annotated[str | None, Option(help="the base model; default: the adapter's; without adapter: train's")]
Prompt = Annotated[str | None, Option(help="the prompt, if the data has none; default: the adapter's")]
Metrics = Annotated[str | None, Option(help=METRICS_HELP)]
ImageSize = Annotated[str | None, Option(help=IMAGE_SIZE_HELP)]
MaxNewTokens = Annotated[
    int | None, Option(min=1, help="maximum tokens per answer; default: as the adapter's run answers, else 128")
]
BatchSize = Annotated[int, Option(min=1, help="answers generated at once")]
Gpus = Annotated[
    str | None, Option(metavar="N", help="how many GPUs train together, or all; with device=cpu: processes")
]
Port = Annotated[
    int | None, Option(min=0, max=65535, help="the port, 0 for any; default: 8787, or the next that is free")
]
AllowHost = Annotated[
    list[str] | None, Option(metavar="NAME", help="another name of this server, which clients use; repeatable")
]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Option(help="where the model runs")]
AsJson = Annotated[bool, Option("--json", help="print the result as JSON")]


def _load_settings(request: Request, command: str = "") -> "Settings":
    """The settings of a request; says which words of other trainers set what."""
    return request.load(lambda line: Terminal().print(f"setting    {line}"), command)


def _print_json(result: dict[str, Any]) -> None:
    print_result(json.dumps(result, ensure_ascii=False, indent=2))


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"lorgnette {lorgnette.__version__}")
        raise typer.Exit


@app.callback()
def _parse_global_options(
    version: Annotated[
        bool, Option("--version", "-V", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None: ...


@app.command()
def demo(
    out: Annotated[Path | None, Option(help="folder for the images and the run")] = None,
    images: Annotated[int, Option(min=8, help="how many images to draw")] = 500,
    gpus: Gpus = None,
    words: Overrides = None,
) -> None:
    """Try it: draw images, fine-tune the built-in model on them, write the report."""
    from lorgnette.commands.demo import demo as run_demo

    request = parse_words(words or [], "demo")
    _load_settings(request)
    run_demo(out, num_images=images, overrides=request.settings, gpus=gpus)


@app.command()
def prepare(
    source: Annotated[Path, Argument(help=SOURCE_HELP)],
    out: Annotated[Path, Option(help="output folder")] = Path("data"),
    prompt: Annotated[str | None, Option(help="the prompt, if the data has none; default: as data.prompt")] = None,
    holdout: Annotated[
        str, Option(metavar="N", help="number of examples, from the end, held out for the test; auto: as data.holdout")
    ] = "auto",
    split: Annotated[SplitBy, Option(help="image: no image is in both parts; tail: exactly the last rows")] = "image",
    rows: Rows = None,
    sample: Annotated[int | None, Option(min=1, help="use N random rows")] = None,
    seed: Annotated[int, Option(min=0, help="seed for --sample")] = 0,
    to: Annotated[OutputFormat, Option(help="the output format")] = "json",
    name: PartName = None,
    images_from: ImagesFrom = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    on_bad_row: Annotated[OnBadRow, Option(help="stop at rows that cannot be used, or skip and list them")] = "error",
    text_boxes: Annotated[
        TextBoxUnit | None, Option(help="read boxes in texts; their numbers are pixels of the file, or thousandths")
    ] = None,
) -> None:
    """Convert a data set to conversations JSON or another format, and split it into training and test data."""
    lorgnette.prepare(
        source, out, prompt=prompt, holdout=holdout, split=split, rows=rows, sample=sample, seed=seed, to=to,
        name=name, images_from=images_from, image_column=image_column, caption_column=caption_column,
        on_bad_row=on_bad_row, text_boxes=text_boxes,
    )  # fmt: skip


@app.command()
def check(
    words: Words = None,
    recipe: Annotated[str | None, Option(help="check the data for the settings of this recipe")] = None,
    prompt: Annotated[str | None, Option(help="the prompt, if the data has none; default: data.prompt")] = None,
    rows: Rows = None,
    name: PartName = None,
    images_from: ImagesFrom = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    look_alikes: Annotated[
        bool, Option("--look-alikes/--no-look-alikes", help="search for images that look alike")
    ] = True,
    out: Annotated[Path | None, Option(help="also write an HTML report")] = None,
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> None:
    """Check a data set before training. Lists every row with a problem; exits with 1 if training would not start.

    Of a device that this machine lacks it only warns.
    """
    settings = _load_settings(request := parse_words(words or [], recipe), "check")
    report = lorgnette.check(
        request.require_data(settings), settings=settings, prompt=prompt, rows=rows, name=name, images_from=images_from,
        image_column=image_column, caption_column=caption_column, look_alikes=look_alikes,
        recipe=request.recipe or "", out=out, gpus=gpus, console=console if as_json else None,
    )  # fmt: skip
    if as_json:
        _print_json(report.as_dict())
    if report.is_blocking:
        raise typer.Exit(1)


@app.command()
def preview(
    words: Words = None,
    rows: Annotated[int, Option(min=1, help="show the first N rows")] = 4,
    out: Annotated[Path | None, Option(help="write HTML instead")] = None,
) -> None:
    """Show rows as the model gets them: the resized image, and which tokens are trained."""
    settings = _load_settings(parse_words(words or []), "preview")
    lorgnette.preview(settings, rows=rows, out=out)


@app.command()
def plan(
    words: Words = None,
    memory: Annotated[float | None, Option(min=1, help="a GPU with this memory in GiB; default: its own")] = None,
    gpu: Annotated[str | None, Option(help=f"this GPU only: {', '.join(GPU_NAMES)}; default: all")] = None,
    gpus: Gpus = None,
    as_json: AsJson = False,
) -> None:
    """Predict the steps, memory and time of `train`, and the settings with which it fits. Reads no weights."""
    settings = _load_settings(parse_words(words or []), "plan")
    report = lorgnette.plan(settings, memory=memory, gpu=gpu, gpus=gpus, console=console if as_json else None)
    if as_json:
        _print_json(report.as_dict())


@app.command()
def setup(words: Words = None) -> None:
    """Fetch a model, and compile its kernels for this GPU: the first training then waits for neither."""
    lorgnette.setup(_load_settings(parse_words(words or []), "setup"))


@app.command()
def train(
    words: Words = None,
    resume: Annotated[Path | None, Option(metavar="RUN", help="resume an interrupted run")] = None,
    gpus: Gpus = None,
) -> None:
    """Train an adapter, answer the held-out prompts with and without it, write the report."""
    if resume is not None:
        if words:
            raise typer.BadParameter("a resumed run keeps its settings; give --resume RUN, and gpus=N if you like")
        lorgnette.resume(resume, gpus=gpus)
        return
    request = parse_words(words or [])
    settings = _load_settings(request)
    if request.draws_demo:
        from lorgnette.commands.demo import demo as run_demo

        run_demo(overrides=request.settings, gpus=gpus)
        return
    start_loading_torch()
    lorgnette.train(settings, name=request.name, gpus=gpus)


@app.command()
def teach(
    words: Annotated[
        list[str] | None, Argument(metavar="IMAGES|SETTING=VALUE", help=TEACH_HELP, autocompletion=complete_words)
    ] = None,
    prompt: Annotated[str | None, Option(help="the question about every image; default: data.prompt")] = None,
    captions: Annotated[Path | None, Option(help="a data file with answers that you have; they are trained on")] = None,
    run: Annotated[
        Path | None, Option(help="the run's folder; default: runs/teach-NAME. The same command goes on with it")
    ] = None,
    labels: Annotated[
        str | None, Option(help="what an answer must be: cat,dog,…, or a file with one label a line")
    ] = None,
    every: Annotated[int, Option(min=1, metavar="N", help="train after every N answers, once there are 8")] = 8,
    blind: Annotated[
        int, Option(min=0, metavar="N", help="show every Nth image without a suggestion, to compare; 0: none")
    ] = 0,
    order: Annotated[
        Literal["shuffled", "hardest"],
        Option(help="hardest: every second image has the least sure suggestion"),
    ] = "shuffled",
    review: Annotated[
        str | None, Option(metavar="NAME", help="show the answered images again; NAME is the person who looks at them")
    ] = None,
    host: Annotated[
        str, Option(help="the address to answer on; others than loopback let other machines in")
    ] = "127.0.0.1",
    port: Port = None,
    allow_host: AllowHost = None,
) -> None:
    """Correct a model's answers on a page, image after image, while it learns from them; until Ctrl-C."""
    read = parse_teach_words(words or [], run)
    let_threads_sleep()  # the page and the browser need the cores too
    lorgnette.teach(
        read.images, settings=_load_settings(read.request), prompt=prompt, captions=captions, run=read.run,
        labels=labels, every=every, blind=blind, order=order, review=review, host=host, port=port,
        allow_host=allow_host or (),
    )  # fmt: skip


@app.command()
def predict(
    source: Annotated[list[Path] | None, Argument(help="images, a folder of images, or a data file")] = None,
    adapter: Annotated[Path | None, Option(help="a run, or its adapter folder; default: the model alone")] = None,
    model: BaseModel = None,
    prompt: Prompt = None,
    both: Annotated[bool, Option("--both", help="also print the base model's answers")] = False,
    images_from: ImagesFrom = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    image_size: ImageSize = None,
    out: Annotated[Path | None, Option(help="also write the answers as JSONL")] = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = 32,
    temperature: Annotated[float | None, Option(min=0.01, help="sample at this temperature; default: greedy")] = None,
    top_p: Annotated[float, Option(min=0.01, max=1.0, help="sample from tokens up to this total probability")] = 1.0,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="seed for sampling")] = 0,
    device: Device = "auto",
) -> None:
    """Answer prompts about images, with or without an adapter."""
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    sampling |= {"temperature": temperature, "top_p": top_p, "seed": seed}
    data = source[0] if source and len(source) == 1 else source or None
    lorgnette.predict(
        data, adapter=adapter, model=model, prompt=prompt, both=both, images_from=images_from,
        image_column=image_column, caption_column=caption_column, image_size=image_size, out=out, device=device,
        **sampling,
    )  # fmt: skip


@app.command()
def serve(
    named_models: Annotated[list[str] | None, Argument(metavar="[NAME=]RUN_OR_MODEL", help=SERVED_HELP)] = None,
    model: BaseModel = None,
    host: Annotated[str, Option(help="the address to answer on; others than loopback need a key")] = "127.0.0.1",
    port: Port = None,
    api_key: Annotated[
        str | None, Option(help="the key that clients need; better in the environment: LORGNETTE_API_KEY")
    ] = None,
    allow_host: AllowHost = None,
    cors: Annotated[
        list[str] | None, Option(metavar="ORIGIN", help="let pages of this origin use the API; repeatable")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    image_size: ImageSize = None,
    device: Device = "auto",
) -> None:
    """Answer over HTTP, as OpenAI's API does and on a page: adapters beside their base model, until Ctrl-C."""
    lorgnette.serve(
        *named_models or (), model=model, host=host, port=port, api_key=api_key, allow_host=allow_host or (),
        cors=cors or (), max_new_tokens=max_new_tokens, image_size=image_size, device=device,
    )  # fmt: skip


@app.command()
def evaluate(
    model_or_run: Annotated[str, Argument(metavar="RUN_OR_MODEL", help=RUN_OR_MODEL_HELP)],
    source: DataPath,
    metrics: Metrics = None,
    out: Annotated[Path | None, Option(help="folder for predictions.jsonl and scores.json")] = None,
    model: BaseModel = None,
    prompt: Prompt = None,
    rows: Rows = None,
    images_from: ImagesFrom = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    image_size: ImageSize = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """Score a model's answers against the references in the data, with confidence intervals."""
    lorgnette.evaluate(
        model_or_run, source, metrics=metrics, out=out, model=model, prompt=prompt, rows=rows, images_from=images_from,
        image_column=image_column, caption_column=caption_column, image_size=image_size,
        max_new_tokens=max_new_tokens, batch_size=batch_size, device=device,
    )  # fmt: skip


@app.command()
def compare(
    models_and_data: Annotated[
        list[str], Argument(metavar="RUN_OR_MODEL... DATA", help=f"each {RUN_OR_MODEL_HELP}; last the data")
    ],
    out: Annotated[Path | None, Option(help="the report; default: compare.html, or the next free name")] = None,
    metrics: Metrics = None,
    model: BaseModel = None,
    prompt: Prompt = None,
    rows: Rows = None,
    images_from: ImagesFrom = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    image_size: ImageSize = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> None:
    """Compare models in one HTML report: scores, style, every answer. A single adapter is compared with its base."""
    lorgnette.compare(
        *models_and_data, out=out, metrics=metrics, model=model, prompt=prompt, rows=rows, images_from=images_from,
        image_column=image_column, caption_column=caption_column, image_size=image_size,
        max_new_tokens=max_new_tokens, batch_size=batch_size, device=device,
    )  # fmt: skip


@app.command()
def verify(
    adapter: AdapterPath,
    model: BaseModel = None,
    data: Annotated[Path | None, Option(help="images or a data file; default: a built-in image")] = None,
    rows: Annotated[int, Option(min=1, help="use the first N rows of --data")] = 4,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check an adapter: its files, its base model, and that plain transformers + PEFT load it and reproduce its
    outputs. Exits with 1 if a check fails."""
    report = lorgnette.verify(
        adapter, model=model, data=data, rows=rows, device=device, console=console if as_json else None
    )
    if as_json:
        _print_json(report.as_dict())
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def merge(
    adapter: AdapterPath,
    out: Annotated[Path, Argument(help="a new folder for the merged checkpoint")],
    model: BaseModel = None,
    base: Annotated[str | None, Option(help="for an adapter of NF4 weights: the model that they were made of")] = None,
    dtype: Annotated[MergedDtype, Option(help="float32: twice as large, nothing is rounded away")] = "base",
    force: Annotated[bool, Option("--force", help="write it also if rounding removes most of the adapter")] = False,
    device: Device = "auto",
) -> None:
    """Merge base model and adapter into one checkpoint, and compare the answers before and after."""
    lorgnette.merge(adapter, out, model=model, base=base, device=device, dtype=dtype, force=force)


@app.command("export-adapter")
def export_adapter(
    adapter: AdapterPath,
    out: Annotated[Path, Argument(help="a new folder for the adapter")],
    transformers: Annotated[str, Option(help="the version that will load it, such as 4.46.2")],
) -> None:
    """Write an adapter for another version of transformers: before 4.52 the modules had other names."""
    lorgnette.export_adapter(adapter, out, transformers=transformers)


@app.command()
def watch(
    folder: Annotated[Path, Argument(metavar="RUN", help="a run's folder")],
    port: Annotated[int, Option(min=1, max=65535, help="the dashboard's port")] = 5092,
) -> None:
    """Show a run in SwanLab's local dashboard, until Ctrl-C."""
    lorgnette.watch(folder, port=port)


@app.command()
def settings(
    word: Annotated[
        list[str] | None,
        Argument(help="part of a name or a meaning, or another trainer's word", autocompletion=complete_words),
    ] = None,
) -> None:
    """List the settings with defaults and meanings: all, or those that match a word."""
    from lorgnette.commands.settings import list_settings as run_list

    run_list(" ".join(word) if word else None)


app.add_typer(recipes_app, name="recipe")


@recipes_app.command("list")
def recipe_list() -> None:
    """List the recipes, one per line."""
    for name, title in lorgnette.recipes.list_titles():
        print_result(f"{name:24} {title}")


@recipes_app.command("show")
def recipe_show(name: RecipeName) -> None:
    """Print a recipe."""
    print_result(lorgnette.recipes.read_text(name), ends_line=False)


@recipes_app.command("copy")
def recipe_copy(name: RecipeName, to: Annotated[Path | None, Argument()] = None) -> None:
    """Copy a recipe, to edit it."""
    print_result(str(lorgnette.recipes.copy_recipe(name, to)))


app.add_typer(models_app, name="model")


@models_app.command("list")
def model_list(as_json: AsJson = False) -> None:
    """List the models that can be trained: their sizes, what training needs, and which are on this machine."""
    from lorgnette.commands.model import list_models, show_models

    _print_json({"models": [entry.as_dict() for entry in list_models()]}) if as_json else show_models()


app.add_typer(cache_app, name="cache")


@cache_app.callback()
def cache(context: typer.Context, as_json: AsJson = False) -> None:
    """List what is kept on disk beside runs, such as image features and downloads; `cache clear` deletes it."""
    from lorgnette.commands.cache import list_cache, show_cache

    if context.invoked_subcommand is None:
        _print_json({"items": [item.as_dict() for item in list_cache()]}) if as_json else show_cache()


@cache_app.command("clear")
def cache_clear(
    what: Annotated[Literal["features", "downloads", "bytecode", "all"], Argument(help="what to delete")],
    older_than: Annotated[float | None, Option(metavar="DAYS", min=0, help="only if not used for so long")] = None,
    yes: Annotated[bool, Option("--yes", help="delete; without it, only list what would be deleted")] = False,
) -> None:
    """Delete what is kept, except what a running process uses."""
    from lorgnette.commands.cache import clear_cache

    clear_cache(what, older_than=older_than, yes=yes)


def main() -> None:
    """The command `lorgnette`. A user's error is one line and exit status 1 or 2; a defect keeps its traceback."""
    # Deprecation warnings of libraries are for their developers.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        check_system()
    except LorgnetteError as error:
        Terminal(console).error(f"lorgnette: {error}")
        sys.exit(error.exit_status)
    with guard_standard_streams(), StopSignals() as stop:
        try:
            try:
                app(prog_name="lorgnette")
            finally:
                sys.stdout.flush()  # an error here, not at Python's exit
        except (SystemExit, KeyboardInterrupt) as exit_:
            if isinstance(exit_, SystemExit) and exit_.code != EXIT_INTERRUPTED:
                raise
            _end_command(stop)
        except LorgnetteError as error:
            _print_error(str(error))
            sys.exit(error.exit_status)
        except OSError as error:
            if error.errno is None:
                raise
            # Permission denied, a name that is too long, a full disk: the system's own message.
            where = error.filename or "a file"
            remedy = "check its path, its permissions and the disk"
            _print_error(f"{error.strerror} · {where} · {remedy}")
            sys.exit(1)
        except Exception as error:
            # pydantic's errors take the place of an interrupt in its functions, and name it in their text.
            if stop.number is None or KeyboardInterrupt.__name__ not in str(error):
                raise
            _end_command(stop)


def _end_command(stop: StopSignals) -> NoReturn:
    """Say that a signal has stopped the command, and end it with the status for that."""
    if not is_silent_rank():
        Terminal(console).print("stopped")  # typer turns Ctrl-C into an exit without a message
    status = 128 + (stop.number or signal.SIGINT)
    if stop.is_repeated:
        _end_at_once(status)
    sys.exit(status)


def _end_at_once(status: int) -> NoReturn:
    """Without Python's exit: it waits for threads, or torch ends the process with a message if one computes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def _print_error(text: str) -> None:
    """Of torchrun's processes one on each machine prints what is wrong with the command."""
    if not is_silent_rank() or os.environ.get("LOCAL_RANK") == "0":
        Terminal(console).error(f"lorgnette: {text}")
