"""Every reader of a small file takes a damaged one, or refuses it in one line, in bounded time and memory."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import RUNS_ALL, change_json, damage_bytes, limits, replace_file

from lorgnette import config
from lorgnette.config import ProcessorSettings, Settings
from lorgnette.errors import LorgnetteError
from lorgnette.hub.models import is_complete_model
from lorgnette.io.parse import find_weights_fault
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_config import read_peft_config
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.chat_template import ChatTemplate
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.tokenizer import TextTokenizer
from lorgnette.report.predictions import read_predictions
from lorgnette.report.run_log import RunLog, read_log
from lorgnette.verification.reference_sample import ReferenceSample


def _read_jinja(path: Path) -> None:
    """It is read where there is no chat_template.json."""
    (path.parent / "chat_template.json").unlink(missing_ok=True)
    ChatTemplate.from_folder(path.parent).check()


NUM_CASES = 60 if RUNS_ALL else 4
"""Of each file."""
READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": lambda path: config.load_settings(config.read_recipe(path), where=str(path)),
    "predictions.jsonl": read_predictions,
    "log.jsonl": lambda path: (read_log(path), RunLog.resume(path, 2).close()),
    "lorgnette.json": lambda path: AdapterMetadata.load_or_infer(path.parent),
    "adapter_config.json": lambda path: read_peft_config(path.parent),
    "reference_sample.json": lambda path: ReferenceSample.load(path.parent),
    "adapter_model.safetensors": find_weights_fault,
    "model.safetensors": lambda path: BaseCheckpoint.from_folder(path.parent).fingerprint,
    "model.safetensors.index.json": lambda path: is_complete_model(path.parent),
    "config.json": lambda path: BaseCheckpoint.from_folder(path.parent).load_hf_config(),
    "preprocessor_config.json": lambda path: ImageProcessor.from_folder(path.parent, ProcessorSettings()),
    "tokenizer_config.json": lambda path: TextTokenizer.from_folder(path.parent),
    "vocab.json": lambda path: TextTokenizer.from_folder(path.parent).encode("a red cat"),
    "merges.txt": lambda path: TextTokenizer.from_folder(path.parent).encode("a red cat"),
    "chat_template.json": lambda path: ChatTemplate.from_folder(path.parent).check(),
    "chat_template.jinja": _read_jinja,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path, saved: Path) -> Path:
    """A folder with each of the files, undamaged."""
    folder = tmp_path_factory.mktemp("whole")
    for source in (tiny, saved):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "config.yaml").write_text(config.dump_settings(Settings()))
    row = {"id": "1", "images": ["a.png"], "prompt": "?", "references": ["a"], "base": "b", "tuned": "c"}
    (folder / "predictions.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    records = [{"kind": "train", "step": step, "loss": 1.5, "learning_rate": 1e-4} for step in (1, 2, 3)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    source = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(source)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    sample = {
        "prompt": "?", "processor": ProcessorSettings().model_dump(mode="json"), "prompt_ids": [1], "answer_ids": [2],
        "loss": 0.5, "dtype": "float32",
    }  # fmt: skip
    (folder / "reference_sample.json").write_text(json.dumps(sample))
    (folder / "reference_sample.png").touch()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.mark.parametrize("name", READERS)
def test_the_whole_file_is_read(name: str, copy: Path) -> None:
    """A control: nothing is refused unless it is damaged."""
    READERS[name](copy / name)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file(name: str, copy: Path) -> None:
    path = copy / name
    content = path.read_bytes()
    for seed in range(NUM_CASES):
        rng = random.Random(f"{name} {seed}")
        if path.suffix == ".json" and rng.random() < 0.6:
            path.write_text(change_json(rng, json.loads(content)))
        elif rng.random() < 0.3:
            replace_file(rng, path)
        else:
            path.write_bytes(damage_bytes(rng, content))
        refusal = ""
        try:
            with limits():
                READERS[name](path)
        except LorgnetteError as error:
            refusal = str(error)
        except (FileNotFoundError, IsADirectoryError, OSError) as error:  # the command line prints the system's message
            refusal = str(error.strerror)
            assert refusal
        assert len(refusal) < 1000, seed
        assert "\n" not in refusal, seed
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)
