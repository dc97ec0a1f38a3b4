"""Names become places: the built-in model, folders, and what a hub's source is collected into."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorgnette import resolve
from lorgnette.config import DataSettings, Settings
from lorgnette.data.hub_dataset import DownloadedDataset, MissingRow
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.console import Terminal

TERMINAL = Terminal()


def test_demo_and_folders_are_themselves(tiny: Path) -> None:
    assert resolve.resolve_model("demo", TERMINAL) == resolve.BUILT_IN_MODEL
    assert resolve.resolve_model(str(tiny), TERMINAL) == tiny
    for gone in ("./not/here", "/not/here", "nothere", "a/b/c", "C:models/qwen/here"):
        assert resolve.resolve_model(gone, TERMINAL) == Path(gone)


@pytest.mark.parametrize("model", ["Qwen3-Omni-30B-A3B-Instruct", "Qwen/Qwen3-8B", "hf:Qwen/Qwen3-VL-4B-Instruct-FP8"])
def test_a_model_that_cannot_be_trained_has_its_reason(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.hub.models.find_in_cache", lambda name, **options: None)
    for resolve_name in (lambda: resolve.resolve_model(model, TERMINAL), lambda: resolve.find_cached_model(model)):
        with pytest.raises(UsageError, match=r"this model is not supported: it.* · model=.*lorgnette model list"):
            resolve_name()


def test_a_name_is_fetched_from_the_hub_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def fetched(name: str, *, source: str, **rest: object) -> Path:
        asked.append((name, source))
        return tmp_path

    monkeypatch.setattr("lorgnette.hub.models.fetch_model", fetched)
    monkeypatch.chdir(tmp_path)
    name = "Qwen/Qwen2-VL-2B-Instruct"
    for model in (name, f"hf:{name}", f"modelscope:{name}"):
        assert resolve.resolve_model(model, TERMINAL) == tmp_path
    (tmp_path / name).mkdir(parents=True)  # a folder of that name is not what was asked for
    assert resolve.resolve_model(f"modelscope:{name}", TERMINAL) == tmp_path
    assert resolve.resolve_model(name, TERMINAL) == Path(name)
    assert asked == [(name, "auto"), (name, "hf"), (name, "modelscope"), (name, "modelscope")]


def test_a_hubs_name_that_is_none_is_refused() -> None:
    for model in ("hf:nothere", "modelscope:./Qwen/x", "hf:"):
        with pytest.raises(LorgnetteError, match=r"no such model folder .*OWNER/NAME"):
            resolve.resolve_model(model, TERMINAL)


@pytest.mark.parametrize("model", ["Qwen2-VL-2B-Instruct", "qwen2-vl-2b-instruct", "hf:Qwen2-VL-2B-Instruct"])
def test_a_known_model_needs_no_owner(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve.parse_model_name(model)[0] == "Qwen/Qwen2-VL-2B-Instruct"
    assert resolve.portable_name(model).removeprefix("hf:") == "Qwen/Qwen2-VL-2B-Instruct"
    (tmp_path / "Qwen2-VL-2B-Instruct").mkdir()  # a folder comes first
    assert resolve.portable_name("Qwen2-VL-2B-Instruct") == str(tmp_path / "Qwen2-VL-2B-Instruct")
    with pytest.raises(UsageError, match=r"did you mean Qwen/Qwen2-VL-2B-Instruct\?"):
        resolve.parse_model_name("Qwen2-VL-2B-Instuct")
    sizes = r"did you mean Qwen/Qwen2-VL-2B-Instruct, Qwen/Qwen2-VL-7B-Instruct or Qwen/Qwen2-VL-72B-Instruct\?"
    with pytest.raises(UsageError, match=sizes):
        resolve.parse_model_name("qwen2-vl")


def test_a_folder_with_a_typing_error_is_named_when_no_hub_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(name: str, **rest: object) -> Path:
        raise LorgnetteError("neither hub gives it", where=name, hint="check the network")

    monkeypatch.setattr("lorgnette.hub.models.fetch_model", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    with pytest.raises(LorgnetteError, match=r"neither hub gives it · runs/demmo · did you mean runs/demo\?"):
        resolve.resolve_model("runs/demmo", TERMINAL)
    with pytest.raises(LorgnetteError, match=r"check the network; or name a model on this machine: .*model=demo"):
        resolve.resolve_model("zzz/demo", TERMINAL)


def test_a_folder_may_be_called_as_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf:mine").mkdir()
    assert resolve.resolve_model("hf:mine", TERMINAL) == Path("hf:mine")
    assert resolve.parse_model_name("hf:mine/its") == ("mine/its", "hf")


def test_each_source_and_number_of_rows_has_its_folder() -> None:
    folders = [
        resolve.get_dataset_folder(Settings(data=DataSettings(path=Path(source), max_rows=rows)))
        for source, rows in (
            ("modelscope:modelscope/coco_2014_caption", 500),
            ("modelscope:modelscope/coco_2014_caption", None),
            ("modelscope:modelscope/coco_2014_caption:validation", 500),
            ("hf:someone/captions:en:train", 500),
        )
    ]
    assert folders[0] == Path("data/modelscope-coco_2014_caption-500")
    assert len(set(folders)) == 4


def test_the_settings_name_columns_of_every_table(tmp_path: Path) -> None:
    table, said = tmp_path / "a.csv", io.StringIO()
    table.write_text("photo,thumbnail,en,de\na.jpg,b.jpg,cat,Katze\n")
    terminal = Terminal(Console(file=said, width=200))

    def read(file: Path, **options: Any) -> list[Any]:
        return list(resolve.read_rows(Settings(data=DataSettings(**options)), file, terminal))

    with pytest.raises(LorgnetteError, match="not clear which column holds the captions; the columns are photo"):
        read(table, path=table)
    with pytest.raises(LorgnetteError, match=r"there is no column 'Foto'; the columns are photo \(path\), thumbnail"):
        read(table, path=table, image_column="Foto", caption_column="de")
    [row] = read(table, path=table, image_column="thumbnail", caption_column="de")
    assert (row.images[0].path.name, row.reference, row.unread_keys) == ("b.jpg", "Katze", ("photo", "en"))
    assert said.getvalue() == "columns    a.csv: thumbnail → image, de → caption\n"
    # What was downloaded has our own columns, and is read without a word.
    downloaded = tmp_path / "data.jsonl"
    downloaded.write_text('{"image_path": "a.jpg", "caption": "cat"}\n')
    [row] = read(downloaded, path=Path("hf:a/b"), image_column="thumbnail", caption_column="de")
    assert row.reference == "cat"
    assert said.getvalue().count("columns") == 1
    folders = [
        resolve.get_dataset_folder(Settings(data=DataSettings(path="hf:a/b", caption_column=c))) for c in (None, "de")
    ]
    assert folders == [Path("data/a-b"), Path("data/a-b-de")]


def test_local_data_is_not_downloaded(make_settings: Callable[..., Settings], captions: Path) -> None:
    assert resolve.resolve_data(make_settings(), TERMINAL) == make_settings().data.path
    assert resolve.resolve_data(make_settings(f"data.path=coco:{captions}"), TERMINAL) == captions


def test_a_list_has_files_of_this_machine_only(make_settings: Callable[..., Settings]) -> None:
    assert resolve.resolve_data(make_settings("data=coco:a.json,b.csv"), TERMINAL) == Path("a.json,b.csv")
    for path in ("a.csv,hf:me/set", "hf:me/set,a.csv"):
        with pytest.raises(UsageError, match="hf:me/set · download it first: lorgnette prepare hf:me/set"):
            resolve.resolve_data(make_settings(f"data={path}"), TERMINAL)


def test_missing_rows_of_one_cause_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tuple(
        MissingRow(f"row {row}", f"http://h/{row}.jpg", "not found (HTTP 404)", "do") for row in range(7, 37)
    )
    dataset = DownloadedDataset(tmp_path / "data.jsonl", "main", 9, 9, 8, 8, 1, {}, missing, {"license": 9})
    resolve.report_download(dataset, Terminal())
    _, keys, *lines = capsys.readouterr().err.splitlines()
    assert keys.endswith("key 'license' is not read (9 rows)")
    assert lines == ["missing: 30 rows, first row 7: not found (HTTP 404) (http://h/7.jpg); do"]


def test_local_images_are_a_folder_or_zip(make_settings: Callable[..., Settings]) -> None:
    assert resolve.check_local_images(None) is None
    assert (
        resolve.check_local_images("x.zip")
        == resolve.resolve_images_folder(make_settings("data.images_from=x.zip"))
        == Path("x.zip")
    )
    for hub in ("hf", "modelscope"):
        assert resolve.resolve_images_folder(make_settings(f"data={hub}:a/b", "data.images_from=https://x/")) is None
        assert resolve.resolve_images_folder(make_settings(f"data={hub}:a/b", "data.images_from=x.zip")) == Path(
            "x.zip"
        )
    for call in (
        lambda: resolve.check_local_images("https://x/"),
        lambda: resolve.resolve_images_folder(make_settings("data.images_from=http://x")),
    ):
        with pytest.raises(UsageError, match=r"images_from is a URL; .* name the folder or zip"):
            call()


def test_downloads_and_missing_rows_are_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = MissingRow("row 7", "http://127.0.0.1/7.jpg", "not found (HTTP 404)", "set --images-from")
    dataset = DownloadedDataset(tmp_path / "data.jsonl", "master", 9, 9, 8, 8, 1_500_000, {"a zip": 8}, (missing,))
    resolve.report_download(dataset, Terminal())
    output = capsys.readouterr().err
    for part in ("8 files, 1.5 MB", "9 examples", "8 images", "row 7: not found (HTTP 404)", "--images-from"):
        assert part in output
