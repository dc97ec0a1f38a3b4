"""The settings of a run: one frozen tree. A recipe (YAML) comes first; `key=value` words override it.

Each setting has its name, meaning and unit here, once; `docs/settings.md` is generated from this file. Knows nothing
about the effect of a setting.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.parse import is_unicode, read_yaml, shorten
from lorgnette.io.shell import quote_word
from lorgnette.synonyms import (
    COMMAND_LINE,
    SYNONYMS,
    Assignment,
    Entry,
    find_settings,
    format_value,
    normalize,
    translate,
)

DEFAULT_PROMPT = "Describe this image."
"""The user's text if neither the data nor the settings have one."""
BOX_PROMPT = "Find all objects in this image."
"""The same for a file of boxes (COCO)."""
TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGET_MODULES: tuple[TargetModule, ...] = get_args(TargetModule)
Part = Literal["language", "merger", "vision"]
TrackerName = Literal["auto", "none", "swanlab", "tensorboard", "wandb"]


def _parse_list(value: Any) -> Any:
    """`a,b` on the command line is a list; one word is a list of one."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.strip("[]").split(",") if word.strip())
    return value


def _join_paths(value: Any) -> Any:
    """A list of data files is written as one text, `a.csv,b.csv`."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _parse_size(value: Any) -> Any:
    """`280x280` and `280` both mean `[280, 280]`."""
    if value == "native":  # the word of predict.image_size
        raise PydanticCustomError("native", "write null for images that keep their shape (image_tokens limits them)")
    value = _parse_list(value.replace("x", ",", 1)) if isinstance(value, str) else value
    sides = (value,) if isinstance(value, int) else value
    return sides * 2 if isinstance(sides, tuple) and len(sides) == 1 else sides


def _check_ascending(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise PydanticCustomError("ascending", "the minimum is greater than the maximum")
    return pair


def _explain_number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A setting that is a number or `auto` has one message, not one of each."""
    try:
        return validate(value)
    except ValidationError:
        least = _LEAST_NUMBERS[info.field_name or ""]
        raise PydanticCustomError("number_or_auto", f"write a whole number of {least} or more, or auto") from None


def _explain_flag_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """The same for true, false and `auto`."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("flag_or_auto", "write true, false or auto") from None


_LEAST_NUMBERS = {"epochs": 1, "holdout": 0}
_REASONS = {
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "float_parsing": "it is not a valid number",
    "float_type": "it is not a valid number",
    "int_from_float": "it is not a whole number",
    "int_parsing": "it is not a whole number",
    "int_type": "it is not a whole number",
}
"""pydantic's type of an error → words for people; its own message names what a program does."""
_PATHS = ("model", "images_from")
"""Texts that may be paths, which need not be UTF-8."""
# Limits that no real run comes near: a larger value is a slip or an attack, and would fill the memory.
_Side = Annotated[PositiveInt, Field(le=2**14)]
_TokenCount = Annotated[PositiveInt, Field(le=2**16)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_characters(cls, value: Any, info: ValidationInfo) -> Any:
        """No system takes a NUL in a path, and no tokenizer a text that is not Unicode."""
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path) and "\0" in str(item):
                raise PydanticCustomError("nul", "it has a NUL character")
            if isinstance(item, str) and info.field_name not in _PATHS and not is_unicode(item):
                raise PydanticCustomError("surrogate", "it has half of a surrogate pair, or is not UTF-8")
        return value


class ProcessorSettings(Section):
    """How an example becomes tokens and pixels. An adapter keeps them beside it."""

    image_size: Annotated[tuple[_Side, _Side] | None, BeforeValidator(_parse_size)] = Field(
        (280, 280),
        description="height and width of every image in pixels, rounded to whole image tokens (28 or 32 pixels, by "
        "model); null: keep its shape",
    )
    image_tokens: Annotated[
        tuple[_TokenCount, _TokenCount], BeforeValidator(_parse_list), AfterValidator(_check_ascending)
    ] = Field((4, 1280), description="minimum and maximum tokens per image that keeps its shape (image_size=null)")
    eos_token: Literal["template", "<|endoftext|>"] = Field(
        "template", description="the token that ends an answer: the chat template's, or the tutorial's <|endoftext|>"
    )
    max_length: PositiveInt = Field(
        8192, le=2**24, description="maximum tokens per example; a longer example is a broken row"
    )


class DataSettings(Section):
    path: Annotated[Path | None, BeforeValidator(_join_paths)] = Field(
        None,
        description="the examples: a data file or folder of any format (docs/data.md), several with commas, hf:NAME or "
        "modelscope:NAME",
    )
    test: Annotated[Path | None, BeforeValidator(_join_paths)] = Field(
        None, description="a file of held-out examples; null: split off `holdout` examples"
    )
    holdout: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], WrapValidator(_explain_number_or_auto)] = Field(
        "auto",
        description="number of examples that are split off for the test, from the end; auto: a tenth of the images, "
        "at least 4 and at most 64",
    )
    split: Literal["image", "tail"] = Field(
        "image", description="image: no image is in both parts; tail: exactly the last `holdout` rows"
    )
    prompt: str = Field(DEFAULT_PROMPT, description="the user's text if the data has no prompt (a CSV)")
    trim: bool = Field(
        True, description="remove blanks around captions and the questions beside them; conversations keep theirs"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: do not start with broken rows; skip: leave them out and name each"
    )
    max_rows: PositiveInt | None = Field(None, description="use the first N rows only")
    images_from: str | None = Field(
        None, description="a folder or zip with the images, found by file name; for data sets on a hub also a URL"
    )
    image_column: str | None = Field(None, description="the table's column with images; null: recognized")
    caption_column: str | None = Field(
        None, description="the table's column with captions or answers; null: recognized by name and content"
    )
    group_by_image: bool = Field(
        False,
        description="put all captions of an image into one micro-batch and compute the image once; changes the order "
        "of examples",
    )


class LoraSettings(Section):
    rank: PositiveInt = Field(16, le=2**16, description="rank of the LoRA matrices A and B")
    alpha: PositiveInt = Field(32, le=2**24, description="scale: alpha/rank, or alpha/√rank with use_rslora")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the input of LoRA")
    use_rslora: bool = Field(False, description="rank-stabilized scale")
    target_modules: Annotated[tuple[TargetModule, ...], BeforeValidator(_parse_list)] = Field(
        TARGET_MODULES, min_length=1, description="adapted linear layers of the language model"
    )
    parts: Annotated[tuple[Part, ...], BeforeValidator(_parse_list)] = Field(
        ("language",), min_length=1, description="adapted parts of the model: language, merger, vision"
    )


class TrainSettings(Section):
    epochs: Annotated[
        Annotated[int, Field(ge=1, le=10**6)] | Literal["auto"], WrapValidator(_explain_number_or_auto)
    ] = Field(
        "auto",
        description="number of passes over the data; auto: until the loss is low or no longer falls "
        "(docs/guides/few-images.md)",
    )
    max_steps: PositiveInt | None = Field(None, le=10**9, description="stop after N optimizer steps")
    batch_size: PositiveInt = Field(16, le=10**6, description="examples per optimizer step")
    max_tokens_per_microbatch: PositiveInt = Field(
        16384,
        le=2**24,
        description="maximum tokens per forward pass; a step is split into as many micro-batches as it needs",
    )
    fully_shard: Annotated[bool | Literal["auto"], WrapValidator(_explain_flag_or_auto)] = Field(
        "auto",
        description="with several GPUs: each holds a part of every layer of the language model, and the layer that "
        "computes is gathered (FSDP); auto: if the model does not fit one GPU",
    )
    learning_rate: float = Field(2e-4, gt=0, allow_inf_nan=False, description="peak learning rate")
    lr_scheduler_type: Literal["auto", "linear", "cosine", "constant"] = Field(
        "auto",
        description="learning-rate schedule; auto: linear, or constant and then down with epochs=auto, which takes no "
        "other",
    )
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="steps in which the learning rate rises from 0; below 1 a share of all steps, rounded up; null: 4 "
        "with epochs=auto, else 0",
    )
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    logging_steps: PositiveInt = Field(
        1, description="steps between two records of the log; the terminal shows every tenth step and the last"
    )
    save_steps: PositiveInt | None = Field(
        100, description="steps between two checkpoints; null: each epoch (the last step is always saved)"
    )
    eval_steps: PositiveInt | None = Field(
        None,
        description="steps between two evaluations: the eval loss and the answers to four held-out images; null: each "
        "epoch, or about 16 times with epochs=auto",
    )
    metric_for_best_model: str = Field(
        "loss",
        min_length=1,
        description="how the best checkpoint is chosen: the eval loss, or a metric by name (ROUGE-L, CIDEr-D, "
        "accuracy, macro-F1, …), which answers all held-out examples at each evaluation",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="stop after N evaluations without a new best; null: train to the end"
    )

    @field_validator("lr_scheduler_type")
    @classmethod
    def _check_schedule(cls, value: str, info: ValidationInfo) -> str:
        """No setting is ignored: a schedule over all steps needs their number."""
        if value != "auto" and info.data.get("epochs") == "auto":
            message = "it needs a number of epochs, such as train.epochs=2; with train.epochs=auto it can only be auto"
            raise PydanticCustomError("schedule", message)
        return value

    @field_validator("warmup_steps")
    @classmethod
    def _check_warmup(cls, value: float | None, info: ValidationInfo) -> float | None:
        """A share of all steps needs their number."""
        if isinstance(value, float) and info.data.get("epochs") == "auto":
            message = (
                "a share of all steps needs a number of epochs, such as train.epochs=2; or write a number of steps"
            )
            raise PydanticCustomError("warmup", message)
        return value

    def count_warmup_steps(self, total_steps: int) -> int:
        """Steps of the warm-up. A share is rounded up, as in transformers' TrainingArguments.get_warmup_steps."""
        if self.warmup_steps is None:
            return 4 if self.epochs == "auto" else 0
        return self.warmup_steps if isinstance(self.warmup_steps, int) else math.ceil(total_steps * self.warmup_steps)


class PredictSettings(Section):
    max_new_tokens: PositiveInt = Field(128, le=2**20, description="maximum tokens per answer")
    batch_size: PositiveInt = Field(32, le=10**5, description="examples per generation batch")
    metrics: Annotated[tuple[str, ...], BeforeValidator(_parse_list)] = Field(
        ("auto",),
        min_length=1,
        description="metrics of held-out answers: auto (box, label, json or caption, by the references), label "
        "(accuracy, macro-F1), json (fields), box (IoU, AP), caption (BLEU, ROUGE-L, CIDEr-D), latex (exact match, "
        "edits), demo (its facts), none, or metrics by name (ANLS,token-F1; docs/metrics.md)",
    )
    image_size: Literal["train", "native"] = Field(
        "train", description="train: the size of training; native: the image's own size, as the tutorial tests"
    )


class Settings(ProcessorSettings):
    model: str = Field(
        "Qwen/Qwen2-VL-2B-Instruct",
        description="a folder, or a name on a hub (a cached model first; hf:NAME or modelscope:NAME: from that hub); "
        "`lorgnette model list` lists the names; `demo` is the built-in model",
    )
    adapter: Path | None = Field(
        None,
        description="a run, or an adapter's folder, to continue: training starts from its LoRA matrices and takes its "
        "model, prompt, image size and lora.* unless they are set; null: a new adapter",
    )
    engine: Literal["auto", "fast", "reference"] = Field(
        "auto", description="auto: fast on CUDA if it supports the run, else reference"
    )
    run: Path | None = Field(None, description="the run folder; null: the next free one under runs/")
    seed: int = Field(0, ge=0, lt=2**63, description="seed for shuffling, initialization and dropout")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="auto: CUDA if there is a GPU, else the CPU; mps: a Mac's GPU, not tested (engine reference)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 on a GPU that computes it, float16 with loss scaling on one that does not, float32 "
        "elsewhere",
    )
    quantization: Literal["nf4"] | None = Field(
        None,
        description="nf4: the decoder's projections are frozen in 4 bits (QLoRA; docs/guides/nf4.md); null: as the "
        "model's files store them",
    )
    report_to: Annotated[tuple[TrackerName, ...], BeforeValidator(_parse_list)] = Field(
        ("auto",),
        min_length=1,
        description="swanlab, tensorboard, wandb (several: a,b), none; auto: SwanLab on this machine, if installed, "
        "without an upload",
    )
    project: str = Field("lorgnette", description="the tracker's project; the experiment has the run folder's name")
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all values are equal, wherever they come from."""
        return isinstance(other, Settings) and self.__dict__ == other.__dict__

    __hash__ = ProcessorSettings.__hash__

    @property
    def sources(self) -> Mapping[str, str]:
        """Setting → where it was set: a recipe's name, "arguments" or "command line". A default is not among them."""
        return self._sources

    @property
    def processor(self) -> ProcessorSettings:
        return ProcessorSettings(**{name: getattr(self, name) for name in ProcessorSettings.model_fields})

    @property
    def keeps_shape(self) -> bool:
        """Whether the model gets images in their own shape, in training or for the held-out prompts."""
        return self.image_size is None or self.predict.image_size == "native"


SECTIONS = {name: type(f.default) for name, f in Settings.model_fields.items() if isinstance(f.default, Section)}
_OWN = [name for name in Settings.model_fields if name not in ProcessorSettings.model_fields]
TOP_LEVEL = [
    name for name in (*_OWN, *ProcessorSettings.model_fields) if name in Settings.model_fields and name not in SECTIONS
]


def list_settings() -> list[str]:
    """The full name of every setting, in the order of docs/settings.md."""
    return TOP_LEVEL + [f"{section}.{name}" for section, fields in SECTIONS.items() for name in fields.model_fields]


def is_setting(word: str) -> bool:
    """Whether a word is a setting's name, the end of one, or a word of another trainer."""
    return normalize(word) in SYNONYMS or bool(find_settings(word, list_settings()))


def describe_setting(name: str) -> tuple[str, str]:
    """(default, meaning) of a setting, as texts; the default as it is typed."""
    section, _, field_name = name.rpartition(".")
    field = (SECTIONS[section] if section else Settings).model_fields[field_name]
    return format_value(field.default), field.description or ""


def load_settings(
    recipe: Mapping[str, Any] | None,
    words: Iterable[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    where: str = "recipe",
    on_remark: Callable[[str], None] = lambda line: None,
    sources: Mapping[str, str] | None = None,
) -> Settings:
    """Merge a recipe's tree, a second tree of `values` and `key=value` words, one setting at a time; later ones win.

    A key is a setting's name, its end (`epochs` for `train.epochs`), or a word of another trainer; on_remark gets a
    line that says what such a word sets. `data=PATH` is short for `data.path=PATH`. where: the recipe's name; sources:
    other sources of some of its settings. Raises UsageError that names every key that cannot be used, or the value that
    does not fit.
    """
    entries = [Entry(key, value, (sources or {}).get(key, where)) for key, value in _flatten(recipe or {})]
    entries += [Entry(key, value, "arguments") for key, value in _flatten(values or {})]
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not a setting", hint="write key=value, as in train.learning_rate=1e-4")
        entries.append(Entry(key, None if text == "null" else text, COMMAND_LINE))

    assignments, remarks = translate(entries, list_settings())
    tree, origins = dict[str, Any](), dict[str, Assignment]()
    for assignment in assignments:
        section, _, field = assignment.setting.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[field] = assignment.value
        origins[assignment.setting] = assignment

    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(part for part in first["loc"] if isinstance(part, str))
        origin = origins[name]
        written = "" if origin.written in (name, "data") else f"{origin.written} → "
        reason = _REASONS.get(first["type"]) or f"{first['msg'][0].lower()}{first['msg'][1:]}"
        message = f"{written}{name} = {shorten(repr(first['input']))}: {reason}"
        hint = f"`lorgnette settings {quote_word(name)}` explains it"
        if re.fullmatch(r"[-+]?\d+,\d+", str(first["input"]).strip()):
            hint = f"write {str(first['input']).strip().replace(',', '.')}, with a point"
        raise UsageError(message, where=origin.source, hint=hint) from None
    settings._sources = {name: origin.source for name, origin in origins.items()}
    for line in remarks:
        on_remark(line)
    return settings


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe's tree. Raises UsageError if the file is missing, is no YAML, or is not a mapping."""
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise UsageError("no such recipe", where=str(path), hint="`lorgnette recipe list` lists the recipes") from None
    except (LorgnetteError, OSError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=str(path), hint="write it as YAML") from None
    if tree is not None and not isinstance(tree, dict):
        raise UsageError("the recipe is not a mapping", where=str(path), hint="write lines `setting: value`")
    return tree or {}


def dump_settings(settings: Settings) -> str:
    """Write the whole tree as YAML; `read_recipe` and `load_settings` read it back to equal settings."""
    has_nel = "\x85" in settings.model_dump_json()  # PyYAML reads this line break as a space unless it is escaped
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=not has_nel)


def _flatten(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if name in SECTIONS and isinstance(value, Mapping | None):  # None: a section with nothing below it
            yield from ((f"{name}.{field}", field_value) for field, field_value in (value or {}).items())
        else:
            yield str(name), value
