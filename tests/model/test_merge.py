"""A merged checkpoint is the base's folder with other weights, and answers as base and adapter together do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorgnette.model import adapter
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.load import load
from lorgnette.model.merge import merge


def test_the_folder_is_the_bases_with_the_sum(
    tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    tuned = adapter.load(loaded(), saved)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        together, alone = tuned(input_ids=ids).logits, loaded()(input_ids=ids).logits
    merge(tuned, Checkpoint.at(tiny), tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in tiny.iterdir()}
    for path in tiny.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    read = load(Checkpoint.at(tmp_path / "merged"), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        found = read(input_ids=ids).logits
    torch.testing.assert_close(found, together, atol=1e-4, rtol=0)
    assert (found - alone).abs().max() > 1e-2  # the adapter says something


def test_it_is_written_in_the_checkpoints_dtype(
    tiny: Path, saved: Path, loaded: Callable[[], Any], tmp_path: Path
) -> None:
    half = shutil.copytree(tiny, tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    merge(adapter.load(loaded(), saved), Checkpoint.at(half), tmp_path / "merged")
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16}
