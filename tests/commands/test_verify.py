"""`verify` passes a tuned demo adapter, and names the damage of a damaged one."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file

from lorgnette.commands import verify as verify_module
from lorgnette.commands.demo import demo
from lorgnette.commands.verify import VerifyReport, format_nf4_options, verify
from lorgnette.errors import UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.verification import peft_check
from lorgnette.verification.judgement import judge_adapter

pytestmark = pytest.mark.usefixtures("forked_peft_worker")

Change = Callable[[Path], object]
OUR_FILES = ("lorgnette.json", "reference_sample.json", "reference_sample.png")
"""Files that an adapter from another program does not have."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a short demo."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    overrides = ["train.epochs=1", "train.warmup_steps=0", "predict.max_new_tokens=1", "data.holdout=2"]
    return demo(out, num_images=16, overrides=overrides).path


@pytest.fixture
def image(run: Path) -> Path:
    """One of the run's images: a model answers it sooner than the package's four."""
    return run.parent / "images" / "0001.png"


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's adapter."""
    return shutil.copytree(run / "adapter", tmp_path / "adapter")


def truncate(size: int) -> Change:
    return lambda adapter: os.truncate(adapter / WEIGHTS_FILE, size)


def change_tensors(change: Callable[[str, Any], Any]) -> Change:
    """Replace every tensor by change(name, tensor); None removes it."""

    def rewrite(adapter: Path) -> None:
        changed = {name: change(name, tensor) for name, tensor in load_file(adapter / WEIGHTS_FILE).items()}
        save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, adapter / WEIGHTS_FILE)

    return rewrite


def change_json(name: str, **values: object) -> Change:
    return lambda adapter: (adapter / name).write_text(json.dumps(json.loads((adapter / name).read_text()) | values))


def change_processor(**values: object) -> Change:
    def rewrite(adapter: Path) -> None:
        processor = json.loads((adapter / "lorgnette.json").read_text())["processor"]
        change_json("lorgnette.json", processor=processor | values)(adapter)

    return rewrite


def get_failures(report: VerifyReport) -> dict[str, str]:
    """Check → message of every failed check; each has a hint."""
    assert not report.passed
    assert all(result.hint for result in report.results if result.passed is False)
    return {result.check: result.message for result in report.results if result.passed is False}


def test_intact_adapter(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fork_command: Callable[..., list[str]],
) -> None:
    """A run's folder names its adapter. The printed PEFT line works in a process without lorgnette."""
    monkeypatch.undo()  # the process of transformers + PEFT starts from nothing, as a user's does
    monkeypatch.setattr(peft_check, "MAX_NEW_TOKENS", 2)
    report = verify(run)
    assert report.passed
    assert [(result.check, result.passed) for result in report.results] == [
        (check, True) for check in ("weights", "base", "inputs", "loading", "sample", "effect", "merged")
    ]
    printed = capsys.readouterr().out
    assert "28 modules, rank 16; all LoRA B matrices are trained: mlp.down_proj 4" in printed
    assert "load all 56 tensors" in printed
    assert printed.count("before: ") == printed.count("after:  ") == len(report.answers) == 4
    usage = dict(report.usage)
    assert usage["vLLM"] == (
        f"vllm serve {BUILT_IN_MODEL} --enable-lora --lora-modules tuned={(run / 'adapter').resolve()} "
        "--max-lora-rank 16"
    )
    assert "112×112" in usage["images"]
    assert usage["serve"] == f"lorgnette serve {run / 'adapter'}"
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from peft import PeftModel; from transformers import AutoModelForImageTextToText; "
        f"print(len([n for n, p in {usage['PEFT']}.named_parameters() if 'lora_B' in n and p.any()])); "
        "assert not [name for name in sys.modules if name.startswith('lorgnette')]"
    )
    process = subprocess.run(fork_command(program, plain=True), capture_output=True, text=True, check=False)
    assert (process.stdout, process.returncode) == ("28\n", 0), process.stderr


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (truncate(900_000), "weights", f"{WEIGHTS_FILE} is "),
        (truncate(0), "weights", f"{WEIGHTS_FILE} is empty"),
        (
            lambda adapter: (adapter / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\n"),
            "weights", f"{WEIGHTS_FILE} is a Git LFS pointer",
        ),
        (lambda adapter: (adapter / WEIGHTS_FILE).unlink(), "weights", f"{WEIGHTS_FILE} is missing"),
        (lambda adapter: (adapter / CONFIG_FILE).unlink(), "weights", f"{CONFIG_FILE} is missing"),
        (
            change_tensors(lambda name, tensor: tensor * 0 if "lora_B" in name else tensor), "weights",
            "B is zero in all 28 modules: the adapter has no effect",
        ),
        (
            change_tensors(lambda name, tensor: None if "lora_B" in name else tensor), "weights",
            "28 of 28 modules have only A or only B",
        ),
        (
            change_tensors(lambda name, tensor: tensor / 0 if "0.mlp.up_proj.lora_A" in name else tensor), "weights",
            "1 of 56 tensors have NaN or Inf: language_model.layers.0.mlp.up_proj.lora_A.weight",
        ),
        (change_json(CONFIG_FILE, r=8), "weights", "has rank 8, the tensors have rank 16: files of two adapters"),
        (change_json(CONFIG_FILE, lora_alpha="x"), "weights", f"{CONFIG_FILE}: lora_alpha is 'x', not a finite number"),
        (change_json(CONFIG_FILE, peft_type="IA3"), "weights", f"{CONFIG_FILE}: peft_type is 'IA3', not LORA"),
        (change_json(CONFIG_FILE, target_modules=["q_proj"]), "loading", "8 of 8 adapter tensors match the model"),
        (change_tensors(lambda name, tensor: tensor / 0), "weights", "56 of 56 tensors have NaN or Inf"),
        (lambda adapter: (adapter / "lorgnette.json").write_text("{"), "base", "lorgnette.json cannot be read"),
        (change_json("lorgnette.json", fingerprint="0"), "base", "other weights"),
        (change_json("lorgnette.json", chat_template="x"), "base", "another chat template"),
        (change_processor(image_size=[56, 56]), "inputs", "image_size is [56, 56], was [112, 112]"),
        (change_processor(image_size=None), "inputs", "image_size is None, was [112, 112]"),
        (change_json("lorgnette.json", prompt="What?"), "inputs", "the prompt differs from training: 'What?'"),
        (lambda adapter: (adapter / "lorgnette.json").unlink(), "inputs", "lorgnette.json is missing: image size"),
        (lambda adapter: (adapter / OUR_FILES[1]).write_text("{"), "inputs", "reference_sample.json cannot be read"),
        (lambda adapter: (adapter / OUR_FILES[2]).unlink(), "inputs", "reference_sample.png is missing"),
    ],
)  # fmt: skip
def test_damaged_files_are_found_without_a_model(
    change: Change, check: str, message: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "check_with_peft", lambda *_, **__: pytest.fail("a model was loaded"))
    change(adapter)
    assert message in get_failures(verify(adapter))[check]


def test_other_base_model(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    report = verify(adapter, model=str(tiny))
    assert "other weights" in get_failures(report)["base"]
    assert "--model" in report.hints[0]
    assert report.summary == "base model and adapter do not fit"  # it is not known which of the two is wrong
    assert "no such model" in get_failures(verify(adapter, model=str(tmp_path / "nowhere")))["base"]
    for name in OUR_FILES:
        (adapter / name).unlink()
    report = verify(adapter, model=str(tiny))
    assert get_failures(report)["loading"].startswith("28 of 28 adapter tensors match the model; these do ")
    assert {result.check: result.passed for result in report.results}["base"] is None


def test_incomplete_base_model(adapter: Path, tmp_path: Path) -> None:
    """Also for an adapter that does not name its base: transformers would initialize missing weights at random."""
    base = shutil.copytree(BUILT_IN_MODEL, tmp_path / "base")
    os.truncate(base / "model.safetensors", 5_000_000)
    report = verify(adapter, model=str(base))
    assert "model.safetensors is " in get_failures(report)["base"]
    assert "5000000" in get_failures(report)["base"]
    tensors = load_file(BUILT_IN_MODEL / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    for name in OUR_FILES:
        (adapter / name).unlink()
    report = verify(adapter, model=str(base))
    message = "3 weights are in none of its files, such as model.language_model.layers.1.mlp.down_proj.weight"
    assert get_failures(report) == {"base": message}
    assert report.hints == ("download the whole checkpoint again",)
    assert not report.usage


def test_chat_template_changed_in_base_and_adapter(adapter: Path, tmp_path: Path) -> None:
    """The metadata fits the base model, but the reference sample does not."""
    base = shutil.copytree(BUILT_IN_MODEL, tmp_path / "base")
    template = json.loads((base / "chat_template.json").read_text())["chat_template"].replace("helpful", "short")
    (base / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    change_json("lorgnette.json", chat_template=template)(adapter)
    assert "give other token ids than in training" in get_failures(verify(adapter, model=str(base)))["inputs"]


def test_half_of_the_modules(adapter: Path) -> None:
    change_tensors(lambda name, tensor: None if ".layers.0." in name or ".layers.1." in name else tensor)(adapter)
    name = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.weight"
    message = get_failures(verify(adapter))["loading"]
    assert message.startswith(f"28 of 56 adapter tensors match the model; these do not: {name}, ")


def test_names_from_before_transformers_4_52(adapter: Path, image: Path) -> None:
    """PEFT would ignore the tensors without an error; they are renamed, and then checked."""
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file({name.replace(".language_model.", "."): t for name, t in tensors.items()}, adapter / WEIGHTS_FILE)
    report = verify(adapter, data=image)
    assert report.passed
    assert ("sample", True) in [(result.check, result.passed) for result in report.results]
    [names] = [result for result in report.results if result.check == "names"]
    assert names.passed is None
    assert "from before transformers 4.52" in names.message
    usage = dict(report.usage)
    assert usage["PEFT"].startswith("rename it first (lorgnette export-adapter ")
    assert usage["vLLM"].startswith("merge it first (lorgnette merge): its names are from before")


@pytest.mark.parametrize(
    "change",
    [
        change_json(CONFIG_FILE, lora_alpha=4),
        change_tensors(lambda name, tensor: tensor * (0.9 if "lora_B" in name else 1)),  # like another adapter's
        change_tensors(lambda name, tensor: tensor * ("lora_B" not in name or ".layers.3." not in name)),
    ],
    ids=["scale", "another adapter's", "some B are zero"],
)
def test_changed_weights_or_scale(change: Change, adapter: Path, image: Path) -> None:
    """All files, names and shapes are intact, but the values are not those that were saved."""
    change(adapter)
    report = verify(adapter, data=image)
    assert get_failures(report)["sample"].endswith(
        ": the weights or the scale (lora_alpha, r, use_rslora) have changed since"
    )
    assert report.hints[0] == f"copy {WEIGHTS_FILE} and {CONFIG_FILE} again, both of one adapter"
    assert not report.usage
    assert "effect" not in get_failures(report)


def test_vllm_line_of_more_than_plain_lora_says_merge(adapter: Path) -> None:
    change_json(CONFIG_FILE, use_dora=True)(adapter)
    judgement = judge_adapter(None, adapter, Terminal())
    usage = dict(verify_module.describe_usage(judgement))
    assert usage["vLLM"] == "merge it first (lorgnette merge): its adapter_config.json sets use_dora"
    assert usage["PEFT"].startswith("PeftModel.from_pretrained(")
    assert usage["serve"] == "merge it first (lorgnette merge): the adapter's use_dora True"
    # An adapter that `merge` refuses is not sent there.
    usage = dict(verify_module.describe_usage(replace(judgement, merge_obstacle="it cannot be merged: so")))
    assert usage["vLLM"] == "does not load it: it cannot be merged: so"


def test_serve_line_names_a_base_model_that_is_not_the_recorded_one(adapter: Path) -> None:
    judgement = judge_adapter(str(BUILT_IN_MODEL), adapter, Terminal())
    serve = dict(verify_module.describe_usage(judgement))["serve"]
    assert serve == f"lorgnette serve {adapter} --model {BUILT_IN_MODEL}"


@pytest.mark.parametrize(("rank", "max_rank"), [(1, 8), (8, 8), (9, 16), (64, 64), (300, 512)])
def test_vllm_line_has_a_rank_that_vllm_takes(rank: int, max_rank: int, adapter: Path) -> None:
    judgement = judge_adapter(None, adapter, Terminal())
    assert judgement.report is not None
    usage = dict(verify_module.describe_usage(replace(judgement, report=replace(judgement.report, rank=rank))))
    assert usage["vLLM"].endswith(f"--max-lora-rank {max_rank}")


def test_base_model_is_named_for_other_programs(adapter: Path) -> None:
    spec = ModelSpec.from_names(None, adapter, Terminal())
    assert verify_module.resolve_base_name(spec) == str(BUILT_IN_MODEL)
    name = "Qwen/Qwen2-VL-2B-Instruct"
    assert verify_module.resolve_base_name(replace(spec, base_model=name)) == name


def test_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such adapter"):
        verify(tmp_path / "nowhere")
    (tmp_path / "captions.csv").touch()
    with pytest.raises(UsageError, match="a folder of data, not an adapter"):
        verify(tmp_path)
    with pytest.raises(UsageError, match="a model, not an adapter"):
        verify(BUILT_IN_MODEL)


def test_command_line(run: Path, adapter: Path, image: Path, cli: Callable[..., Any]) -> None:
    done = cli("verify", run, "--data", image, "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    assert report["passed"]
    assert len(report["answers"]) == 1
    assert {result["check"] for result in report["results"]} >= {"weights", "merged"}
    assert report["usage"]["vLLM"].startswith("vllm serve ")
    truncate(5000)(adapter)
    done = cli("verify", adapter, "--json")
    assert done.status == 1
    assert not json.loads(done.out)["passed"]
    done.assert_refused(1, "the adapter failed a check", str(adapter))
    cli("verify", "nowhere").assert_refused(2, "no such adapter", "nowhere")


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_5"])
def test_printed_options_quantize_what_the_setting_does(tiny_family: Callable[[str], Path], model_type: str) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny_family(model_type)).quantize("nf4")
    options = eval(f"dict({format_nf4_options(checkpoint.family)})")
    quantized = transformers.AutoModelForImageTextToText.from_pretrained(
        checkpoint.folder, quantization_config=transformers.BitsAndBytesConfig(**options), device_map={"": "cpu"}
    )
    names = [name for name, module in quantized.named_modules() if isinstance(module, Linear4bit)]
    assert sorted(names) == sorted(checkpoint.list_quantized_modules())
