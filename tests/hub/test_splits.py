from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.splits import detect_layout, guess_split, normalize_split, select_split


def repository(*paths: str, card: Any = None) -> Repository:
    return Repository(
        "hf", "me/set", "main", tuple(RepositoryFile(path, 1, None, "u") for path in paths), card=card or {}
    )


def shown(*paths: str, card: Any = None) -> dict[str, dict[str, list[str]]]:
    result = detect_layout(repository(*paths, card=card))
    return {
        config: {s: [file.path for file in files] for s, files in splits.items()} for config, splits in result.items()
    }


def test_splits_are_guessed_from_names() -> None:
    for path, split in {
        "data/train-00000-of-00002.parquet": "train",
        "data/val-0.parquet": "validation",
        "captions_train2014.csv": "train",
        "val.csv.zip": "validation",
        "test/0.tar": "test",
        "dev/x.jsonl": "validation",
        "0000.parquet": "train",
        "latest/constrained.csv": "train",
        "train/test-0.parquet": "test",
    }.items():
        assert guess_split(path) == split
    assert normalize_split("valid") == "validation"
    assert normalize_split("restval") == "restval"


def test_layouts_by_name() -> None:
    assert shown("data/train-1.parquet", "data/train-0.parquet", "data/val-0.parquet", "README.md", "x.csv") == {
        "default": {"train": ["data/train-0.parquet", "data/train-1.parquet"], "validation": ["data/val-0.parquet"]}
    }
    assert shown("en/train.parquet", "de/train.parquet", "de/test.parquet") == {
        "en": {"train": ["en/train.parquet"]},
        "de": {"train": ["de/train.parquet"], "test": ["de/test.parquet"]},
    }
    assert shown("train/0.tar", "test/0.tar", "nshards.txt") == {
        "default": {"train": ["train/0.tar"], "test": ["test/0.tar"]}
    }
    assert shown("train.csv", "dataset_infos.json", "configuration.json") == {"default": {"train": ["train.csv"]}}
    assert shown("set.py", "README.md", "dataset_infos.json", "images.zip") == {}
    assert shown("data.zip") == {"default": {"train": ["data.zip"]}}
    assert shown("a/captions_val2017.json", "a/captions_train2017.json", "a/instances_val2017.json") == {
        "default": {"train": ["a/captions_train2017.json"], "validation": ["a/captions_val2017.json"]}
    }
    assert shown("train/a.jpg", "train/a.txt", "test/b.png", "test/b.txt", "x/c.jpg", "LICENSE.txt", "y.zip") == {
        "default": {"test": ["test/"], "train": ["train/"]}
    }
    assert shown("a.jpg", "a.txt", "b.JPG") == {"default": {"train": [""]}}


def test_layouts_as_the_card_declares_them() -> None:
    paths = ("de/a.parquet", "de/b.parquet", "en/a.parquet", "x.jpg")
    card = {
        "configs": [
            {
                "config_name": "de",
                "data_files": [{"split": "train", "path": "de/a.*"}, {"split": "dev", "path": ["de/b.*"]}],
            },
            {"config_name": "en", "data_files": "*.parquet", "data_dir": "en"},
            {"config_name": "all", "data_files": ["**/a.parquet"]},
            {"config_name": "map", "data_files": {"one": "de/*"}},
            {"config_name": "empty", "data_files": "none/*"},
            {"config_name": "odd"},
        ]
    }
    assert shown(*paths, card=card) == {
        "de": {"train": ["de/a.parquet"], "dev": ["de/b.parquet"]},
        "en": {"train": ["en/a.parquet"]},
        "all": {"train": ["de/a.parquet", "en/a.parquet"]},
        "map": {"one": ["de/a.parquet", "de/b.parquet"]},
    }


def test_a_split_may_be_inside_the_only_json() -> None:
    result = detect_layout(repository("dataset_coco.json"))
    assert select_split(result, ("restval",), where="x")[1:3] == ("", "restval")
    assert select_split(result, ("train",), where="x")[1:3] == ("train", "train")
    with pytest.raises(LorgnetteError, match="there is no split 'test'"):
        select_split(detect_layout(repository("train.csv")), ("test",), where="x")


def test_a_split_is_selected() -> None:
    result = detect_layout(repository("en/train.csv", "en/val.csv", "de/test.csv"))
    assert select_split(result, ("en",), where="x")[:3] == ("en", "train", None)
    assert select_split(result, ("en", "dev"), where="x")[:3] == ("en", "validation", "dev")
    assert select_split(result, ("de",), where="x")[:3] == ("de", "test", None)
    for words, match in {
        (): "there are several configs: de, en · x · write x:CONFIG",
        ("fr", "train"): "there is no config 'fr' · x · use one of de, en",
        ("en", "test"): "there is no split 'test'; the splits are train, validation · x · write x:train",
        ("a", "b", "c"): "too many colons",
    }.items():
        with pytest.raises(LorgnetteError, match=match):
            select_split(result, words, where="x")
