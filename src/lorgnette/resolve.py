"""Names → places: a data set on a hub becomes a table and pictures on disk, a model's name its folder.

What is there already is not fetched again, so that a start after a kill, or a second run, goes on from the disk. What
speaks to a hub is imported where one is named: most runs name none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.report.console import Terminal

if TYPE_CHECKING:
    from lorgnette.hub.collect import Collected
    from lorgnette.hub.models import HubChoice

BUILT_IN_MODEL = Path(__file__).parent / "demo" / "model"
_HUB_PREFIXES: "dict[str, HubChoice]" = {"hf": "hf", "modelscope": "modelscope"}
DATA_FOLDER = Path("data")
"""Where data sets are collected, each in a folder of its own."""


def resolve_model(model: str, terminal: Terminal) -> Path:
    """`demo` is the built-in model; a folder is itself; OWNER/NAME comes from a hub, or its cache: from the one that
    hf:OWNER/NAME or modelscope:OWNER/NAME says, or whichever has it."""
    if model == "demo":
        return BUILT_IN_MODEL
    name, hub = parse_model_name(model)
    if hub == "auto" and (Path(name).exists() or not _is_hub_name(name)):
        return Path(name)
    from lorgnette.hub.models import fetch_model

    with terminal.show_transfer("model") as seen:
        return fetch_model(name, source=hub, on_progress=seen, on_message=terminal.print)


def parse_model_name(model: str) -> "tuple[str, HubChoice]":
    """A model's name, and the hub that is written before it."""
    word, colon, name = model.partition(":")
    hub = _HUB_PREFIXES.get(word) if colon and not Path(model).exists() else None
    return (name, hub) if hub else (model, "auto")


def find_cached_model(model: str) -> Path | None:
    """The same without a download: None for a hub's name that is in no cache. Raises LorgnetteError for a folder that
    is not there."""
    if model == "demo":
        return BUILT_IN_MODEL
    name, hub = parse_model_name(model)
    if hub == "auto" and (Path(name).exists() or not _is_hub_name(name)):
        if not Path(name).exists():
            remedy = "name a folder that is there, OWNER/NAME on a hub, or `demo`"
            raise LorgnetteError("no such model", where=name, hint=remedy)
        return Path(name)
    from lorgnette.hub.models import find_in_cache

    found = find_in_cache(name, source=hub)
    return found[1] if found else None


def portable_name(model: str) -> str:
    """A model's name as it will be understood elsewhere: a folder by its whole path, a hub's name as it is."""
    return str(Path(model).resolve()) if model != "demo" and Path(model).exists() else model


def resolve_data(settings: Settings, terminal: Terminal) -> Path | None:
    """The data as a file: of a source on a hub its captions.csv, collected under data/."""
    path = settings.data.path
    if path is None:
        return None
    if str(path).startswith("coco:"):
        return Path(str(path).removeprefix("coco:"))
    if not is_hub_address(str(path)):
        return path
    from lorgnette.hub.collect import collect

    out = get_dataset_folder(str(path), settings.data.max_rows)
    with terminal.show_transfer("data") as seen:
        collected = collect(
            str(path),
            out,
            rows=settings.data.max_rows,
            images_from=settings.data.images_from,
            seen=seen,
            say=terminal.print,
        )
    report_download(collected, terminal)
    return collected.table


def get_dataset_folder(source: str, rows: int | None) -> Path:
    """The folder a source is collected in: another source, or another number of rows, is another folder."""
    from lorgnette.hub.sources import parse_address

    address = parse_address(source)
    words = [*address.name.split("/"), *address.words, *([str(rows)] if rows else [])]
    return DATA_FOLDER / "-".join(words)


def check_local_images(images_from: str | None) -> Path | None:
    """Where the pictures of a file on this machine are looked for. Raises UsageError for an address: that is asked
    while a data set is fetched from a hub, and never for a file's pictures."""
    if images_from and "://" in images_from:
        raise UsageError(
            "an address, and only the pictures of a data set on a hub are fetched",
            where=f"images_from {images_from}",
            hint="download it, and name the folder or zip",
        )
    return Path(images_from) if images_from else None


def resolve_images_folder(settings: Settings) -> Path | None:
    """The same of a run's settings; None where its data came from a hub and its pictures with them from an address."""
    images_from = settings.data.images_from
    fetched = settings.data.path is not None and is_hub_address(str(settings.data.path))
    return None if fetched and images_from and "://" in images_from else check_local_images(images_from)


def report_download(collected: "Collected", terminal: Terminal) -> None:
    """What was fetched, and what is missing; `collect` itself says which source served the pictures."""
    terminal.print(
        f"fetched    {collected.files} files, {collected.bytes / 1e6:.1f} MB; {collected.pictures} pictures, "
        f"{collected.captions} captions in {collected.table}"
    )
    for missing in collected.missing:
        terminal.warn(f"missing: {missing.place}: {missing.what} ({missing.picture}); {missing.remedy}")


def _is_hub_name(model: str) -> bool:
    return not model.startswith((".", "/", "~")) and model.count("/") == 1
