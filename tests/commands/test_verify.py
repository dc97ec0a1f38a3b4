"""A tuned demo adapter is found good; damaged in each way that happens, it is caught with the right sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorgnette.commands import verify as verify_module
from lorgnette.commands.demo import demo
from lorgnette.commands.verify import VerifyReport, verify
from lorgnette.config import ProcessorSettings
from lorgnette.errors import UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora.inspect import inspect_adapter
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import CONFIG_FILE, WEIGHTS_FILE
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.verification.peft_check import AnswerComparison, Distance, NameMatch, PeftResult

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a short demo."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    words = ["train.epochs=1", "train.warmup_steps=0", "predict.max_new_tokens=1", "data.holdout=2"]
    return demo(out, num_images=40, words=words).path


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "adapter", tmp_path / "adapter")


def cut(size: int) -> Change:
    return lambda adapter: os.truncate(adapter / WEIGHTS_FILE, size)


def weights(change: Callable[[str, Any], Any]) -> Change:
    """change(name, tensor) → what is written; None: nothing."""

    def rewrite(adapter: Path) -> None:
        changed = {name: change(name, tensor) for name, tensor in load_file(adapter / WEIGHTS_FILE).items()}
        save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, adapter / WEIGHTS_FILE)

    return rewrite


def edited(name: str, **values: object) -> Change:
    return lambda adapter: (adapter / name).write_text(json.dumps(json.loads((adapter / name).read_text()) | values))


def encoded(**values: object) -> Change:
    def change(adapter: Path) -> None:
        kept = json.loads((adapter / "lorgnette.json").read_text())["processor"]
        edited("lorgnette.json", processor=kept | values)(adapter)

    return change


def renamed(change: Callable[[str], str]) -> Change:
    return lambda adapter: save_file(
        {change(name): tensor for name, tensor in load_file(adapter / WEIGHTS_FILE).items()}, adapter / WEIGHTS_FILE
    )


def faults(verdict: VerifyReport) -> dict[str, str]:
    """What is wrong, each with a remedy."""
    assert not verdict.passed
    assert all(finding.hint for finding in verdict.results if finding.passed is False)
    return {finding.check: finding.message for finding in verdict.results if finding.passed is False}


def test_a_good_adapter(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run may stand for its adapter. The lines that are printed work, in a process that knows nothing of us."""
    verdict = verify(trained)
    assert verdict.passed
    assert [(finding.check, finding.passed) for finding in verdict.results] == [
        (about, True) for about in ("weights", "base", "encoding", "loading", "witness", "moved", "merged")
    ]
    said = capsys.readouterr().err
    assert "28 modules of rank 16 or less, no B is zero: mlp.down_proj 4" in said
    assert "all 56 names match" in said
    assert said.count("before: ") == said.count("after:  ") == len(verdict.answers) == 4
    lines = dict(verdict.usage)
    adapter = trained / "adapter"
    assert lines["vLLM"] == (
        f"vllm serve {BUILT_IN_MODEL} --enable-lora --lora-modules tuned={adapter.resolve()} --max-lora-rank 16"
    )
    assert "112×112" in lines["pictures"]
    code = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForImageTextToText; "
        f"print(len([n for n, p in {lines['PEFT']}.named_parameters() if 'lora_B' in n and p.any()])); "
        "assert not [name for name in sys.modules if name.startswith('lorgnette')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("28\n", 0), done.stderr


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (cut(900_000), "weights", f"{WEIGHTS_FILE} is cut short: 900000 of "),
        (cut(0), "weights", f"{WEIGHTS_FILE} is empty"),
        (
            lambda adapter: (adapter / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\n"), "weights",
            f"{WEIGHTS_FILE} is a Git LFS pointer and not the file itself: `git lfs pull` fetches it",
        ),
        (lambda adapter: (adapter / WEIGHTS_FILE).unlink(), "weights", f"{WEIGHTS_FILE} is missing"),
        (lambda adapter: (adapter / CONFIG_FILE).unlink(), "weights", f"{CONFIG_FILE} is missing"),
        (
            weights(lambda name, tensor: tensor * 0 if "lora_B" in name else tensor), "weights",
            "B is zero in all 28 modules: the adapter does nothing",
        ),
        (
            weights(lambda name, tensor: None if "lora_B" in name else tensor), "weights",
            "28 of 28 modules have only one of their two factors",
        ),
        (
            weights(lambda name, tensor: tensor / 0 if "0.mlp.up_proj.lora_A" in name else tensor), "weights",
            "1 of 56 tensors hold numbers that are not finite: language_model.layers.0.mlp.up_proj.lora_A.weight",
        ),
        (edited(CONFIG_FILE, r=8), "weights", f"{CONFIG_FILE} says rank 8, the tensors have rank 16: the two files are not one"),
        (edited(CONFIG_FILE, lora_alpha="x"), "weights", f"{CONFIG_FILE} does not fit: r is 16, lora_alpha 'x'"),
        (edited(CONFIG_FILE, peft_type="IA3"), "weights", f"{CONFIG_FILE} says that it is a IA3, not a LORA"),
        (weights(lambda name, tensor: tensor / 0), "weights", "56 of 56 tensors hold numbers that are not finite"),
        (lambda adapter: (adapter / "lorgnette.json").write_text("{"), "base", "lorgnette.json cannot be read"),
        (edited("lorgnette.json", fingerprint="0"), "base", "base model has other weights than the adapter was"),
        (edited("lorgnette.json", chat_template="x"), "base", "base model has another chat template than the adapter"),
        (encoded(size=[56, 56]), "encoding", "image_size is [56, 56], was [112, 112]"),
        (encoded(size=None), "encoding", "image_size is None, was [112, 112]"),
        (edited("lorgnette.json", prompt="What?"), "encoding", "the prompt is another than in training: 'What?'"),
        (lambda adapter: (adapter / "lorgnette.json").unlink(), "encoding", "lorgnette.json is missing, and with it"),
        (lambda adapter: (adapter / "witness.json").write_text("{"), "encoding", "witness.json cannot be read"),
        (lambda adapter: (adapter / "witness.png").unlink(), "encoding", "witness.png is missing"),
    ],
)  # fmt: skip
def test_what_its_files_tell(
    change: Change, about: str, said: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: no model is loaded."""
    monkeypatch.setattr(verify_module, "check_with_peft", lambda *_, **__: pytest.fail("a model was asked"))
    change(copied)
    found = faults(verify(copied))
    assert said in found[about]


def test_another_base(copied: Path, tiny: Path, tmp_path: Path) -> None:
    verdict = verify(copied, model=str(tiny))
    assert "other weights" in faults(verdict)["base"]
    assert verdict.hints[0].startswith("the adapter was trained on demo: give that with --model")
    assert verdict.summary == "base and adapter do not fit"  # which of them is at fault nobody knows
    assert "no such checkpoint" in faults(verify(copied, model=str(tmp_path / "nowhere")))["base"]
    for name in ("lorgnette.json", "witness.json", "witness.png"):  # an adapter that says nothing of its training
        (copied / name).unlink()
    verdict = verify(copied, model=str(tiny))
    assert faults(verdict)["loading"].startswith("plain peft does not take it: size mismatch for ")
    assert {finding.check: finding.passed for finding in verdict.results}["base"] is None


def test_a_base_that_is_not_whole(copied: Path, tmp_path: Path) -> None:
    """Of an adapter that does not say which base it has, too: transformers would draw what is missing by chance."""
    base = shutil.copytree(BUILT_IN_MODEL, tmp_path / "base")
    os.truncate(base / "model.safetensors", 5_000_000)
    verdict = verify(copied, model=str(base))
    assert "model.safetensors is cut short: 5000000 of " in faults(verdict)["base"]
    assert verdict.hints == ("download the checkpoint again, whole",)
    tensors = load_file(BUILT_IN_MODEL / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(kept, base / "model.safetensors", {"format": "pt"})
    for name in ("lorgnette.json", "witness.json", "witness.png"):
        (copied / name).unlink()
    verdict = verify(copied, model=str(base))
    told = "3 weights are in none of its files, as model.language_model.layers.1.mlp.down_proj.weight"
    assert faults(verdict) == {"base": told}
    assert not verdict.usage


def test_another_template_in_base_and_adapter(copied: Path, tmp_path: Path) -> None:
    """What the adapter says of itself fits its base; its witness remembers."""
    base = shutil.copytree(BUILT_IN_MODEL, tmp_path / "base")
    template = json.loads((base / "chat_template.json").read_text())["chat_template"].replace("helpful", "short")
    (base / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    edited("lorgnette.json", chat_template=template)(copied)
    assert "make other tokens than in training, from token " in faults(verify(copied, model=str(base)))["encoding"]


def test_half_the_modules(copied: Path) -> None:
    weights(lambda name, tensor: None if ".layers.0." in name or ".layers.1." in name else tensor)(copied)
    found = faults(verify(copied))["loading"]
    name = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A.weight"
    assert found == f"plain peft finds 28 of 56 tensors; 28 are missing, as {name}"


def test_names_from_before_transformers_4_52(copied: Path) -> None:
    """Peft would ignore them without an error."""
    renamed(lambda name: name.replace(".language_model.", "."))(copied)
    verdict = verify(copied)
    assert faults(verdict)["loading"] == (
        "plain peft finds 0 of 56 tensors: these are names from before transformers 4.52, as "
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    )
    assert verdict.hints == ("merge it (lorgnette merge), which reads them, or rename them",)


@pytest.mark.parametrize(
    "change",
    [
        edited(CONFIG_FILE, lora_alpha=4),
        weights(lambda name, tensor: tensor * (0.9 if "lora_B" in name else 1)),  # as another adapter's would be
        weights(lambda name, tensor: tensor * ("lora_B" not in name or ".layers.3." not in name)),
    ],
    ids=["scale", "another adapter's", "silent in places"],
)
def test_other_weights_and_another_scale(change: Change, copied: Path) -> None:
    """Whole, finite, of the right names and shapes, and not what was saved."""
    change(copied)
    verdict = verify(copied)
    assert faults(verdict)["witness"].endswith(
        ": these are not the weights, or not the scale (lora_alpha, r, use_rslora), that were saved"
    )
    assert verdict.hints[0] == f"copy {WEIGHTS_FILE} and {CONFIG_FILE} again, both of one adapter"
    assert not verdict.usage  # how to use it is said of good ones
    assert "moved" not in faults(verdict)


def distance(**changed: Any) -> Distance:
    same: dict[str, Any] = {"tokens": 8, "kl": 0.0, "total_variation": 0.0, "first_choices": 0, "largest": 0.0}
    return Distance(**same | changed)


def test_sentences_of_what_is_found_elsewhere() -> None:
    def found(moved: Distance, rounded: Distance) -> dict[str, tuple[bool | None, str]]:
        sample = AnswerComparison(base="a", adapter="b", merged="b", adapter_effect=moved, merge_error=rounded)
        names = NameMatch(num_matched=56, missing=(), unexpected=())
        made = verify_module._check_peft_result(
            PeftResult(names=names, answers=(sample,), versions={"peft": "1"}), None
        )
        return {finding.check: (finding.passed, finding.message) for finding in made}

    far = distance(kl=0.5, total_variation=0.25, first_choices=3, largest=2.0)
    assert found(far, distance())["moved"] == (
        True, "KL 0.5 nats and total variation 0.25 a token, another first choice at 3 of 8 on 1 pictures",
    )  # fmt: skip
    good, told = found(distance(), distance())["moved"]
    assert (good, told.startswith("the adapter moves nothing: ")) == (False, True)
    good, told = found(far, far)["merged"]
    assert (good, told.startswith("answers otherwise: ")) == (False, True)


def test_names_that_do_not_match_are_told_apart() -> None:
    def told(missing: tuple[str, ...], left_over: tuple[str, ...]) -> str:
        finding = verify_module._check_names(NameMatch(num_matched=2, missing=missing, unexpected=left_over))
        assert finding.passed is False
        return finding.message

    assert told(("a", "b"), ()) == "plain peft finds 2 of 4 tensors; 2 are missing, as a"
    assert told((), ("c",)) == "plain peft finds 2 of 2 tensors; it has no use for 1, as c"
    assert told(("a",), ("c",)) == "plain peft finds 2 of 3 tensors; 1 are missing, as a; it has no use for 1, as c"


def test_what_vllm_refuses_is_to_be_merged(copied: Path) -> None:
    edited(CONFIG_FILE, use_dora=True, bias="all")(copied)
    lines = dict(verify_module.describe_usage(ModelSpec.from_names(None, copied, Terminal()), inspect_adapter(copied)))
    assert lines["vLLM"] == "would refuse it: it is a DoRA; biases are trained. Merge it: lorgnette merge"
    assert lines["PEFT"].startswith("PeftModel.from_pretrained(")


def test_a_base_is_named_as_others_find_it(copied: Path, tiny: Path) -> None:
    asked = ModelSpec.from_names(None, copied, Terminal())
    assert verify_module.resolve_base_name(asked) == str(BUILT_IN_MODEL)
    assert (
        verify_module.resolve_base_name(replace(asked, base="Qwen/Qwen2-VL-2B-Instruct")) == "Qwen/Qwen2-VL-2B-Instruct"
    )
    foreign = AdapterMetadata.load_or_infer(copied).model_copy(update={"fingerprint": None})
    said = verify_module.describe_image_size(replace(asked, contract=foreign))
    assert said == "as large as in training: the adapter's folder does not say how large that was"
    free = Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))
    said = verify_module.describe_image_size(replace(asked, encoder=free))
    assert said == """--mm-processor-kwargs '{"min_pixels": 3136, "max_pixels": 23520}'"""


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such adapter"):
        verify(tmp_path / "nowhere")
    (tmp_path / "captions.csv").touch()
    with pytest.raises(UsageError, match="no adapter in it"):
        verify(tmp_path)


def test_on_the_command_line(trained: Path, copied: Path, cli: Callable[..., Any]) -> None:
    picture = trained.parent / "pictures" / "0001.png"
    done = cli("verify", trained, "--data", picture, "--json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert told["good"]
    assert len(told["samples"]) == 1
    assert {finding["about"] for finding in told["findings"]} >= {"weights", "merged"}
    assert told["use"]["vLLM"].startswith("vllm serve ")
    cut(5000)(copied)
    done = cli("verify", copied, "--json")
    assert done.status == 1
    assert not json.loads(done.out)["good"]
    assert "is cut short" in done.err
    done.refused(1, "this adapter is not good", str(copied))
    cli("verify", "nowhere").refused(2, "no such adapter", "nowhere")
