"""Entries become settings: every word sets one, is said, or is refused; the later source wins."""

from pathlib import Path
from typing import Any

import peft
import pytest
import transformers

from lorgnette import config
from lorgnette.errors import UsageError

LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen2-VL-2B-Instruct
image_max_pixels: 262144
video_max_pixels: 16384
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: mllm_demo,identity
template: qwen2_vl
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/qwen2_vl-2b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 16
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
SWIFT = """{
"model": "Qwen/Qwen2-VL-2B-Instruct", "tuner_type": "lora", "torch_dtype": "bfloat16", "lora_rank": 8,
"lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["all-linear"], "freeze_vit": true, "freeze_aligner": true,
"num_train_epochs": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": 1e-4,
"eval_steps": 50, "save_steps": 50, "save_total_limit": 2, "logging_steps": 5, "max_length": 2048,
"output_dir": "output", "warmup_ratio": 0.05, "dataloader_num_workers": 4, "max_pixels": 1003520, "modules_to_save": [],
"deepspeed": null, "packing": false
}"""


def load(tmp_path: Path, text: str, *words: str, name: str = "r.yaml") -> tuple[config.Settings, list[str]]:
    (tmp_path / name).write_text(text)
    remarks: list[str] = []
    tree = config.read_recipe(tmp_path / name)
    return config.load_settings(tree, words, where=name, on_remark=remarks.append), remarks


def test_a_file_of_llama_factory_is_a_recipe(tmp_path: Path) -> None:
    settings, remarks = load(tmp_path, LLAMA_FACTORY, "data=mine.csv", "max_length=2048")
    assert settings.model == "Qwen/Qwen2-VL-2B-Instruct"
    assert (settings.image_size, settings.image_tokens, settings.max_length) == (None, (4, 334), 2048)
    assert (settings.data.path, settings.data.max_rows, settings.data.holdout) == (Path("mine.csv"), 1000, 16)
    assert (settings.lora.rank, settings.lora.target_modules) == (8, config.TARGET_MODULES)
    train = settings.train
    assert (train.batch_size, train.epochs, train.learning_rate, train.warmup_steps) == (8, 3, 1e-4, 0.1)
    assert (train.save_steps, train.eval_steps, train.lr_scheduler_type) == (500, 500, "cosine")
    assert (settings.dtype, settings.report_to) == ("bfloat16", ("none",))
    assert settings.run == Path("saves/qwen2_vl-2b/lora/sft")
    said = "\n".join(remarks)
    keys = {line.partition(":")[0] for line in LLAMA_FACTORY.split("\n") if line} - {"resume_from_checkpoint"}
    unsaid = {key for key in keys if key not in said}
    assert unsaid == {"dataset", "cutoff_len", "report_to"}  # overridden, and a setting's own name
    assert "per_device_train_batch_size=1, gradient_accumulation_steps=8 → train.batch_size=8 (1 per device × 8" in said
    assert "do_train=true: nothing to set; `lorgnette train` trains" in said
    assert "preprocessing_num_workers=16, dataloader_num_workers=4: nothing to set; images are read on threads" in said


def test_a_file_of_ms_swift_is_a_recipe(tmp_path: Path) -> None:
    settings, remarks = load(tmp_path, SWIFT, "data=mine.csv", name="args.json")
    assert (settings.train.batch_size, settings.lora.alpha, settings.dtype) == (16, 32, "bfloat16")
    assert (settings.image_tokens, settings.max_length, settings.lora.parts) == ((4, 1280), 2048, ("language",))
    assert "max_length: a longer example is a broken row; TRL cuts it off, ms-swift leaves it out" in remarks


def test_all_that_does_not_fit_is_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, LLAMA_FACTORY + "deepspeed: ds_z3.json\nquantization_bit: 8\nzzz: 1\n")
    message = str(caught.value)
    for part in ("5 settings do not fit", "dataset=mllm_demo,identity: ", "cutoff_len=2048: ", "deepspeed=ds_z3.json: ",
                 "quantization_bit=8: ", "unknown setting zzz", "r.yaml", "WORD=null on the command line"):  # fmt: skip
        assert part in message, message
    assert "\n" not in message


def test_null_leaves_a_word_of_the_recipe_out(tmp_path: Path) -> None:
    settings, remarks = load(tmp_path, "cutoff_len: 2048\nlr: 3\nseed: 5\n", "cutoff_len=null", "learning_rate=null")
    assert settings == config.Settings(seed=5)
    assert remarks == []


@pytest.mark.parametrize(
    ("word", "remark"),
    [
        ("learning_rate=1e-4", "learning_rate=1e-4 → train.learning_rate"),
        ("lr=1e-4", "lr=1e-4 → train.learning_rate"),
        ("--learning-rate=1e-4", "--learning-rate=1e-4 → train.learning_rate"),
        ("epochs=3", "epochs → train.epochs"),
        ("rank=8", "rank → lora.rank"),
        ("prompt=what?", "prompt → data.prompt"),
        ("rows=9", "rows → data.max_rows"),
        ("images_from=photos", "images_from → data.images_from"),
        ("image-size=56", "image-size → image_size"),
        ("MAX_PIXELS=78400", "MAX_PIXELS=78400 → image_size=null, image_tokens=4,100 (784 pixels per token, "
         "1024 in models since Qwen3-VL; an image keeps its shape)"),
        ("lora_target=all", f"lora_target=all → lora.target_modules={','.join(config.TARGET_MODULES)} (layers of the "
         "language model; PEFT's all-linear takes the vision tower too: lora.parts=language,merger,vision)"),
        ("dtype=bf16", "dtype=bf16 → bfloat16"),
        ("torch_dtype=torch.float16", "dtype=torch.float16 → float16"),
        ("dtype=half", "dtype=half → float16"),
        ("device=gpu", "device=gpu → cuda"),
        ("torch_dtype=bf16", "dtype=bf16 → bfloat16"),
        ("lora.target_modules=all-linear", f"lora.target_modules=all-linear → {','.join(config.TARGET_MODULES)}"),
        ("train.metric_for_best_model=eval_loss", "train.metric_for_best_model=eval_loss → loss"),
        ("do_train=True", "do_train=True: nothing to set; `lorgnette train` trains"),
    ],
)  # fmt: skip
def test_a_word_is_accepted_and_said(word: str, remark: str) -> None:
    remarks: list[str] = []
    config.load_settings({}, [word], on_remark=remarks.append)
    assert remark in remarks


@pytest.mark.parametrize(
    "word", ["train.learning_rate=1e-4", "data=a.csv", "seed=3", "report_to=none", "deepspeed=null"]
)
def test_a_setting_by_its_name_is_not_remarked(word: str) -> None:
    remarks: list[str] = []
    config.load_settings({}, [word], on_remark=remarks.append)
    assert remarks == []


def test_a_name_with_two_meanings_is_refused_with_both() -> None:
    with pytest.raises(
        UsageError, match=r"batch_size can be several settings .* train\.batch_size or predict\.batch_size"
    ):
        config.load_settings({}, ["batch_size=4"])


def test_the_later_source_wins() -> None:
    def load(tree: dict[str, Any], *words: str) -> config.Settings:
        return config.load_settings(tree, words)

    theirs = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    assert load(theirs).train.batch_size == 16
    assert load(theirs, "train.batch_size=4").train.batch_size == 4
    assert load(theirs, "gradient_accumulation_steps=2").train.batch_size == 4
    assert load({"train": {"batch_size": 4}}, "per_device_train_batch_size=3").train.batch_size == 3
    assert load({"train": {"learning_rate": 1}}, "lr=2").train.learning_rate == 2
    assert load({"lr": 1}, "train.learning_rate=2").train.learning_rate == 2
    assert load({"fp16": True}, "dtype=float32").dtype == "float32"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"lr": 1, "learning_rate": 2}, "lr and learning_rate mean the same and differ"),
        ({"lr": 1, "train": {"learning_rate": 2}}, "lr and train.learning_rate both set train.learning_rate"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "both set train.warmup_steps"),
        ({"image_size": 28, "max_pixels": 78400}, "both set image_size"),
    ],
)
def test_one_source_does_not_say_two_things(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.load_settings(tree)
    words = [f"{key}={value}" for key, value in config._flatten(tree)]
    config.load_settings({}, words)  # the later one wins
    assert config.load_settings({"lr": 1.0, "train": {"learning_rate": 1.0}}).train.learning_rate == 1


@pytest.mark.parametrize(
    ("tree", "words", "quantization", "remark"),
    [
        (
            {},
            ["load_in_4bit=true", "bnb_4bit_quant_type=nf4"],
            "nf4",
            "bnb_4bit_quant_type=nf4: nothing to set; quanti",
        ),
        ({"bnb_4bit_use_double_quant": True, "load_in_4bit": True}, [], "nf4", "with double quantization"),
        ({"quantization": "nf4"}, ["load_in_4bit=false"], None, "load_in_4bit=false → quantization=null"),
        ({"quantization_bit": 4}, ["load_in_4bit=false"], None, "load_in_4bit=false → quantization=null"),
        ({"quantization_bit": 4}, ["quantization_bit=null"], None, None),
        ({"quantization": "nf4"}, ["quantization_bit=null"], "nf4", "=null: nothing to set; quantization stands in "),
        (
            {"load_in_4bit": False, "double_quantization": False, "quant_method": "hqq"},
            [],
            None,
            "write quantization=nf4",
        ),
        (
            {},
            ["bnb_4bit_quant_type=nf4"],
            None,
            "bnb_4bit_quant_type=nf4: nothing to set; write quantization=nf4 for 4",
        ),
        ({}, ["quantization=QLoRA"], "nf4", "quantization=QLoRA → nf4"),
        ({}, ["quantization=NF4"], "nf4", "quantization=NF4 → nf4"),
        ({}, ["quantization=null"], None, None),
        ({}, ["--qlora=true"], "nf4", "--qlora=true → quantization=nf4"),
    ],
)
def test_words_for_four_bits(
    tree: dict[str, Any], words: list[str], quantization: str | None, remark: str | None
) -> None:
    remarks: list[str] = []
    assert config.load_settings(tree, words, on_remark=remarks.append).quantization == quantization
    assert remark is None or any(remark in line for line in remarks), remarks


@pytest.mark.parametrize(
    ("tree", "words", "message"),
    [
        ({"quantization": "nf4", "load_in_4bit": False}, [], "quantization and load_in_4bit both set quantization"),
        ({"quantization_bit": 4, "load_in_4bit": False}, [], "both set quantization"),
        ({"load_in_4bit": True, "double_quantization": False}, [], "with double quantization"),
        ({}, ["quantization=int8"], "quantization=int8: frozen weights are in 4 bits .* quantization=null"),
        ({}, ["quantization=4"], "quantization=4: frozen weights are in 4 bits"),
        ({"quantization": "fp4"}, [], "quantization=fp4: frozen weights are in 4 bits"),
    ],
)
def test_other_words_for_weights_are_refused(tree: dict[str, Any], words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.load_settings(tree, words)


def test_a_misspelled_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").touch()
    with pytest.raises(UsageError, match=r"dataset=caption\.csv: there is no such file.* did you mean captions\.csv\?"):
        config.load_settings({}, ["dataset=caption.csv"])


def test_a_value_that_does_not_fit_is_named_by_both_words() -> None:
    with pytest.raises(UsageError) as caught:
        config.load_settings({}, ["lr=fast"])
    assert caught.value.message.startswith("lr → train.learning_rate = 'fast'")
    assert caught.value.hint == "`lorgnette settings train.learning_rate` explains it"


def test_what_a_trainer_writes_with_all_its_values_is_a_recipe() -> None:
    """A word that is off asks nothing; a word that is null and unknown is said, in such a file alone."""
    remarks: list[str] = []
    lora = {
        key: list(value) if isinstance(value, set) else value for key, value in peft.LoraConfig(r=4).to_dict().items()
    }
    config.load_settings(lora, on_remark=remarks.append)
    assert "r=4 → lora.rank" in remarks
    arguments = transformers.TrainingArguments(output_dir="out", max_steps=3).to_dict()
    settings = config.load_settings(
        {**arguments, "report_to": "none", "lora_rank": 4, "strange": None}, on_remark=remarks.append
    )
    assert (settings.train.max_steps, settings.train.batch_size, settings.run) == (3, 8, Path("out"))
    assert any("strange=null" in line and line.endswith(": nothing to set; it is unknown") for line in remarks)
    with pytest.raises(UsageError, match="unknown setting strange"):
        config.load_settings({"strange": None})


def test_a_single_refused_word_of_a_file_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="or leave it out: cutoff_len=null behind the recipe"):
        config.load_settings({"cutoff_len": 2048}, where="sft.yaml")
