"""Names in settings → paths: a model's name → its folder, a data set's address on a hub → its data file on disk.

What is on disk already is not fetched again. What speaks to a hub is imported only if one is named: most runs name
none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.data.row_location import Row
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.io.folder_kind import explain_folder
from lorgnette.io.paths import join_sources, split_sources, suggest_path
from lorgnette.io.shell import format_command
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import HfConfig
from lorgnette.models.released_models import explain_unsupported_name, find_hub_name, find_size, suggest_hub_names
from lorgnette.report.console import Terminal

if TYPE_CHECKING:
    from lorgnette.data.hub_dataset import DownloadedDataset, MissingRow
    from lorgnette.hub.models import HubChoice

BUILT_IN_MODEL = Path(__file__).parent / "demo" / "model"
_HUB_PREFIXES: "dict[str, HubChoice]" = {"hf": "hf", "modelscope": "modelscope"}
_LIST_HINT = "`lorgnette model list` lists the models that are supported"
DATA_FOLDER = Path("data")
"""Data sets from hubs are downloaded into it, each into a folder of its own."""


def resolve_model(model: str, terminal: Terminal, *, needs_weights: bool = True) -> Path:
    """The folder of a model; downloads it if it is a name on a hub and not in its cache.

    model: `demo` for the built-in model, a folder, or [hf:|modelscope:]OWNER/NAME. A model of a supported family needs
    neither its owner nor `-Instruct`. Without a hub before it, a name is looked for on both. needs_weights: otherwise
    only its small files are downloaded.
    """
    if local := _find_local_model(model):
        return local
    name, hub = parse_model_name(model)
    _check_support(name)
    from lorgnette.hub.models import fetch_model

    with terminal.show_transfer("model") as on_progress:
        try:
            return fetch_model(
                name,
                source=hub,
                on_progress=on_progress,
                on_message=terminal.print,
                check_config=_check_config,
                needs_weights=needs_weights,
            )
        except LorgnetteError as error:
            nearest = suggest_path(Path(name), "")  # a folder with a typing error
            hint = nearest or f"{error.hint}; or name a model on this machine: model=FOLDER, or model=demo"
            raise type(error)(error.message, where=error.where, hint=hint) from None


def _check_config(folder: Path) -> None:
    """Raises LorgnetteError for a model that cannot be trained, before its weights are downloaded."""
    BaseCheckpoint.from_folder(folder, needs_weights=False)


def parse_model_name(model: str) -> "tuple[str, HubChoice]":
    """(the model's name, the hub written before it)"""
    prefix, colon, name = model.partition(":")
    hub = _HUB_PREFIXES.get(prefix) if colon and not Path(model).exists() else None
    return (_add_owner(name), hub) if hub else (_add_owner(model), "auto")


def find_cached_model(model: str, *, needs_weights: bool = False) -> Path | None:
    """Like `resolve_model`, without a download: None for a name on a hub that is in no cache.

    Raises LorgnetteError if a folder does not exist or holds no model.
    """
    if local := _find_local_model(model):
        if not (local / "config.json").is_file():
            raise explain_folder(local, "model", lacks="config.json")
        return local
    from lorgnette.hub.models import find_in_cache

    name, hub = parse_model_name(model)
    cached = find_in_cache(name, source=hub, needs_weights=needs_weights)
    if cached is None:
        _check_support(name)
    return cached[1] if cached else None


def portable_name(model: str) -> str:
    """A model's name that is valid in any folder: a folder's absolute path, or the name on a hub."""
    if model != "demo" and Path(model).exists():
        return str(Path(model).resolve())
    return complete_name(model)


def complete_name(model: str) -> str:
    """A known model's name with its owner, after the hub that is written before it; any other name unchanged."""
    name, hub = parse_model_name(model)
    return name if hub == "auto" else f"{hub}:{name}"


def find_model_config(model: str) -> HfConfig | None:
    """The config.json of a model on this machine; for another known model what it says about sizes, else None."""
    if folder := find_cached_model(model):
        return BaseCheckpoint.from_folder(folder, needs_weights=False).load_hf_config()
    size = find_size(parse_model_name(model)[0])
    return size.config if size else None


def resolve_data(settings: Settings, terminal: Terminal) -> Path | None:
    """The data file of the settings, or several with commas; downloads a data set on a hub into `data/`. None if no
    data is set."""
    path = settings.data.path
    if path is None:
        return None
    sources = split_sources(path)
    if len(sources) > 1 and (on_hub := [source for source in sources if is_hub_address(str(source))]):
        message = "a list of data sets has files on this machine only"
        hint = f"download it first: {format_command('prepare', on_hub[0])}, then name its data.jsonl"
        raise UsageError(message, where=str(on_hub[0]), hint=hint)
    if not is_hub_address(str(path)):
        return join_sources(Path(str(source).removeprefix("coco:")) for source in sources)
    from lorgnette.data.hub_dataset import download_dataset

    with terminal.show_transfer("data") as on_progress:
        dataset = download_dataset(
            str(path),
            get_dataset_folder(settings),
            max_rows=settings.data.max_rows,
            images_from=settings.data.images_from,
            image_column=settings.data.image_column,
            caption_column=settings.data.caption_column,
            on_progress=on_progress,
            on_message=terminal.print,
        )
    report_download(dataset, terminal)
    return dataset.path


def get_dataset_folder(settings: Settings) -> Path:
    """The folder of a data set from a hub: with another source, number of rows or column it is another folder."""
    from lorgnette.hub.datasets import parse_address

    section = settings.data
    address = parse_address(str(section.path))
    options = [section.max_rows, section.image_column, section.caption_column]
    words = [*address.name.split("/"), *address.words, *(str(option) for option in options if option)]
    return DATA_FOLDER / "-".join(word.replace("/", "_") for word in words)


def read_rows(
    settings: Settings, path: Path, terminal: Terminal, *, max_rows: int | None = None, name: str | None = None
) -> Iterator[Row]:
    """The rows of a file of the settings' data, with its prompt, images and columns; says which columns are read.

    A data set from a hub is written with our own columns.
    """
    section, is_on_hub = settings.data, is_hub_address(str(settings.data.path))
    choice = data.RECOGNIZED if is_on_hub else data.ColumnChoice(section.image_column, section.caption_column)
    return data.read(
        path, prompt=section.prompt, max_rows=max_rows, name=name, images_from=resolve_images_folder(settings),
        trim=section.trim, columns=choice, on_columns=lambda text: terminal.print(f"columns    {text}"),
    )  # fmt: skip


def check_local_images(images_from: str | None) -> Path | None:
    """The folder or zip with a local data set's images. Raises UsageError for a URL, which only hub data sets may
    have."""
    if images_from and "://" in images_from:
        message = "images_from is a URL; URLs work only for data sets on a hub"
        raise UsageError(message, where=f"images_from {images_from}", hint="download it, and name the folder or zip")
    return Path(images_from) if images_from else None


def resolve_images_folder(settings: Settings) -> Path | None:
    """The folder or zip with the images of the settings' data; None for a URL, which a data set on a hub may have."""
    images_from = settings.data.images_from
    is_on_hub = settings.data.path is not None and is_hub_address(str(settings.data.path))
    return None if is_on_hub and images_from and "://" in images_from else check_local_images(images_from)


def report_download(dataset: "DownloadedDataset", terminal: Terminal) -> None:
    """Print what was fetched, and a warning for each missing row."""
    terminal.print(
        f"fetched    {dataset.num_files} files, {dataset.num_bytes / 1e6:.1f} MB; {dataset.num_images} images, "
        f"{dataset.num_examples} examples in {dataset.path}"
    )
    for key, count in dataset.unread_keys.items():
        terminal.warn(f"{dataset.path.parent}: key {key!r} is not read ({count} {'row' if count == 1 else 'rows'})")
    groups: dict[tuple[str, str], list[MissingRow]] = {}
    for row in dataset.missing:
        groups.setdefault((row.message, row.hint), []).append(row)
    for (message, hint), rows in groups.items():
        image = f" ({rows[0].image})" if rows[0].image else ""
        where = rows[0].where if len(rows) == 1 else f"{len(rows)} rows, first {rows[0].where}"
        terminal.warn(f"missing: {where}: {message}{image}; {hint}")


def _find_local_model(model: str) -> Path | None:
    """The path of a model that is no name on a hub; it need not exist."""
    name, hub = parse_model_name(model)
    is_hub_name = not name.startswith((".", "/", "~")) and name.count("/") == 1
    if model == "demo":
        return BUILT_IN_MODEL
    return Path(name) if hub == "auto" and (Path(name).exists() or not is_hub_name) else None


def _check_support(name: str) -> None:
    """Raises UsageError for the name of a model that exists but cannot be trained."""
    if reason := explain_unsupported_name(name):
        raise UsageError(f"this model is not supported: {reason}", where=f"model={name}", hint=_LIST_HINT)


def _add_owner(name: str) -> str:
    """OWNER/NAME of a known model, in any letter case; any other name unchanged.

    Raises UsageError for a name without owner that is nearly one of them, or of a model that cannot be trained.
    """
    if Path(name).exists():
        return name
    if known := find_hub_name(name):
        return known
    if "/" not in name:
        _check_support(name)
        if nearest := suggest_hub_names(name):
            listed = " or ".join(filter(None, (", ".join(nearest[:-1]), nearest[-1])))
            raise UsageError("no such model", where=name, hint=f"did you mean {listed}? {_LIST_HINT}")
    return name
