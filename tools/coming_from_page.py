"""Prints docs/coming-from.md from the table of synonyms."""

import sys
from collections.abc import Iterator

from lorgnette.synonyms import DIFFERENCES, TABLE, VALUES, Synonym, Tool, format_value

HEAD = """# Coming from another trainer

lorgnette takes the words of other trainers: on the command line (`--learning_rate 1e-4` or `learning_rate=1e-4`), in a
recipe, and as keywords in Python. It prints what each word sets. A configuration file of LLaMA-Factory (YAML) or
ms-swift (JSON, YAML) is a recipe: name it, and name the data. What has no counterpart is refused before anything
starts, all in one message with reasons: change these lines, or leave one out with `WORD=null` behind the recipe. Most
files of LLaMA-Factory need `cutoff_len=null`. Settings on the command line replace those of the recipe. `lorgnette
settings WORD` explains one word.

The tables below are for transformers 5.23, PEFT 0.21, TRL 1.16, LLaMA-Factory 0.9.5, ms-swift 4.6 and Unsloth 2026.10.
`make docs` prints them from `src/lorgnette/synonyms/table.py`.

## The same name

| setting | what differs |
|---|---|"""
SECTIONS: dict[Tool, tuple[str, str, str]] = {
    "transformers": (
        "`TrainingArguments`. TRL, LLaMA-Factory and ms-swift take these words too.",
        "python train.py --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --train_file captions.csv --warmup_ratio 0.1 "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --num_train_epochs 3 --bf16",
        "lorgnette train captions.csv --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --warmup_ratio 0.1 "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --num_train_epochs 3 --bf16",
    ),
    "PEFT": (
        "`LoraConfig`.",
        'LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", bias="none")',
        "lorgnette train captions.csv --r 16 --lora_alpha 32 --lora_dropout 0.05 --target_modules all-linear "
        "--bias none",
    ),
    "TRL": (
        "`SFTConfig`: these words, and those of transformers and PEFT.",
        "trl sft --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --dataset_name captions --learning_rate 2e-4 "
        "--per_device_train_batch_size 8 --gradient_accumulation_steps 2 --max_length 1024",
        "lorgnette train captions.csv --model_name_or_path Qwen/Qwen2-VL-2B-Instruct --learning_rate 2e-4 "
        "--per_device_train_batch_size 8 --gradient_accumulation_steps 2",
    ),
    "LLaMA-Factory": (
        "These words, and those of transformers.",
        "llamafactory-cli train qwen2vl_lora_sft.yaml",
        "lorgnette train qwen2vl_lora_sft.yaml captions.csv cutoff_len=null",
    ),
    "ms-swift": (
        "These words, and those of transformers.",
        "swift sft --model Qwen/Qwen2-VL-2B-Instruct --dataset captions.jsonl --tuner_type lora --lora_rank 8 "
        "--target_modules all-linear --freeze_vit true --max_pixels 1003520 --torch_dtype bfloat16",
        "lorgnette train captions.jsonl --model Qwen/Qwen2-VL-2B-Instruct --tuner_type lora --lora_rank 8 "
        "--target_modules all-linear --freeze_vit true --max_pixels 1003520 --torch_dtype bfloat16",
    ),
    "Unsloth": (
        "`FastVisionModel`, its data collator, and the words of PEFT and TRL.",
        "FastVisionModel.get_peft_model(model, finetune_vision_layers=False, r=16, lora_alpha=16, random_state=3407)",
        "lorgnette train captions.csv --finetune_vision_layers False --r 16 --lora_alpha 16 --random_state 3407",
    ),
}
"""Tool → what its words are, a command of it, and the same here."""


def format_coming_from_page() -> str:
    """The page as Markdown: one section for each tool."""
    return "\n".join([HEAD, *_format_differences(), *_format_values(), *_format_tools()]) + "\n"


def _format_differences() -> Iterator[str]:
    for setting, text in DIFFERENCES.items():
        escaped = text.replace("|", r"\|")
        yield f"| `{setting}` | {escaped} |"


def _format_values() -> Iterator[str]:
    yield from ("", "## The same value", "", "| setting | value | here |", "|---|---|---|")
    for setting, values in VALUES.items():
        for value, ours in values.items():
            if value != ours:
                yield f"| `{setting}` | `{value}` | `{format_value(ours)}` |"


def _format_tools() -> Iterator[str]:
    for tool, (words, theirs, ours) in SECTIONS.items():
        yield from (
            "",
            f"## {tool}",
            "",
            words,
            "",
            "```text",
            theirs,
            "```",
            "",
            "is here",
            "",
            "```bash",
            ours,
            "```",
        )
        synonyms = [synonym for synonym in TABLE if tool in synonym.tools]
        accepted = [synonym for synonym in synonyms if synonym.kind == "accepted"]
        if accepted:
            yield from ("", "| word | sets | remark |", "|---|---|---|")
            yield from (f"| {_list_words(synonym)} | `{synonym.setting}` | {synonym.meaning} |" for synonym in accepted)
        for kind, title in (("needless", "Nothing to set"), ("refused", "No counterpart")):
            reasons: dict[str, list[str]] = {}
            for synonym in synonyms:
                if synonym.kind == kind:
                    reasons.setdefault(synonym.meaning, []).append(_list_words(synonym))
            if reasons:
                yield from ("", f"{title}:", "", "| word | because |", "|---|---|")
                yield from (f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items())


def _list_words(synonym: Synonym) -> str:
    return ", ".join(f"`{word}`" for word in synonym.words)


if __name__ == "__main__":
    sys.stdout.write(format_coming_from_page())
