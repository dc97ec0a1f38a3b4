import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.download_journal import Journal
from lorgnette.data.remote_images import (
    ImageFallback,
    RemoteImage,
    RemoteImages,
    download_images,
    find_name_collisions,
    list_file_names,
)
from lorgnette.errors import LorgnetteError
from lorgnette.hub.datasets import HubDataset
from lorgnette.hub.download import ignore_progress
from lorgnette.hub.http import HttpClient, RetryPolicy
from lorgnette.hub.repository import Repository, RepositoryFile

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def make_dataset(client: HttpClient, *paths: str) -> HubDataset:
    files = tuple(RepositoryFile(path, 1, None, f"http://hub/{path}") for path in paths)
    repository = Repository("hf", "me/set", "main", files, {"Authorization": "Bearer secret"})
    return HubDataset(repository, [], Path("none"), client)


def test_an_image_keeps_its_name_and_a_second_one_of_that_name_gets_a_hash(tmp_path: Path) -> None:
    images = RemoteImages(tmp_path, {})
    names = [
        images.locate(url).name
        for url in (
            "http://h/a/COCO_1.jpg",
            "http://h/a/COCO_1.jpg",
            "http://h/b/COCO_1.jpg",
            "http://h/x?id=1",
            "http://h/pass%20wd.PNG?sign=1",
            "http://h/..",
        )
    ]
    assert names[0] == names[1] == "COCO_1.jpg"
    assert names[2].startswith("COCO_1-")
    assert names[3:5] == ["x.jpg", "pass_wd.png"]
    assert len(names[5]) == len("0123456789abcdef.jpg")
    assert images.images["COCO_1.jpg"] == RemoteImage("http://h/a/COCO_1.jpg")
    assert not list(tmp_path.iterdir())
    again = RemoteImages(tmp_path, images.images)
    assert again.locate("http://h/b/COCO_1.jpg").name == names[2]


def test_a_path_is_a_file_of_the_repository(tmp_path: Path) -> None:
    paths = ("a.jpg", "train/a.jpg", "images/b.jpg", "deep/er/c.jpg", "x/d.jpg", "y/d.jpg")
    with HttpClient(retry_policy=QUICK) as client:
        images = RemoteImages(tmp_path, {}, make_dataset(client, *paths))
    for reference, folder, url in (
        ("a.jpg", "", "http://hub/a.jpg"),
        ("./a.jpg", "train/", "http://hub/train/a.jpg"),
        ("b.jpg", "train/", "http://hub/images/b.jpg"),
        ("elsewhere/c.jpg", "", "http://hub/deep/er/c.jpg"),
    ):
        name = images.locate(reference, 7, folder=folder).name
        assert images.images[name] == RemoteImage(url, "hf", 7, reference if "deep" in url else "")
    for reference in ("d.jpg", "none.jpg", "../a"):
        with pytest.raises(LorgnetteError, match="neither a URL nor a file of the data set"):
            images.locate(reference)


def test_two_references_that_only_a_name_leads_to_one_file_collide(tmp_path: Path) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        images = RemoteImages(tmp_path, {}, make_dataset(client, "flat/0.jpg", "flat/1.jpg", "C/2.jpg"))
    first = images.locate("A/0.jpg").name
    again = RemoteImages(tmp_path, images.images, images._dataset)  # a restart knows the first one from the journal
    names = [again.locate(reference).name for reference in ("A/0.jpg", "B/0.jpg", "A/1.jpg", "C/2.jpg")]
    assert names[0] == first != names[1]
    collisions = find_name_collisions(again.images)
    assert set(collisions) == set(names[:2])
    assert all("name alone" in message for message, _ in collisions.values())
    assert find_name_collisions(images.images) == {}


def test_a_name_that_two_images_have_is_not_enough_for_another_source(hub: Any, jpeg: Any, tmp_path: Path) -> None:
    """Photographs of COCO have their number as name, and are the same everywhere."""
    (tmp_path / "flat").mkdir()
    for name in ("0.jpg", "1.jpg", "000000000009.jpg"):
        (tmp_path / "flat" / name).write_bytes(jpeg(1))
    paths = {"a": "A/0.jpg", "b": "B/0.jpg", "c": "A/1.jpg", "d": "x/000000000009.jpg", "e": "y/000000000009.jpg"}
    images = {f"{name}.jpg": RemoteImage(f"{hub.url}/gone/{path}") for name, path in paths.items()}
    with (
        HttpClient(retry_policy=QUICK) as client,
        Journal.open(tmp_path / "d", {"source": "hf:me/set"}, "first") as journal,
    ):
        fallback = ImageFallback(str(tmp_path / "flat"), client)
        _, failures = download_images(images, journal, client, fallback, "train", ignore_progress)
    assert sorted(failures) == ["a.jpg", "b.jpg"]
    assert all("other images have the same name" in message for message, _ in failures.values())


def test_a_token_goes_to_its_hub_only(hub: Any, jpeg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    images = {
        "own.jpg": RemoteImage(hub.put("/own.jpg", jpeg(1)), "hf"),
        "other.jpg": RemoteImage(hub.put("/other.jpg", jpeg(2))),
    }
    with (
        HttpClient(retry_policy=QUICK) as client,
        Journal.open(tmp_path / "d", {"source": "hf:me/set"}, "first") as journal,
    ):
        journal.add_source("own.jpg", "known")
        result = download_images(images, journal, client, None, "train", ignore_progress)
    assert result == (2, {})
    assert "Authorization" in hub.requests("/own.jpg")[0].headers
    assert "Authorization" not in hub.requests("/other.jpg")[0].headers
    assert journal.sources == {"own.jpg": "known", "other.jpg": "127.0.0.1"}
    assert "secret" not in json.dumps({name: image.url for name, image in images.items()})


def provide(images_from: str, images: dict[Path, tuple[str, ...]]) -> tuple[list[str], int]:
    """(names of the images that arrived, number of files in the progress)"""
    progress: list[int] = []
    with HttpClient(retry_policy=QUICK) as client:
        fallback = ImageFallback(images_from, client)
        assert fallback.where == images_from
        arrivals = list(fallback.provide(images, lambda files, count: progress.append(files)))
    return [path.name for path in arrivals], sum(progress)


def test_official_names() -> None:
    official = ("COCO_train2014_000000011195.jpg", "000000011195.jpg")
    url = "https://dead/coco/2014/train2014/COCO_train2014_000000011195.jpg"
    assert list_file_names(url, 11195, "validation") == official
    assert list_file_names(url, None, "train") == official
    assert list_file_names("https://dead/x?id=3", 5, "val") == ("COCO_val2014_000000000005.jpg", "000000000005.jpg")
    assert list_file_names("https://dead/x?id=3", None, "train") == ()
    assert list_file_names("https://dead/a%20b.png", None, "train") == ("a b.png",)


@pytest.mark.parametrize("kind", ["folder", "zip", "host"])
def test_a_fallback_provides_images_under_any_of_their_names(
    kind: str, hub: Any, tmp_path: Path, jpeg: Any, zipped: Any
) -> None:
    contents = {"a.jpg": jpeg(1), "COCO_b.jpg": jpeg(2), "bad.jpg": b"<html>", "cut.jpg": jpeg(3)[:900]}
    path = tmp_path / "place"
    if kind == "folder":
        path.mkdir()
        for name, content in contents.items():
            (path / name).write_bytes(content)
    elif kind == "zip":
        path.write_bytes(zipped(**{f"x/{name}": content for name, content in contents.items()}))
    for name, content in contents.items():
        hub.put(f"/base/{name}", content)
    out = tmp_path / "out"
    images: dict[Path, tuple[str, ...]] = {
        out / "1.jpg": ("none.jpg", "a.jpg"),
        out / "2.jpg": ("COCO_b.jpg",),
        out / "3.jpg": ("bad.jpg", "cut.jpg"),
        out / "4.jpg": ("none.jpg",),
        out / "5.jpg": (),
    }
    arrivals, num_files = provide(hub.url + "/base" if kind == "host" else str(path), images)
    assert sorted(arrivals) == ["1.jpg", "2.jpg"]
    assert num_files == 2
    assert {path.name for path in out.iterdir()} == {"1.jpg", "2.jpg"}
    assert (out / "1.jpg").read_bytes() == jpeg(1)


def test_a_fallback_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(LorgnetteError, match="neither a folder nor a readable zip"):
        provide(str(tmp_path / "text"), {})
    with pytest.raises(LorgnetteError, match="no such folder or zip"):
        provide(str(tmp_path / "none"), {})


def test_a_zip_bomb_and_a_path_that_leaves_are_refused(
    tmp_path: Path, zipped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorgnette.data.image_resolver import read_member

    monkeypatch.setattr(read_member, "__kwdefaults__", {"max_bytes": 1 << 20})
    (tmp_path / "a.zip").write_bytes(zipped(**{"a.jpg": bytes(30 << 20)}))
    with pytest.raises(LorgnetteError, match="unpacks to more than 1,048,576 bytes"):
        provide(str(tmp_path / "a.zip"), {tmp_path / "x.jpg": ("a.jpg",)})
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../a.jpg", b"x")
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        provide(str(tmp_path / "b.zip"), {tmp_path / "x.jpg": ("a.jpg",)})
    assert not (tmp_path / "x.jpg").exists()
