"""One judgement of an adapter: 90 hostile or broken folders each end in one line, the same for every command."""

import ast
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lorgnette.commands.compare_candidates import resolve_candidates
from lorgnette.commands.merge import merge
from lorgnette.commands.predict import load_model_spec
from lorgnette.commands.verify import verify
from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora import peft_config, peft_files
from lorgnette.lora.metadata import METADATA_FILE
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.report.console import Terminal
from lorgnette.verification import judgement
from lorgnette.verification.judgement import judge_adapter
from lorgnette.verification.reference_sample import IMAGE_FILE, SAMPLE_FILE, ReferenceSample, _split_ids, make_sample

Change = Callable[[Path], object]
NAME = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
SECONDS = 10.0
"""A judgement takes 0.1 s; the rest is for a busy machine."""


@pytest.fixture(scope="module")
def whole(saved: Path, adapter_metadata: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with all of lorgnette's files."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    shutil.copytree(saved, folder)
    processor = ModelSpec.from_names(str(tiny), None, Terminal()).processor
    adapter_metadata.model_copy(update={"chat_template": processor.chat_template.source}).write(folder)
    processor = ModelSpec.from_names(None, folder, Terminal()).processor
    prompt_ids, answer_ids = _split_ids(make_sample(processor, adapter_metadata.prompt))
    sample = ReferenceSample(
        prompt=adapter_metadata.prompt, processor=processor.settings, prompt_ids=prompt_ids, answer_ids=answer_ids,
        loss=1.0, dtype="float32",
    )  # fmt: skip
    sample.save(folder)
    return folder


@pytest.fixture
def adapter(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "adapter")


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edited(name: str, **values: object) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def replaced(name: str, old: str, new: str) -> Change:
    """Change the text of a file, for what json.dumps cannot write."""

    def change(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new))

    return change


def config(**values: object) -> Change:
    return edited(CONFIG_FILE, **values)


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE)


def cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def linked(name: str, target: str) -> Change:
    return lambda folder: ((folder / name).unlink(), (folder / name).symlink_to(target))


def header(content: object, *, length: int | None = None) -> Change:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return text(WEIGHTS_FILE, (len(data) if length is None else length).to_bytes(8, "little") + data)


def one(tensor: torch.Tensor) -> Change:
    """One tensor of another kind in the place of A."""
    return tensors(lambda t: t | {f"{NAME}.lora_A.weight": tensor})


A = torch.ones(4, 64)
NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DEEP = "[" * 100_000
BROKEN: dict[str, tuple[Change, str]] = {
    # The folder.
    "no folder": (shutil.rmtree, "no such adapter"),
    "only our file": (gone(CONFIG_FILE, WEIGHTS_FILE), f"{CONFIG_FILE} is missing"),
    "no config": (gone(CONFIG_FILE), f"{CONFIG_FILE} is missing"),
    "no weights": (gone(WEIGHTS_FILE), f"{WEIGHTS_FILE} is missing"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin"),
        "an adapter with weights in a pickle (.bin) alone",
    ),
    "a folder for a file": (lambda folder: (gone(CONFIG_FILE)(folder), (folder / CONFIG_FILE).mkdir()), "is missing"),
    "a link to nothing": (linked(WEIGHTS_FILE, "/nowhere"), f"{WEIGHTS_FILE} is missing"),
    "a link to a device": (linked(CONFIG_FILE, "/dev/zero"), f"{CONFIG_FILE} is missing"),
    # adapter_config.json.
    "config empty": (text(CONFIG_FILE, ""), f"{CONFIG_FILE} cannot be read"),
    "config a list": (text(CONFIG_FILE, "[]"), f"{CONFIG_FILE} cannot be read"),
    "config deep": (text(CONFIG_FILE, DEEP), f"{CONFIG_FILE} cannot be read"),
    "config not UTF-8": (text(CONFIG_FILE, b'{"r": "\xff"}'), f"{CONFIG_FILE} cannot be read"),
    "config huge": (lambda folder: os.truncate(folder / CONFIG_FILE, 2**36), f"{CONFIG_FILE} cannot be read"),
    "config twice": (text(CONFIG_FILE, '{"peft_type": "LORA", "peft_type": "IA3"}'), f"{CONFIG_FILE} cannot be read"),
    "config without keys": (text(CONFIG_FILE, "{}"), "peft_type is None, not LORA"),
    "another method": (config(peft_type="IA3"), "peft_type is 'IA3', not LORA"),
    "method a list": (config(peft_type=["LORA"]), "peft_type is ['LORA'], not LORA"),
    "rank zero": (config(r=0), "r is 0"),
    "rank negative": (config(r=-8), "r is -8"),
    "rank huge": (config(r=10**9), "r is 1000000000"),
    "rank of 5000 digits": (replaced(CONFIG_FILE, '"r": 4', f'"r": {"9" * 5000}'), f"{CONFIG_FILE} cannot be read"),
    "rank a number with a point": (config(r=4.0), "r is 4.0"),
    "rank true": (config(r=True), "r is True"),
    "rank of another file": (config(r=8), "has rank 8, the tensors have rank 4: files of two adapters"),
    "rank unused and large": (config(r=60_000, rank_pattern={".*": 4}), "has rank 60000, no tensor has"),
    "ranks that are none": (config(rank_pattern={"q_proj": -1}), "rank_pattern is {'q_proj': -1}"),
    "ranks a list": (config(rank_pattern=[4]), "rank_pattern is [4]"),
    "rank by an endless expression": (config(rank_pattern={"(.*)*!": 4}), "rank_pattern is a regular expression that"),
    "alpha NaN": (replaced(CONFIG_FILE, '"lora_alpha": 8', '"lora_alpha": NaN'), "lora_alpha is NaN"),
    "alpha Infinity": (replaced(CONFIG_FILE, '"lora_alpha": 8', '"lora_alpha": -Infinity'), "lora_alpha is -Infinity"),
    "alpha 1e999": (replaced(CONFIG_FILE, '"lora_alpha": 8', '"lora_alpha": 1e999'), "lora_alpha is 1e999"),
    "alpha beyond float32": (config(lora_alpha=1e300), "lora_alpha is 1e+300"),
    "alpha zero": (config(lora_alpha=0), "lora_alpha is 0"),
    "alpha text": (config(lora_alpha="8"), "lora_alpha is '8'"),
    "alpha by an impossible pattern": (config(alpha_pattern={"(": 8}), "alpha_pattern is no regular expression"),
    "no targets": (config(target_modules=None), "it has no target_modules"),
    "targets a number": (config(target_modules=7), "target_modules is 7"),
    "targets of numbers": (config(target_modules=[7]), "target_modules is [7]"),
    "too many targets": (config(target_modules=["q_proj"] * 20_001), "target_modules is ['q_proj', 'q_proj',"),
    "an endless expression": (config(target_modules="(.*)*!"), "target_modules is a regular expression that takes"),
    "an endless exclusion": (config(exclude_modules="(.*.*)*!"), "exclude_modules is a regular expression that"),
    "an endless module to save": (config(modules_to_save=["(.*)*!"]), "modules_to_save is a regular expression that"),
    "no expression": (config(target_modules="*"), "target_modules is no regular expression"),
    "a deep expression": (config(target_modules="(" * 3000 + ")" * 3000), "target_modules is no regular expression"),
    "a long expression": (config(target_modules="a|" * 50_000), "target_modules has a regular expression of"),
    "targets of another model": (config(target_modules=["query"]), "0 of 0 adapter tensors match the model"),
    "fewer targets": (config(target_modules=["q_proj"]), "4 of 4 adapter tensors match the model"),
    "more targets": (config(target_modules=["q_proj", "qkv"]), "4 of 8 adapter tensors match the model"),
    "base a list": (config(base_model_name_or_path=["a"]), "base_model_name_or_path is ['a'], not text"),
    "base an escape": (config(base_model_name_or_path="\x1b]0;x\x07"), "base_model_name_or_path is "),
    "bias odd": (config(bias="some"), "bias is 'some'"),
    "dora text": (config(use_dora="yes"), "use_dora is 'yes'"),
    "dropout 7": (config(lora_dropout=7), "lora_dropout is 7"),
    "layers repeated": (config(layer_replication=[[0, 10**9]]), "layer_replication repeats layers"),
    "another program": (config(megatron_config={"a": 1}, megatron_core="os"), "megatron_config imports another"),
    "other adapters": (config(arrow_config={"top_k": 1}), "arrow_config needs other adapters"),
    "tokens negative": (config(trainable_token_indices=[-1]), "trainable_token_indices is [-1]"),
    # adapter_model.safetensors.
    "weights empty": (text(WEIGHTS_FILE, ""), f"{WEIGHTS_FILE} is empty"),
    "weights of 5 bytes": (cut(WEIGHTS_FILE, 5), f"{WEIGHTS_FILE} is truncated"),
    "weights cut in the header": (cut(WEIGHTS_FILE, 300), f"{WEIGHTS_FILE} is truncated"),
    "weights cut in the data": (cut(WEIGHTS_FILE, 20_000), f"{WEIGHTS_FILE} is truncated"),
    "weights a pointer": (text(WEIGHTS_FILE, "version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "weights a page": (text(WEIGHTS_FILE, "<!DOCTYPE html><html>" * 9), f"{WEIGHTS_FILE} is not a safetensors file"),
    "header deep": (header(DEEP.encode()), f"{WEIGHTS_FILE} has a broken header"),
    "header a list": (header([ENTRY]), f"{WEIGHTS_FILE} has a broken header"),
    "header too long": (header({}, length=2**63), f"{WEIGHTS_FILE} is not a safetensors file"),
    "offsets infinite": (header({"a": ENTRY | {"data_offsets": [0, float("inf")]}}), "broken header"),
    "offsets negative": (header({"a": ENTRY | {"data_offsets": [-8, 0]}}), "broken header"),
    "offsets shared": (header({"a": ENTRY, "b": ENTRY, "c": ENTRY | {"shape": []}}), "broken header"),
    "a shape of 10^30": (header({"a": ENTRY | {"shape": [10**15, 10**15]}}), "broken header"),
    "a dtype of its own": (header({"a": ENTRY | {"dtype": "F3"}}), "broken header"),
    "no tensors": (tensors(lambda t: {}), "no tensors in the file"),
    "too many tensors": (header({f"t{i}": NOTHING for i in range(61)}), "has 61 tensors, more than 60"),
    "other tensors": (tensors(lambda t: {"odd": A}), "no LoRA tensors in the file"),
    "A alone": (tensors(lambda t: {n: x for n, x in t.items() if "lora_A" in n}), "14 of 14 modules have only A"),
    "a module gone": (tensors(lambda t: {n: x for n, x in t.items() if NAME not in n}), "26 of 28 adapter tensors"),
    "a module more": (
        tensors(lambda t: t | {f"{NAME[:-6]}x.lora_{s}.weight": torch.ones(4, 4) for s in "AB"}), "28 of 28 adapter",
    ),
    "names of escapes": (tensors(lambda t: t | {"\x1b[31m.lora_A.weight": A}), "a tensor whose name is not print"),
    "old and new names": (
        tensors(lambda t: t | {n.replace(".language_model", ""): x.clone() for n, x in t.items()}),
        "28 of 56 tensors are there under an old and a new name",
    ),
    "A a scalar": (one(torch.tensor(1.0)), "1 of 14 modules have an A or B that is no matrix"),
    "A a vector": (one(torch.ones(4)), "1 of 14 modules have an A or B that is no matrix"),
    "A empty": (one(torch.ones(0, 64)), "has rank 4, the tensors have rank 0, 4"),
    "A with three axes": (one(torch.ones(4, 64, 1)), "lora_A.weight is [4, 64, 1], not [4, 64]"),
    "A of another width": (one(torch.ones(4, 63)), "lora_A.weight is [4, 63], not [4, 64]"),
    "A of whole numbers": (one(A.long()), "1 of 28 tensors are int64, no weights"),
    "A of complex numbers": (one(A.to(torch.complex64)), "1 of 28 tensors are complex64, no weights"),
    "A with NaN": (one(A * float("nan")), "1 of 28 tensors have NaN or Inf"),
    "A in float8 with NaN": (one((A * float("nan")).to(torch.float8_e4m3fn)), "1 of 28 tensors have NaN or Inf"),
    "B zero": (tensors(lambda t: {n: x * ("_B." not in n) for n, x in t.items()}), "the adapter has no effect"),
    # lorgnette.json and the reference sample.
    "metadata deep": (text(METADATA_FILE, DEEP), f"{METADATA_FILE} cannot be read"),
    "metadata with half a letter": (edited(METADATA_FILE, prompt="\ud800"), f"{METADATA_FILE} does not fit: prompt"),
    "metadata with an odd origin": (edited(METADATA_FILE, origin=["x"]), f"{METADATA_FILE} does not fit: origin"),
    "metadata of another base": (edited(METADATA_FILE, fingerprint="0"), "base model has other weights"),
    "metadata with another size": (edited(METADATA_FILE, processor={"image_size": [28, 28]}), "processor settings"),
    "metadata with another prompt": (edited(METADATA_FILE, prompt="Why?"), "the prompt differs from training"),
    "base gone": (edited(METADATA_FILE, model="/gone"), "the adapter's base model is missing (/gone)"),
    "sample without metadata": (gone(METADATA_FILE), f"{METADATA_FILE} is missing"),
    "sample broken": (text(SAMPLE_FILE, "{}"), f"{SAMPLE_FILE} cannot be read"),
    "sample image gone": (gone(IMAGE_FILE), f"{IMAGE_FILE} is missing"),
    "sample image broken": (text(IMAGE_FILE, b"\x89PNG\r\n\x1a\n"), "image"),
    "sample of other tokens": (edited(SAMPLE_FILE, prompt_ids=[5, 6]), "other token ids than in training, from"),
    "sample of impossible tokens": (edited(SAMPLE_FILE, prompt_ids=[10**12, -1]), f"{SAMPLE_FILE} cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_one_line(name: str, adapter: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_config, "_MATCH_SECONDS", 0.1)
    monkeypatch.setattr(peft_files, "_MAX_TENSORS", 60)
    change, message = BROKEN[name]
    change(adapter)
    start = time.monotonic()
    model = None if (adapter / METADATA_FILE).is_file() else str(tiny)
    with pytest.raises(LorgnetteError) as caught:
        judge_adapter(model, adapter, Terminal()).require(Terminal())
    assert time.monotonic() - start < SECONDS
    error = str(caught.value)
    assert message in error
    assert caught.value.hint
    assert len(error) < 800
    assert error.isprintable(), error


def test_the_whole_adapter_passes(whole: Path, tiny: Path) -> None:
    judged = judge_adapter(None, whole, Terminal())
    assert [(result.check, result.passed) for result in judged.results] == [
        (check, True) for check in ("weights", "base", "inputs")
    ]
    assert judged.require(Terminal()) == judged.spec
    assert judged.merge_obstacle is None


@pytest.mark.parametrize(
    "change",
    [config(lora_alpha="x"), edited(METADATA_FILE, prompt="Why?"), config(target_modules=["q_proj"])],
)
def test_every_command_says_the_same(change: Change, adapter: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """No weight of the base model is read for it."""
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("a model was loaded"))
    change(adapter)
    calls: list[Callable[[], object]] = [
        lambda: load_model_spec(None, adapter, Terminal()),  # predict
        lambda: resolve_candidates([str(adapter)], None, Terminal()),  # evaluate, compare
        lambda: merge(adapter, tmp_path / "merged"),
    ]
    errors = []
    for call in calls:
        with pytest.raises(LorgnetteError) as caught:
            call()
        errors.append(caught.value.message)
    failures = [result.message for result in verify(adapter).results if result.passed is False]
    assert set(errors) == {"; ".join(failures)}
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")  # PEFT's
def test_what_cannot_be_merged_is_no_failure(load_tiny_model: Callable[[], Any], tiny: Path, tmp_path: Path) -> None:
    """`merge` refuses it in the words of the judgement, which `verify` prints."""
    lora = LoraConfig(r=2, target_modules=["o_proj"], lora_bias=True, init_lora_weights=False)
    get_peft_model(load_tiny_model(), lora).save_pretrained(tmp_path / "adapter")
    judged = judge_adapter(str(tiny), tmp_path / "adapter", Terminal())
    assert not judged.failures
    assert str(judged.merge_obstacle).startswith("it cannot be merged: it trains a bias (lora_bias) of 2 modules")
    with pytest.raises(LorgnetteError) as caught:
        merge(tmp_path / "adapter", tmp_path / "merged", model=str(tiny))
    assert caught.value.message == judged.merge_obstacle


def test_no_command_takes_an_adapter_without_it() -> None:
    """`ModelSpec.from_names` alone opens an adapter unjudged."""
    calls = [
        node
        for path in Path(judgement.__file__).parents[1].joinpath("commands").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_names"
    ]
    assert calls
    assert all(isinstance(call.args[1], ast.Constant) and call.args[1].value is None for call in calls)


def test_options_that_peft_ignores_are_named(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(newer_option={"a": 1})(adapter)
    load_model_spec(None, adapter, Terminal())
    assert f"{CONFIG_FILE} sets newer_option, which PEFT ignores" in " ".join(capsys.readouterr().err.split())


def test_every_command_calls_a_folder_what_it_is(
    whole: Path, tiny: Path, captions: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    pickled = shutil.copytree(whole, tmp_path / "pickled")
    (pickled / WEIGHTS_FILE).rename(pickled / "adapter_model.bin")
    for words, message in (
        (["predict", "red.png", "--model", whole], "an adapter, not a model"),
        (["predict", "red.png", "--model", tmp_path], "a folder of data, not a model"),
        (["predict", "red.png", "--adapter", tiny], "a model, not an adapter"),
        (["predict", "red.png", "--adapter", "missing"], "no such adapter"),
        (["predict", "red.png", "--adapter", "pickled"], "an adapter with weights in a pickle (.bin) alone"),
        (["evaluate", captions.parent, captions], "a folder of data, not an adapter"),
        (["verify", tiny], "a model, not an adapter"),
        (["merge", tiny, "out"], "a model, not an adapter"),
        (["export-adapter", tiny, "out", "--transformers", "4.46.2"], "a model, not an adapter"),
        (["train", "--resume", whole], "an adapter, not a run"),
        (["train", f"model={whole}", f"data={captions}", "data.holdout=1"], "an adapter, not a model"),
        (["preview", f"model={whole}", f"data={captions}"], "an adapter, not a model"),
        (["plan", f"model={whole}", f"data={captions}"], "an adapter, not a model"),
    ):
        cli(*words).assert_refused(2, message)
