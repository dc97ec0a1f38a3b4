"""The weights in place are those of the file, under today's names, or it is said which are not."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.engine.hf_loading import load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import weights as module
from lorgnette.models.qwen2_vl.config import EMBEDDING, LM_HEAD, TextConfig, VisionConfig, load_hf_config
from lorgnette.models.qwen2_vl.weights import check_weight_shapes, index_tensors, load_weights, load_weights_into

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]
ONE = "layers.0.mlp.gate_proj.weight"
SAVED, OURS = f"model.{ONE}", f"model.language_model.{ONE}"  # on the hub, and in transformers


def everything(name: str) -> bool:
    return True


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    config = load_hf_config(BaseCheckpoint.from_folder(folder))
    return (
        TextConfig.from_hf_config(config).list_weight_shapes()
        | VisionConfig.from_hf_config(config).list_weight_shapes()
    )


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "m")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_transformers_loads(tiny: Path, device: torch.device, dtype: torch.dtype) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    theirs = load_base_model(checkpoint, CPU, dtype).state_dict()
    ours = load_weights(checkpoint, everything, device, dtype)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.device.type) == (dtype, device.type)
        assert torch.equal(tensor.cpu(), theirs[name]), name
    assert ours[LM_HEAD] is ours[EMBEDDING]


def test_only_what_is_wanted_is_read(tiny: Path) -> None:
    names = load_weights(BaseCheckpoint.from_folder(tiny), lambda name: "merger" in name, CPU, torch.float32).keys()
    assert names == {name for name in sizes(tiny) if "merger" in name} != set()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("at_once", [64, 1000, 2**24])
def test_places_may_be_slices_and_nothing_beside_them_changes(
    tiny: Path, device: torch.device, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", at_once)
    checkpoint = BaseCheckpoint.from_folder(tiny)
    found = load_weights(checkpoint, everything, CPU, torch.float32)
    wide = {n: torch.full((*t.shape[:-1], t.shape[-1] + 3), 7.0, device=device) for n, t in found.items()}
    load_weights_into(checkpoint, {name: matrix[..., 1:-2] for name, matrix in wide.items()})
    for name, matrix in wide.items():
        assert torch.equal(matrix[..., 1:-2].cpu(), found[name]), name
        assert (matrix[..., [0, -2, -1]] == 7).all()


def test_reading_leaves_the_file_alone(copied: Path) -> None:
    path = copied / "model.safetensors"
    before = path.read_bytes()
    (
        tensor := load_weights(BaseCheckpoint.from_folder(copied), lambda name: name == OURS, CPU, torch.bfloat16)[OURS]
    ).zero_()
    assert not tensor.any()
    assert path.read_bytes() == before


def test_an_output_layer_of_its_own_is_read_unless_the_config_ties_it(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {LM_HEAD: tensors["model.embed_tokens.weight"] + 1}, copied / "model.safetensors")
    tied = load_weights(BaseCheckpoint.from_folder(copied), everything, CPU, torch.float32)
    assert tied[LM_HEAD] is tied[EMBEDDING]
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    untied = load_weights(BaseCheckpoint.from_folder(copied), everything, CPU, torch.float32)
    assert not torch.equal(untied[LM_HEAD], untied[EMBEDDING])
    check_weight_shapes(BaseCheckpoint.from_folder(copied), sizes(copied))


def test_shards_are_one_checkpoint(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, copied / f"s{i}.safetensors")
    (copied / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "s0.safetensors", "b": "s1.safetensors"}}'
    )
    check_weight_shapes(BaseCheckpoint.from_folder(copied), sizes(copied))
    assert torch.equal(
        load_weights(BaseCheckpoint.from_folder(copied), everything, CPU, torch.bfloat16)[OURS], tensors[SAVED]
    )


def test_weights_that_do_not_fit_are_counted_and_named(tiny: Path, copied: Path) -> None:
    check_weight_shapes(BaseCheckpoint.from_folder(tiny), sizes(tiny))
    tensors = load_file(tiny / "model.safetensors")
    for changed, what in (
        ({n: t for n, t in tensors.items() if n != SAVED}, f"1 missing ({OURS})"),
        (tensors | {"extra.weight": torch.zeros(2)}, "1 unexpected (extra.weight)"),
        (tensors | {SAVED: torch.zeros(3, 3)}, f"1 of another shape ({OURS})"),
        ({n: t for n, t in tensors.items() if "visual" not in n}, "missing (model.visual.blocks.0."),
    ):
        save_file(changed, copied / "model.safetensors")
        with pytest.raises(LorgnetteError, match="weights do not fit the model: ") as caught:
            check_weight_shapes(BaseCheckpoint.from_folder(copied), sizes(copied))
        assert what in caught.value.message
        assert len(caught.value.message) < 300
        assert (caught.value.where, caught.value.hint) == (str(copied), "download the checkpoint again, whole")


def test_a_place_of_another_shape_is_refused(tiny: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"1 missing, 1 of another shape \(nowhere, "):
        load_weights_into(BaseCheckpoint.from_folder(tiny), {OURS: torch.zeros(2), "nowhere": torch.zeros(2)})


@pytest.mark.parametrize("kept", [0, 4, -1000])
def test_a_download_that_was_cut_off_is_refused(copied: Path, kept: int) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(LorgnetteError, match=r"weights cannot be loaded: .* · download the checkpoint again, whole"):
        index_tensors(BaseCheckpoint.from_folder(copied))


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(
    tiny: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = BaseCheckpoint.from_folder(copied)
    entry = index_tensors(checkpoint)[OURS]
    (piece,) = module._split_into_chunks(entry, torch.empty(entry.shape))
    (copied / "model.safetensors").write_bytes(b"")
    with pytest.raises(LorgnetteError, match="became shorter"):
        module._fill_buffer(torch.empty(entry.end - entry.start, dtype=torch.uint8), [piece], checkpoint)


def test_numbers_that_are_no_floats_are_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {SAVED: torch.zeros(3, 3, dtype=torch.int8)}, copied / "model.safetensors")
    with pytest.raises(LorgnetteError, match=f"{SAVED} is stored as I8"):
        index_tensors(BaseCheckpoint.from_folder(copied))


@pytest.mark.parametrize("at_once", [64, 1000, 2**24])
def test_every_byte_is_in_one_read(tiny: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The road to CUDA, up to the copy: reads laid out, filled, and seen as numbers again."""
    monkeypatch.setattr(module, "READ_BYTES", at_once)
    checkpoint = BaseCheckpoint.from_folder(tiny)
    found = index_tensors(checkpoint)
    places = {name: torch.zeros(entry.shape) for name, entry in found.items()}
    for read_ in module._group_reads([(found[name], place) for name, place in places.items()]):
        buffer = torch.empty(read_[-1].end - read_[0].start, dtype=torch.uint8)
        assert len(buffer) <= max(at_once, 1176 * 2)  # one row at the least
        module._fill_buffer(buffer, read_, checkpoint)
        for piece in read_:
            module._copy_chunk(piece, buffer[piece.start - read_[0].start : piece.end - read_[0].start])
    for name, tensor in load_weights(checkpoint, everything, CPU, torch.float32).items():
        assert torch.equal(places[name], tensor), name


def test_neither_transformers_nor_peft_is_needed(tiny: Path) -> None:
    import subprocess

    code = (
        "import sys, torch; from pathlib import Path; from lorgnette.models.base_checkpoint import Checkpoint;"
        "from lorgnette.models.qwen2_vl.weights import read;"
        f"read(Checkpoint.at(Path({str(tiny)!r})), lambda name: True, torch.device('cpu'), torch.float32);"
        "sys.exit('transformers' in sys.modules or 'peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
