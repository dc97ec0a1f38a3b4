"""Weights are loaded under transformers' names, into strided destinations too; what does not fit is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import QuantState
from safetensors.torch import load_file, save_file
from tiny_models import dequantize_with_bitsandbytes, write_nf4_checkpoint

from lorgnette.engine.peft_engine import load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4
from lorgnette.models import weight_loader
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD, convert_weight_name
from lorgnette.models.nf4_weights import list_parts
from lorgnette.models.quantization import STATE
from lorgnette.models.registry import parse_configs
from lorgnette.models.weight_loader import index_tensors, list_nf4_modules, load_weights_into

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=CUDA)]
SUFFIX = "layers.0.mlp.gate_proj.weight"
FILE_NAME, NAME = f"model.{SUFFIX}", f"model.language_model.{SUFFIX}"  # in the hub's files, and in transformers


def load_weights(
    checkpoint: BaseCheckpoint, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    tensors = index_tensors(checkpoint)
    weights = {name: torch.empty(entry.shape, dtype=dtype, device=device) for name, entry in tensors.items()}
    load_weights_into(checkpoint, weights)
    return weights


def list_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    text, vision = parse_configs(BaseCheckpoint.from_folder(folder).load_hf_config())
    return text.list_weight_shapes() | vision.list_weight_shapes()


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "m")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_equal_those_of_transformers(tiny: Path, device: torch.device, dtype: torch.dtype) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    expected = load_base_model(checkpoint, CPU, dtype).state_dict()
    weights = load_weights(checkpoint, device, dtype)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert (tensor.dtype, tensor.device.type) == (dtype, device.type)
        assert torch.equal(tensor.cpu(), expected[name]), name
    assert index_tensors(checkpoint)[LM_HEAD] == index_tensors(checkpoint)[EMBEDDING]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("read_bytes", [64, 1000, 2**24])
def test_destinations_may_be_slices_and_nothing_beside_them_changes(
    tiny: Path, device: torch.device, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_loader, "READ_BYTES", read_bytes)
    checkpoint = BaseCheckpoint.from_folder(tiny)
    tensors = load_weights(checkpoint)
    matrices = {n: torch.full((*t.shape[:-1], t.shape[-1] + 3), 7.0, device=device) for n, t in tensors.items()}
    load_weights_into(checkpoint, {name: matrix[..., 1:-2] for name, matrix in matrices.items()})
    for name, matrix in matrices.items():
        assert torch.equal(matrix[..., 1:-2].cpu(), tensors[name]), name
        assert (matrix[..., [0, -2, -1]] == 7).all()


def test_a_write_into_a_loaded_tensor_leaves_the_file_unchanged(copy: Path) -> None:
    path = copy / "model.safetensors"
    before = path.read_bytes()
    tensor = load_weights(BaseCheckpoint.from_folder(copy), CPU, torch.bfloat16)[NAME]
    tensor.zero_()
    assert not tensor.any()
    assert path.read_bytes() == before


def test_a_stored_output_layer_is_loaded_unless_the_config_ties_it(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {LM_HEAD: tensors["model.embed_tokens.weight"] + 1}, copy / "model.safetensors")
    tied = load_weights(BaseCheckpoint.from_folder(copy))
    assert torch.equal(tied[LM_HEAD], tied[EMBEDDING])
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    untied = load_weights(BaseCheckpoint.from_folder(copy))
    assert not torch.equal(untied[LM_HEAD], untied[EMBEDDING])


def test_shards_are_one_checkpoint(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, copy / f"s{i}.safetensors")
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": "s0.safetensors", "b": "s1.safetensors"}}')
    assert torch.equal(load_weights(BaseCheckpoint.from_folder(copy), CPU, torch.bfloat16)[NAME], tensors[FILE_NAME])


def test_missing_and_misshapen_weights_are_counted_and_named(tiny: Path, copy: Path) -> None:
    destinations = {name: torch.zeros(shape) for name, shape in list_shapes(tiny).items()}
    load_weights_into(BaseCheckpoint.from_folder(tiny), destinations)
    tensors = load_file(tiny / "model.safetensors")
    for changed, message in (
        ({n: t for n, t in tensors.items() if n != FILE_NAME}, f"1 missing ({NAME})"),
        (tensors | {FILE_NAME: torch.zeros(3, 3)}, f"1 of another shape ({NAME})"),
        ({n: t for n, t in tensors.items() if "visual" not in n}, "missing (model.visual.blocks.0."),
    ):
        save_file(changed, copy / "model.safetensors")
        with pytest.raises(LorgnetteError, match="weights do not fit the model: ") as caught:
            load_weights_into(BaseCheckpoint.from_folder(copy), destinations)
        assert message in caught.value.message
        assert len(caught.value.message) < 300
        assert (caught.value.where, caught.value.hint) == (str(copy), "download the checkpoint again, whole")


def test_both_kinds_of_mismatch_are_in_one_error(tiny: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"1 missing, 1 of another shape \(nowhere, "):
        load_weights_into(BaseCheckpoint.from_folder(tiny), {NAME: torch.zeros(2), "nowhere": torch.zeros(2)})


@pytest.mark.parametrize("num_bytes", [0, 4, -1000])
def test_a_truncated_file_is_refused(copy: Path, num_bytes: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(LorgnetteError, match=r"weights cannot be loaded: .* · download the checkpoint again, whole"):
        index_tensors(BaseCheckpoint.from_folder(copy))


def test_a_file_truncated_during_the_read_is_refused(tiny: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = BaseCheckpoint.from_folder(copy)
    entry = index_tensors(checkpoint)[NAME]
    (chunk,) = weight_loader._split_into_chunks(entry, torch.empty(entry.shape))
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(LorgnetteError, match="weights cannot be loaded: the file has become shorter"):
        weight_loader._fill_buffer(torch.empty(entry.end - entry.start, dtype=torch.uint8), [chunk], checkpoint)


def test_integer_weights_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {FILE_NAME: torch.zeros(3, 3, dtype=torch.int8)}, copy / "model.safetensors")
    with pytest.raises(LorgnetteError, match=f"{FILE_NAME} is stored as I8"):
        index_tensors(BaseCheckpoint.from_folder(copy))


@pytest.mark.parametrize("read_bytes", [64, 1000, 2**24])
def test_every_byte_is_read_once(tiny: Path, read_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path to CUDA up to the copy: reads are grouped, filled and viewed as their dtype."""
    monkeypatch.setattr(weight_loader, "READ_BYTES", read_bytes)
    checkpoint = BaseCheckpoint.from_folder(tiny)
    tensors = index_tensors(checkpoint)
    destinations = {name: torch.zeros(entry.shape) for name, entry in tensors.items()}
    for read in weight_loader._group_reads(
        [(tensors[name], destination) for name, destination in destinations.items()]
    ):
        size = read[-1].end - read[0].start
        assert size <= max(read_bytes, 1176 * 2)  # at least one row
        buffer = torch.empty(size + -size % 8, dtype=torch.uint8)
        weight_loader._fill_buffer(buffer, read, checkpoint)
        views = weight_loader._view_buffer(buffer, [read])
        for chunk in read:
            weight_loader._copy_chunk(chunk, weight_loader._view_chunk(chunk, read[0].start, views))
    for name, tensor in load_weights(checkpoint).items():
        assert torch.equal(destinations[name], tensor), name


@pytest.fixture(scope="module", params=[True, False], ids=["double quantization", "fp32 absmax"])
def stored(tiny: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("nf4") / "model"
    return write_nf4_checkpoint(folder, tiny, has_double_quantization=request.param)


def allocate_destinations(
    checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor | Nf4Matrix]:
    """NF4 matrices for the projections, tensors for the rest, the tower's NF4 too."""
    modules = list_nf4_modules(checkpoint)
    shapes = list_shapes(checkpoint.folder)
    return {
        name: Nf4Matrix.allocate((shape[0], shape[1]), device, is_nested=modules[name.removesuffix(".weight")])
        if name.removesuffix(".weight") in modules and "visual" not in name
        else torch.full(shape, 7.0, device=device, dtype=dtype)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("device", "read_bytes"),
    [(CPU, 0), *(pytest.param(torch.device("cuda"), size, marks=CUDA) for size in (64, 2**24))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_read_byte_for_byte_or_quantized_to_the_same(
    tiny: Path, stored: Path, device: torch.device, dtype: torch.dtype, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored checkpoint has bitsandbytes' bytes; quantizing the original while it is read gives equal numbers."""
    monkeypatch.setattr(weight_loader, "READ_BYTES", read_bytes)
    checkpoint = BaseCheckpoint.from_folder(stored)
    weights = allocate_destinations(checkpoint, device, dtype)
    load_weights_into(checkpoint, weights, quantize_as=dtype)
    parts = {convert_weight_name(name): tensor for name, tensor in load_file(stored / "model.safetensors").items()}
    is_nested = f"{NAME}.nested_absmax" in parts
    matrices = {name: matrix for name, matrix in weights.items() if isinstance(matrix, Nf4Matrix)}
    assert NAME in matrices
    for name, matrix in matrices.items():
        for part, tensor in list_parts(name, matrix).items():
            assert torch.equal(tensor.cpu(), parts[part].flatten())
        assert (matrix.nested is not None) == is_nested

    # A plain destination of NF4 gets its numbers, which are not those of the original.
    tower, original = "model.visual.blocks.0.attn.qkv.weight", load_weights(BaseCheckpoint.from_folder(tiny))
    state = QuantState.from_dict(
        {name.removeprefix(f"{tower}."): part for name, part in parts.items() if name.startswith(f"{tower}.")}, CPU
    )
    state.dtype = dtype
    actual = weights[tower]
    assert isinstance(actual, torch.Tensor)
    assert torch.equal(actual.cpu(), dequantize_with_bitsandbytes(parts[tower], state))
    assert not torch.equal(actual.float().cpu(), original[tower])

    # Quantizing while loading.
    checkpoint = BaseCheckpoint.from_folder(tiny).quantize("nf4")
    quantized = allocate_destinations(checkpoint, device, torch.float32)
    load_weights_into(checkpoint, quantized, quantize_as=torch.float32)
    for name, matrix in matrices.items():
        other = quantized[name]
        assert isinstance(other, Nf4Matrix)
        assert torch.equal(other.packed, matrix.packed)
        if is_nested and device.type == "cpu":  # a CPU rounds 8-bit absmax otherwise, in bitsandbytes too
            numbers = [torch.empty(matrix.shape) for _ in range(2)]
            dequantize_nf4(matrix, numbers[0])
            dequantize_nf4(other, numbers[1])
            assert torch.equal(*numbers)


def rename_key(state: torch.Tensor, key: str) -> torch.Tensor:
    return torch.tensor(list(bytes(state.tolist()).replace(key.encode(), b"x")), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("absmax", None, r"1 missing \(.*absmax\)"),
        ("absmax", lambda absmax: absmax[1:].clone(), "1 of another shape"),
        ("absmax", lambda absmax: absmax.to(torch.int8), "stored as I8"),
        ("nested_absmax", lambda absmax: absmax.double(), "is stored as torch.float64"),
        (STATE, lambda state: state[:-9].clone(), "broken JSON"),
        (STATE, lambda state: rename_key(state, "nested_blocksize"), "has double quantization in one"),
    ],
    ids=["missing", "short", "another dtype", "nested in another dtype", "broken state", "state of another kind"],
)
def test_a_broken_nf4_weight_is_named(
    tiny: Path, tmp_path: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor] | None, message: str
) -> None:
    folder = write_nf4_checkpoint(tmp_path / "m", tiny)
    checkpoint = BaseCheckpoint.from_folder(folder)
    destinations = allocate_destinations(checkpoint, CPU, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(f"{FILE_NAME}.{part}")
    save_file(
        tensors if change is None else tensors | {f"{FILE_NAME}.{part}": change(tensor)}, folder / "model.safetensors"
    )
    with pytest.raises(LorgnetteError, match=message):
        load_weights_into(checkpoint, destinations)


def test_an_nf4_weight_of_another_shape_is_named(tiny: Path, stored: Path) -> None:
    checkpoint = BaseCheckpoint.from_folder(stored)
    rows, columns = list_shapes(tiny)[NAME]
    for destination in (torch.empty(columns, rows), Nf4Matrix.allocate((columns, rows), CPU, is_nested=True)):
        with pytest.raises(LorgnetteError, match="1 of another shape"):
            load_weights_into(checkpoint, {NAME: destination})
