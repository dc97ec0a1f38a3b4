"""Three examples of every command, for its `--help`. Each is a command as it is typed."""

EXAMPLES: dict[str, tuple[str, str, str]] = {
    "demo": (
        "lorgnette demo",
        "lorgnette demo --images 100 --epochs 3",
        "lorgnette demo --out try --learning-rate 1e-3",
    ),
    "prepare": (
        "lorgnette prepare captions.csv --holdout 8",
        "lorgnette prepare captions.csv --to llava --out llava",
        "lorgnette prepare modelscope:modelscope/coco_2014_caption --rows 500 --out coco",
    ),
    "check": (
        "lorgnette check captions.csv",
        "lorgnette check photos --out check.html",
        "lorgnette check captions.csv model=demo --prompt 'What is it?'",
    ),
    "preview": (
        "lorgnette preview captions.csv model=demo",
        "lorgnette preview captions.csv model=demo --rows 8 --out preview.html",
        "lorgnette preview coco-caption captions.csv model=demo",
    ),
    "plan": (
        "lorgnette plan captions.csv model=demo",
        "lorgnette plan captions.csv model=Qwen3-VL-4B --gpu L4",
        "lorgnette plan coco-caption captions.csv --memory 24",
    ),
    "setup": (
        "lorgnette setup model=Qwen3-VL-4B",
        "lorgnette setup coco-caption",
        "lorgnette setup model=Qwen3-VL-4B quantization=nf4",
    ),
    "train": (
        "lorgnette train captions.csv",
        "lorgnette train captions.csv model=Qwen3-VL-4B --epochs 3 gpus=4",
        "lorgnette train --resume runs/captions",
    ),
    "teach": (
        "lorgnette teach demo",
        "lorgnette teach photos --prompt 'What is it?' --labels cat,dog",
        "lorgnette teach photos model=Qwen3-VL-4B --captions captions.csv",
    ),
    "predict": (
        "lorgnette predict photo.jpg --adapter runs/captions --both",
        "lorgnette predict photos --adapter runs/captions --out answers.jsonl",
        "lorgnette predict photo.jpg --model demo --prompt 'What is it?'",
    ),
    "serve": (
        "lorgnette serve runs/captions",
        "lorgnette serve cats=runs/captions dogs=runs/captions-2 --port 8080",
        "lorgnette serve runs/captions --host 0.0.0.0 --allow-host 192.168.1.5 --api-key KEY",
    ),
    "evaluate": (
        "lorgnette evaluate runs/captions more.csv",
        "lorgnette evaluate base more.csv --model demo --rows 100",
        "lorgnette evaluate runs/captions more.csv --metrics accuracy,macro-F1 --out scores",
    ),
    "compare": (
        "lorgnette compare runs/captions more.csv",
        "lorgnette compare runs/captions runs/captions-2 more.csv --out compare.html",
        "lorgnette compare base runs/captions answers.jsonl more.csv --rows 100",
    ),
    "verify": (
        "lorgnette verify runs/captions",
        "lorgnette verify runs/captions --data more.csv --rows 8",
        "lorgnette verify runs/captions/best --json",
    ),
    "merge": (
        "lorgnette merge runs/captions merged",
        "lorgnette merge runs/captions/best merged",
        "lorgnette merge runs/captions merged --device cpu",
    ),
    "export-adapter": (
        "lorgnette export-adapter runs/captions old --transformers 4.46.2",
        "lorgnette export-adapter runs/captions/best old --transformers 4.51.3",
        "lorgnette export-adapter runs/captions/adapter old --transformers 4.45",
    ),
    "watch": (
        "lorgnette watch runs/captions",
        "lorgnette watch runs/captions --port 8080",
        "lorgnette watch runs/demo/demo",
    ),
    "settings": (
        "lorgnette settings",
        "lorgnette settings learning",
        "lorgnette settings gradient_accumulation_steps",
    ),
    "recipe": (
        "lorgnette recipe list",
        "lorgnette recipe show coco-caption",
        "lorgnette recipe copy coco-caption mine.yaml",
    ),
    "recipe list": (
        "lorgnette recipe list",
        "lorgnette recipe show latex-ocr",
        "lorgnette train coco-caption captions.csv",
    ),
    "recipe show": (
        "lorgnette recipe show demo",
        "lorgnette recipe show coco-caption",
        "lorgnette recipe show mine.yaml",
    ),
    "recipe copy": (
        "lorgnette recipe copy coco-caption",
        "lorgnette recipe copy coco-caption mine.yaml",
        "lorgnette train mine.yaml captions.csv",
    ),
    "model": (
        "lorgnette model list",
        "lorgnette model list --json",
        "lorgnette train captions.csv model=Qwen2.5-VL-7B",
    ),
    "model list": (
        "lorgnette model list",
        "lorgnette model list --json",
        "lorgnette plan captions.csv model=Qwen3-VL-8B",
    ),
    "cache": (
        "lorgnette cache",
        "lorgnette cache --json",
        "lorgnette cache clear features",
    ),
    "cache clear": (
        "lorgnette cache clear features",
        "lorgnette cache clear downloads --older-than 30",
        "lorgnette cache clear all --yes",
    ),
}
"""Command → its examples."""


def format_examples(command: str) -> str | None:
    """The end of a command's help; None for a command without examples."""
    lines = EXAMPLES.get(command)
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)]) if lines else None
