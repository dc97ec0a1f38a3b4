"""The run's settings: one frozen tree. A recipe (YAML) is read first, then `key=value` words, later ones winning.

Knows nothing about what the settings do. Every setting is named once, here, with its meaning and its unit;
`docs/settings.md` is printed from this file.
"""

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_core import PydanticCustomError

from lorgnette.errors import UsageError

LANGUAGE_TARGETS: tuple["Target", ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Tower = Literal["language", "merger", "vision"]
TrackerName = Literal["auto", "none", "swanlab", "tensorboard", "wandb"]


def _listed(value: Any) -> Any:
    """`a,b` on the command line means a list; one word is a list of one."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.strip("[]").split(",") if word.strip())
    return value


def _sized(value: Any) -> Any:
    """`280x280` and `280` say what `[280, 280]` says."""
    value = _listed(value.replace("x", ",", 1)) if isinstance(value, str) else value
    sides = (value,) if isinstance(value, int) else value
    return sides * 2 if isinstance(sides, tuple) and len(sides) == 1 else sides


def _ascending(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("ascending", "the fewest are more than the most")
    return pair


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    path: Path | None = Field(
        None, description="the examples: a data file or folder of any form (docs/data.md), hf:NAME or modelscope:NAME"
    )
    test: Path | None = Field(
        None, description="held-out examples in a file of their own; else `holdout` are split off"
    )
    holdout: int = Field(4, ge=0, description="how many examples at the end are held out for the test")
    split: Literal["picture", "tail"] = Field(
        "picture", description="picture: no picture stands in both parts; tail: literally the last `holdout` rows"
    )
    prompt: str = Field("COCO Yes:", description="what the user asks, where the data does not say (a CSV)")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: refuse to start over broken rows; skip: leave them out and name each"
    )
    rows: PositiveInt | None = Field(None, description="use the first so many rows only")
    images_from: str | None = Field(
        None,
        description="a folder or a zip where pictures are looked for by their file name; of data on a hub also an "
        "address",
    )
    group_captions: Literal["none", "image"] = Field(
        "none",
        description="image: all captions of a picture in one packed batch, the picture computed once; changes the "
        "order of examples",
    )


class Encode(Section):
    size: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_sized)] = Field(
        (280, 280), description="height and width every picture is resized to, in pixels; null: keep its shape"
    )
    image_tokens: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_listed), AfterValidator(_ascending)] = (
        Field((4, 1280), description="fewest and most tokens of a picture that keeps its shape (size=null)")
    )
    end_token: Literal["template", "<|endoftext|>"] = Field(
        "template", description="what ends an answer: the chat template's token, or the tutorial's <|endoftext|>"
    )
    max_tokens: PositiveInt = Field(8192, description="longest example in tokens; a longer one is a broken row")


class Lora(Section):
    rank: PositiveInt = Field(64, description="rank of the two factors")
    alpha: PositiveInt = Field(16, description="scale: alpha/rank, or alpha/√rank with rslora")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapter's input")
    rslora: bool = Field(False, description="rank-stabilised scaling")
    targets: Annotated[tuple[Target, ...], BeforeValidator(_listed)] = Field(
        LANGUAGE_TARGETS, min_length=1, description="projections of the language model that are adapted"
    )
    towers: Annotated[tuple[Tower, ...], BeforeValidator(_listed)] = Field(
        ("language",), min_length=1, description="parts of the model that are adapted: language, merger, vision"
    )


class Train(Section):
    epochs: int = Field(2, ge=1, description="passes over the examples")
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimizer steps")
    batch_size: PositiveInt = Field(4, description="examples a micro-batch; a step takes batch_size × accumulation")
    accumulation: PositiveInt = Field(4, description="micro-batches a step")
    pass_tokens: PositiveInt = Field(
        16384, description="most tokens in one forward pass; a step is cut into as many passes as it needs"
    )
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the learning rate falls")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    log_steps: PositiveInt = Field(10, description="steps between two lines of the log (the first is always logged)")
    save_steps: PositiveInt = Field(100, description="steps between two checkpoints (the last is always saved)")
    eval_steps: PositiveInt | None = Field(
        None,
        description="steps between two eval losses, and between two looks at four held-out answers; null: each epoch",
    )
    best: str = Field(
        "loss",
        min_length=1,
        description="what the best step is known by: the eval loss, or a metric by its name (ROUGE-L, CIDEr-D, "
        "exact-match, edit-distance, …), for which all that is held out is answered each time",
    )
    patience: PositiveInt | None = Field(
        None, description="stop after so many evaluations without a new best; null: train to the end"
    )


class Predict(Section):
    max_new_tokens: PositiveInt = Field(128, description="longest answer in tokens")
    batch_size: PositiveInt = Field(32, description="examples answered at once")
    metrics: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        ("caption",),
        min_length=1,
        description="scores of held-out answers: caption (BLEU, ROUGE-L, CIDEr-D), latex (exact match, edits), demo "
        "(its facts), none, or metrics by name (ANLS,token-F1,box-IoU; docs/metrics.md)",
    )
    size: Literal["trained", "native"] = Field(
        "trained", description="trained: pictures as in training; native: as large as they are, as the tutorial tests"
    )


class Track(Section):
    to: Annotated[tuple[TrackerName, ...], BeforeValidator(_listed)] = Field(
        ("auto",), min_length=1, description="swanlab, tensorboard, wandb (several: a,b), none; auto: SwanLab if there"
    )
    project: str = Field("lorgnette", description="the tracker's project; the experiment is called as the run's folder")


class Settings(Section):
    model: str = Field(
        "Qwen/Qwen2-VL-2B-Instruct",
        description="a folder, or a name on the hub that has it (a cached one first; hf:NAME or modelscope:NAME: on "
        "that hub); `demo` is the built-in model",
    )
    engine: Literal["auto", "fast", "reference"] = Field(
        "auto", description="auto: fast on CUDA where it supports the run, else reference"
    )
    run: Path | None = Field(None, description="the run's folder; null: the next free one under runs/")
    seed: int = Field(0, ge=0, lt=2**63, description="of the order of examples, the adapter's start and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on a CPU"
    )
    data: Data = Data()
    encode: Encode = Encode()
    lora: Lora = Lora()
    train: Train = Train()
    predict: Predict = Predict()
    track: Track = Track()


SECTIONS = {name: f.annotation for name, f in Settings.model_fields.items() if isinstance(f.default, Section)}


def names() -> list[str]:
    """Every setting's full name, in the order of the tree."""
    found: list[str] = []
    for name in Settings.model_fields:
        section = SECTIONS.get(name)
        found += [f"{name}.{inner}" for inner in section.model_fields] if section else [name]
    return found


def load(
    recipe: Mapping[str, Any] | None,
    words: Iterable[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    where: str = "recipe",
) -> Settings:
    """The settings of a recipe's tree with a second tree's values, then `key=value` words, laid over it one by one.

    `data=PATH` is short for `data.path=PATH`. Raises UsageError that names an unknown setting's nearest neighbour,
    or the value that does not fit.
    """
    given = [(key, value, where) for key, value in _flat(recipe or {})]
    given += [(key, value, "arguments") for key, value in _flat(values or {})]
    given += [(*_parsed(word), "command line") for word in words]
    tree: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value, place in given:
        name = _known(key, value, place)
        section, _, inner = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[inner] = value
        places[name] = place
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(part for part in fault["loc"] if isinstance(part, str))
        what = f"{name} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
        raise UsageError(what, where=places[name], remedy="see docs/settings.md") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's tree. Raises UsageError where the file is missing, no YAML, or no mapping."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "no such recipe", where=str(path), remedy="`lorgnette recipe list` shows those there are"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"recipe cannot be read: {said}", where=str(path), remedy="it must be YAML") from None
    if tree is not None and not isinstance(tree, dict):
        raise UsageError("recipe is not a mapping", where=str(path), remedy="write `setting: value` lines")
    return tree or {}


def dump(settings: Settings) -> str:
    """The whole tree as YAML, which `read_recipe` and `load` read back to the same settings."""
    folds = "\x85" in settings.model_dump_json()  # PyYAML reads this line break as a space unless it is escaped
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=not folds)


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name in SECTIONS and isinstance(value, Mapping | None):  # None: a section's name with nothing below it
            yield from ((f"{name}.{inner}", inner_value) for inner, inner_value in (value or {}).items())
        else:
            yield str(name), value


def _parsed(word: str) -> tuple[str, str | None]:
    key, equals, text = word.partition("=")
    if not equals:
        raise UsageError(f"'{word}' is not a setting", remedy="write key=value, as in train.lr=1e-4")
    return key, None if text == "null" else text


def _known(key: str, value: Any, where: str) -> str:
    """The full name of a setting."""
    if key == "data" and isinstance(value, str | Path):
        return "data.path"
    if key not in names():
        near = difflib.get_close_matches(key, names(), n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else "docs/settings.md lists them"
        raise UsageError(f"unknown setting {key}", where=where, remedy=remedy)
    return key


def as_markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "A recipe holds them as YAML; `key=value` words on the command line win over it, and `data=PATH` is short for",
        "`data.path=PATH`. Printed by `make docs` from `src/lorgnette/config.py`.",
    ]
    top = [(name, field) for name, field in Settings.model_fields.items() if name not in SECTIONS]
    tables = [("The run", "", top)]
    tables += [(name, f"{name}.", list(section.model_fields.items())) for name, section in SECTIONS.items() if section]
    for title, prefix, fields in tables:
        lines += ["", f"## {title}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `{prefix}{name}` | `{_shown(field.default)}` | {_cell(field.description)} |" for name, field in fields
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


def _shown(default: Any) -> str:
    return "null" if default is None else ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
