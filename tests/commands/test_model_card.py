"""The model card of a merged model: its facts, its metadata, and code that runs as it stands."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lorgnette.commands.model_card import BASE_CARD_FILE, CARD_FILE, write_model_card
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.engine.peft_engine import load_adapter, load_base_model
from lorgnette.lora.merge import Rounding, write_merged_checkpoint
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.report.console import Terminal
from lorgnette.verification.judgement import judge_adapter

PROMPT = 'Say | "what" 😀:'
BASE_CARD = "---\nlicense: other\nlicense_name: tongyi-qianwen\nlanguage:\n- en\n---\n# The base\n"


def merge_into(adapter: Path, folder: Path, prepare: Callable[[Path], object] = lambda folder: None) -> str:
    """Merge as `merge` does, and return the card. prepare: what else the base model's folder held."""
    spec = judge_adapter(None, adapter, Terminal()).require(Terminal())
    assert spec.adapter is not None
    base = load_base_model(spec.checkpoint, torch.device("cpu"), torch.float32)
    rounding = write_merged_checkpoint(load_adapter(base, spec.adapter), spec.checkpoint, folder)
    prepare(folder)
    assert spec.metadata is not None
    fingerprint = BaseCheckpoint.from_folder(folder).fingerprint
    spec.metadata.model_copy(update={"fingerprint": fingerprint}).write(folder)
    write_model_card(folder, spec, rounding)
    return (folder / CARD_FILE).read_text(encoding="utf-8")


@pytest.fixture
def adapter(make_settings: Callable[..., Settings]) -> Path:
    words = (
        "train.learning_rate=1e-1",
        f"data.prompt={PROMPT}",
        "predict.max_new_tokens=6",
        "image_size=28x56",
        "lora.alpha=16",
    )
    return train(make_settings(*words, "device=cpu")).adapter


def read_metadata(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_is_known_and_its_code_runs(
    adapter: Path, tmp_path: Path, cli: Callable[..., Any], fork_command: Callable[..., list[str]]
) -> None:
    card = merge_into(adapter, tmp_path / "merged")
    assert read_metadata(card) == {
        "library_name": "transformers", "pipeline_tag": "image-text-to-text",
        "tags": ["lorgnette", "lora", "vision-language-model"],
    }  # fmt: skip
    for line in (
        "# merged\n\ntiny, fine-tuned on",
        "| base model | tiny |",
        "| data | captions.csv (4 images trained on) |",
        r'| prompt | `"Say \| \"what\" 😀:"` |',
        "| image size | 28×56 pixels |",
        "| optimizer steps | 2 |",
        "| continued from | the base model |",
        "| LoRA | rank 2, alpha 16 |",
        "| weights | bfloat16; rounding to it kept 100% of what the adapter changes in them |",
        "On 2 held-out questions, with 95 % intervals",
        "| ROUGE-L | 0.000 |",
        "Resize images to 28×56 pixels, as in training",
        "--outtype bf16",
        "FROM ./mmproj.gguf",
        "Unknown: the folder of tiny names none.",
    ):
        assert line in card, line
    assert re.search(r"\| trained \| 20\d\d-\d\d-\d\d \|\n\| versions \| lorgnette .*, torch .*, peft ", card)
    assert str(tmp_path) not in card

    # Its Python code answers in plain transformers as lorgnette does, in float32, in which lorgnette runs on a CPU.
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'dtype="auto"' in code
    code = code.replace('dtype="auto"', 'dtype="float32"')
    script = tmp_path / "card.py"
    folder = f'folder = "{tmp_path / "merged"}"'
    script.write_text(
        code.replace('folder = "."', folder).replace("image.png", str(tmp_path / "red.png"))
        + "\nimport sys\nassert not [m for m in sys.modules if m.startswith('lorgnette')]\n"
    )
    ran = subprocess.run(fork_command(script, plain=True), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer = cli("predict", tmp_path / "red.png", "--model", tmp_path / "merged", "--max-new-tokens", 6)
    assert json.loads(answer.out.split("\t")[1]) == ran.stdout.removesuffix("\n")
    assert ran.stdout.strip()


def test_what_is_not_known_is_said(adapter: Path, tmp_path: Path) -> None:
    """An adapter without its run; a base model with a card and a license, which stay."""

    def prepare(folder: Path) -> None:
        (folder / CARD_FILE).write_text(BASE_CARD)
        (folder / "LICENSE").write_text("…")

    alone = adapter.rename(tmp_path / "alone")
    (tmp_path / "run" / "config.yaml").unlink()
    metadata = json.loads((alone / "lorgnette.json").read_text())
    origin = {"name": "runs/first", "step": 62, "sha256": "0"}
    (alone / "lorgnette.json").write_text(json.dumps(metadata | {"origin": origin}))
    card = merge_into(alone, tmp_path / "merged", prepare)
    for line in (
        "| data | unknown |",
        "| trained | unknown |",
        "| versions | unknown |",
        "| continued from | runs/first, step 62 |",
        "Not known: the merged adapter is without its run's answers to held-out images.",
        "That of the base model, tiny: its card says `tongyi-qianwen`. Its text is in LICENSE.",
    ):
        assert line in card, line
    assert read_metadata(card)["license_name"] == "tongyi-qianwen"
    assert (tmp_path / "merged" / BASE_CARD_FILE).read_text() == BASE_CARD


def test_a_card_of_another_base_model(adapter: Path, tmp_path: Path) -> None:
    """A base model's card that is broken names no license; a name on a hub is in the metadata, a path is nowhere."""
    spec = judge_adapter(None, adapter, Terminal()).require(Terminal())
    assert spec.metadata is not None
    for content in ("---\nlicense: [\n---\n", "# no metadata", "---\n- a list\n---\n"):
        (tmp_path / CARD_FILE).write_text(content)
        write_model_card(tmp_path, spec, Rounding("float32"))
        card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
        assert "license" not in read_metadata(card)
        assert "vllm serve . --dtype float32" in card
        assert "--outtype f32" in card
        assert (tmp_path / BASE_CARD_FILE).read_text() == content
    for name, is_named in (("Qwen/Qwen2-VL-2B-Instruct", True), ("/home/someone/Qwen2-VL", False), ("./a/b", False)):
        metadata = spec.metadata.model_copy(update={"model": name})
        write_model_card(tmp_path, replace(spec, metadata=metadata), Rounding("bfloat16"))
        card = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
        assert read_metadata(card).get("base_model") == (name if is_named else None)
        assert "someone" not in card
