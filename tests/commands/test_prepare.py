"""`prepare` reports what it read and what it changed; a data set on a hub is read like a file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorgnette import config
from lorgnette.commands.check import check
from lorgnette.commands.prepare import prepare
from lorgnette.commands.preview import preview
from lorgnette.errors import UsageError
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import TrainingData


def test_prepare_reports_what_it_wrote(captions: Path, tmp_path: Path, terminal_output: io.StringIO) -> None:
    with captions.open("a") as file:
        file.write("red.png,red once more\ngone.png,nothing\n")
    result = prepare(
        captions, tmp_path / "data", holdout=1, split="tail", on_bad_row="skip", console=Console(file=terminal_output)
    )
    assert (result.num_train, result.num_test) == (6, 1)
    lines = terminal_output.getvalue().splitlines()
    assert lines[0].startswith("skipped: ")
    assert lines[1] == "1 images are in both parts: the test asks for what was trained"
    assert lines[-1] == f"test       {result.test_path}, 1"


def test_a_file_is_no_folder_to_write_to(captions: Path) -> None:
    with pytest.raises(UsageError, match="a file, not a folder"):
        prepare(captions, captions)


def test_a_url_for_the_images_of_a_file_is_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="download it, and name the folder or zip"):
        prepare(captions, tmp_path / "data", images_from="https://x/y.zip")
    assert not (tmp_path / "data").exists()


def test_a_data_set_on_a_hub_is_prepared_checked_and_previewed(
    hub: Any, jpeg: Any, tiny: Path, terminal_output: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = [{"role": "user", "content": "<image>or<image>?"}, {"role": "assistant", "content": "both"}]
    records = [{"messages": messages, "images": [f"{i}.jpg", f"{i + 1}.jpg"]} for i in range(6)]
    lines = "".join(json.dumps(record) + "\n" for record in [*records, {"messages": messages, "images": ["x", "y"]}])
    hub.repo("hf", "datasets", "me/chat", {"train.jsonl": lines.encode(), **{f"{i}.jpg": jpeg(i) for i in range(7)}})
    console = Console(file=terminal_output)
    result = prepare("hf:me/chat", tmp_path / "out", holdout=1, split="tail", to="swift", console=console)
    assert (result.num_train, result.num_test) == (5, 1)
    assert (
        "missing: train.jsonl, row 7: the image 'x' is neither a URL nor a file of the data set"
        in terminal_output.getvalue()
    )
    assert {path.parent for path in (tmp_path / "out").rglob("*.jpg")} == {tmp_path / "out" / "images"}
    words = [f"model={tiny}", "image_size=28", "data.holdout=1", "data.split=tail"]
    settings = config.load_settings(None, words)
    report = check("hf:me/chat", settings=settings, rows=4, look_alikes=False, console=console)
    assert (report.data_report.num_rows, report.data_report.num_images) == (4, 5)
    assert (tmp_path / "data" / "me-chat-4" / "data.jsonl").is_file()
    [row, _] = preview(
        config.load_settings(None, [*words, "data=hf:me/chat", "data.max_rows=4"]), rows=2, console=console
    )
    assert len(row.images) == 2


def test_what_was_understood_of_a_table_is_said_once_by_every_command(
    captions: Path, tmp_path: Path, terminal_output: io.StringIO
) -> None:
    table, console = captions.with_name("Fotos.csv"), Console(file=terminal_output, width=200)
    rows = captions.read_text().splitlines()[1:]
    table.write_bytes(
        "\r\n".join(["Bild;Text;;", *(row.replace(",", ";") + ";;" for row in rows), ";;;"]).encode("utf-16")
    )
    settings = config.load_settings(None, [f"data={table}", "model=demo", "image_size=56"])
    said = "columns    Fotos.csv: Bild → image, Text → caption; separator semicolon, UTF-16\n"
    prepare(table, tmp_path / "data", holdout=1, console=console)
    check(table, settings=settings, console=console)
    preview(settings, output=Console(file=io.StringIO()), console=console)
    assert terminal_output.getvalue().count(said) == 3
    TrainingData.load(settings, Terminal(console))
    assert terminal_output.getvalue().count("columns    ") == 4
    preview(settings.model_copy(update={"data": settings.data.model_copy(update={"path": captions})}), console=console)
    assert terminal_output.getvalue().count("columns    ") == 4  # our own names
