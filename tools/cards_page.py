"""Writes the tables of docs/guides/cards.md: what `lorgnette plan` says of typical data, by model and card.

Models that the reference engine trains are left out: their memory has not been compared with a GPU.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lorgnette.commands.model import TEXT_TOKENS, build_workload
from lorgnette.config import Settings
from lorgnette.models.family import ModelSize
from lorgnette.models.registry import FAMILIES, find_unsupported_feature
from lorgnette.planning.card_fit import find_variant, list_variants
from lorgnette.planning.memory import compute_usable_bytes

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "cards.md"
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""GiB."""
IMAGE_TOKENS = (None, 1280)
"""Tokens of an image in each table; None: of the default size."""
SEVERAL = ((2, 48), (4, 24), (4, 48), (8, 24), (8, 48), (2, 80), (4, 80), (8, 80))
"""GPUs and GiB of each in the last table: of the models that no single card trains as they are."""
_BLOCK = re.compile(r"(?<=```\n) +(?:\d+×)?\d+ GB.*?(?=\n```)", re.DOTALL)
_SAMPLE_TOKENS = 32
_SHORT = {"quantization=nf4": "nf4", "lora.rank=8": "r8"}


def format_page() -> str:
    """The page, with a table in each of its blocks."""
    tables = [format_table(image_tokens) for image_tokens in IMAGE_TOKENS] + [format_table_of_several()]
    texts = iter(["\n".join(table) for table in tables])
    return _BLOCK.sub(lambda _: next(texts), PAGE.read_text(encoding="utf-8"), count=len(tables))


def format_table(image_tokens: int | None) -> Iterator[str]:
    yield _format_row("", *(f"{gib} GB" for gib in CARDS))
    for size in list_sizes():
        yield _format_row(_get_name(size), *(describe(size, gib, image_tokens) for gib in CARDS))


def format_table_of_several() -> Iterator[str]:
    yield _format_row("", *(f"{count}×{gib} GB" for count, gib in SEVERAL), width=7)
    for size in list_sizes():
        if describe(size, CARDS[-1], None).startswith(("nf4", "–", "yes*")):
            cells = (describe(size, gib, None, count) for count, gib in SEVERAL)
            yield _format_row(_get_name(size), *cells, width=7)


def list_sizes() -> Iterator[ModelSize]:
    """What the fast engine trains."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.title):
        yield from (size for size in family.sizes if find_unsupported_feature(size.config) is None)


def describe(size: ModelSize, gib: int, image_tokens: int | None, num_gpus: int = 1) -> str:
    """Whether it trains on such GPUs: `yes`, `shard` if they share its layers, or what has to be set; with a star if
    steps are split or layers recomputed."""
    settings = Settings()
    workload = build_workload(settings, size, "fast", image_tokens)
    tokens = image_tokens or workload.tokens // settings.train.batch_size - TEXT_TOKENS
    longest = TEXT_TOKENS + tokens
    workload = workload.limit_tokens(max(-(-workload.tokens // num_gpus), longest))
    workload = workload.limit_tokens(settings.train.max_tokens_per_microbatch)
    workload = replace(workload, answer_tokens=longest + _SAMPLE_TOKENS)
    settings = settings.model_copy(update={"image_size": None})
    variants = list_variants(settings, size.config, workload, [(longest, [tokens])], size.token_side, num_gpus)
    found = find_variant(variants, compute_usable_bytes(float(gib), num_gpus))
    if found is None:
        return "–"
    variant, fit = found
    words = [_SHORT.get(word) or word.rpartition(",")[2] for word in variant.words]
    words = words or ["shard" if fit.num_shards > 1 else "yes"]
    is_reduced = fit.max_tokens < variant.workload.max_tokens or fit.recompute_layers
    return " ".join(words) + ("*" if is_reduced else "")


def _get_name(size: ModelSize) -> str:
    return size.names[0].removeprefix("Qwen/").removesuffix("-Instruct")


def _format_row(name: str, *cells: str, width: int = 11) -> str:
    return (f"{name:<15}" + "".join(f" {cell:<{width}}" for cell in cells)).rstrip()


if __name__ == "__main__":
    PAGE.write_text(format_page(), encoding="utf-8")
