"""Loss on the answers and their end tokens and nowhere else; a prompt is the start of the whole conversation."""

import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_templates
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain import ImageOnlyProcessor
from tiny_models import write_small_files
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import TextTokenizer
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, Role, Turn

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TRAPS = ["<|im_end|>", "<|image_pad|>", "<|im_start|>assistant\n", "{{ messages }}", "{% raw %}", "\ufdd00\ufdd1", ""]
TEXT = WORDS | st.sampled_from(TRAPS)


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 84)))


def test_known_image_sizes_are_not_read(tiny: Path, tmp_path: Path) -> None:
    paths: list[Path] = []

    def read_size(path: Path) -> tuple[int, int]:
        paths.append(path)
        return 280, 140

    processor = Processor.from_folder(tiny, ProcessorSettings(image_size=None), read_size=read_size)
    missing = Image(tmp_path / "gone.png")
    [grid] = processor.encode(Example("x", (Turn("user", (missing,)), Turn("assistant", ("a",))), Path("x"), 1)).grids
    assert (grid.w, grid.h) == (20, 10)
    assert paths == [missing.path]


def decode_labels(processor: Processor, encoded: Encoded) -> str:
    return processor.tokenizer.decode_with_control_tokens(encoded.labels[encoded.labels != IGNORE_INDEX].tolist())


@st.composite
def build_conversation(draw: st.DrawFn, image_files: list[Path]) -> Example:
    part = TEXT | st.sampled_from(image_files[:3]).map(Image)
    turns: list[Turn] = [Turn("system", (draw(TEXT),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", tuple(draw(st.lists(part, max_size=4)))))
        answer = tuple(draw(st.lists(TEXT, min_size=1, max_size=2)))
        turns.append(Turn("assistant", answer, has_loss=draw(st.booleans())))
    if draw(st.booleans()):
        turns.append(Turn("user", tuple(draw(st.lists(part, max_size=3)))))
    return Example("x", tuple(turns), Path("x.json"), 1)


@given(data=st.data())
def test_labels_are_exactly_the_answers_with_loss(
    processor: Processor, image_files: list[Path], data: st.DataObject
) -> None:
    example = data.draw(build_conversation(image_files))
    encoded = processor.encode(example)
    answers = [
        "".join(unicodedata.normalize("NFC", str(part)) for part in turn.parts) + "<|im_end|>"
        for turn in example.turns
        if turn.role == "assistant" and turn.has_loss
    ]
    assert decode_labels(processor, encoded) == "".join(answers)
    unmarked = processor.encode(replace(example, turns=tuple(replace(turn, has_loss=True) for turn in example.turns)))
    np.testing.assert_array_equal(encoded.input_ids, unmarked.input_ids)
    has_loss = encoded.labels != IGNORE_INDEX
    np.testing.assert_array_equal(encoded.labels[has_loss], encoded.input_ids[has_loss])
    assert not has_loss[0]
    image = processor.tokenizer.control_tokens["<|image_pad|>"]
    rows = [row for start, grid in zip(encoded.image_starts, encoded.grids, strict=True)
            for row in range(start, start + grid.num_tokens)]  # fmt: skip
    assert np.flatnonzero(encoded.input_ids == image).tolist() == rows
    assert [grid.image for grid in encoded.grids] == list(example.images)
    prompt = processor.encode(example, add_generation_prompt=True)
    count = min(len(prompt.input_ids), len(encoded.input_ids))  # the last answer, or the assistant's header, differs
    np.testing.assert_array_equal(prompt.input_ids[:count], encoded.input_ids[:count])
    np.testing.assert_array_equal(prompt.position_ids[:, :count], encoded.position_ids[:, :count])
    assert processor.tokenizer.decode_with_control_tokens(prompt.input_ids[-3:].tolist()).endswith("assistant\n")


NO_LOSS = "(no loss)"
SIZES = {"wide": (280, 140), "tall": (140, 280), "other": (140, 280), "small": (56, 56)}
SIMILAR: list[tuple[tuple[Role, tuple[str, ...]], ...]] = [
    (("user", ("wide", "what?")), ("assistant", ("a car",))),
    (("user", ("wide", "what?")), ("assistant", ("a bus",))),
    (("user", ("wide", "what?")), ("assistant", ("a ", "car"))),
    (("user", ("wide", "who?")), ("assistant", ("a car",))),
    (("user", ("what?", "wide")), ("assistant", ("a car",))),
    (("user", ("tall", "what?")), ("assistant", ("a car",))),
    (("user", ("other", "what?")), ("assistant", ("a car",))),
    (("user", ("small", "what?")), ("assistant", ("a car",))),
    (("user", ("what?",)), ("assistant", ("a car",))),
    (("user", ("wide", "small", "what?")), ("assistant", ("a car",))),
    (("user", ("small", "wide", "what?")), ("assistant", ("a car",))),
    (("system", ("what?",)), ("user", ("wide",)), ("assistant", ("a car",))),
    (("user", ("wide", "what?")), ("assistant", ("a car",)), ("user", ("what?", "wide"))),
    (("user", ("wide", "what?")), ("assistant", ("a car",)), ("user", ("small",)), ("assistant", ("a bus",))),
    (("user", ("wide", "what?")), ("assistant", ("a car in a park",)), ("user", ("small",)), ("assistant", ("",))),
    (("user", ("wide", "what?")), ("assistant", ("a car", NO_LOSS)), ("user", ("small",)), ("assistant", ("a bus",))),
]
"""Conversations that differ as little as possible. Words of SIZES are images, NO_LOSS marks a turn."""


def get_conversation(number: int) -> Example:
    turns = [
        Turn(role, tuple(Image(Path(p)) if p in SIZES else p for p in parts if p != NO_LOSS), NO_LOSS not in parts)
        for role, parts in SIMILAR[number]
    ]
    return Example(str(number), tuple(turns), Path("x.json"), number)


def to_comparable(encoded: Encoded) -> tuple[object, ...]:
    arrays = (encoded.input_ids, encoded.labels, encoded.position_ids)
    return *(array.tolist() for array in arrays), encoded.image_starts, encoded.grids, encoded.example.id


def list_differing(
    kind: type[Processor], tiny: Path, order: Sequence[int], *, add_generation_prompt: bool
) -> list[int]:
    """The conversations whose encoding changes if others are encoded before them."""

    def create() -> Processor:
        return kind.from_folder(tiny, ProcessorSettings(image_size=None), read_size=lambda path: SIZES[path.name])

    def encode(processor: Processor, number: int) -> tuple[object, ...]:
        example = get_conversation(number)
        return to_comparable(processor.encode(example, add_generation_prompt=add_generation_prompt))

    shared = create()
    return [number for number in order if encode(shared, number) != encode(create(), number)]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("step", [1, -1])
def test_caches_do_not_mix_conversations(tiny: Path, step: int, add_generation_prompt: bool) -> None:
    assert not list_differing(
        Processor, tiny, [*range(len(SIMILAR))][::step] * 2, add_generation_prompt=add_generation_prompt
    )


@pytest.mark.parametrize("ignored", ["questions", "roles", "marks"])
def test_a_cache_with_too_small_a_key_shows(tiny: Path, ignored: str) -> None:
    """Negative control: a frame cached under less than it depends on is used for another conversation."""

    class WrongCache(Processor):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            encode_frame, cache = self._encode_frame, dict[object, Any]()
            self._cached_frame = lambda outline, answer: cache.setdefault(
                reduce(outline), encode_frame(outline, answer)
            )  # type: ignore[assignment]

    def reduce(outline: Any) -> object:
        if ignored == "roles":
            return tuple(part for _, parts, _ in outline for part in parts)
        if ignored == "marks":
            return tuple((role, parts) for role, parts, _ in outline)
        return tuple(
            (role, tuple(part for part in parts if not isinstance(part, tuple)), has_loss)
            for role, parts, has_loss in outline
        )

    assert list_differing(WrongCache, tiny, range(len(SIMILAR)), add_generation_prompt=False)


def test_an_empty_answer_still_has_its_end_token(processor: Processor, example: Callable[..., Example]) -> None:
    assert decode_labels(processor, processor.encode(example(("user", 0), ("assistant", "")))) == "<|im_end|>"


@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("system",)])
def test_a_conversation_without_answers_has_no_labels(
    processor: Processor, example: Callable[..., Example], roles: tuple[Role, ...]
) -> None:
    conversation = example(*((role, "words") for role in roles))
    assert processor.encode(conversation).num_labels == 0
    whole, prompt = processor.encode(conversation), processor.encode(conversation, add_generation_prompt=True)
    np.testing.assert_array_equal(whole.input_ids, prompt.input_ids[: len(whole.input_ids)])


def test_the_tutorials_end_token_replaces_only_the_answers_end(tiny: Path, example: Callable[..., Example]) -> None:
    conversation = example(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    processor = Processor.from_folder(tiny, ProcessorSettings(eos_token="<|endoftext|>"))
    encoded = processor.encode(conversation)
    assert decode_labels(processor, encoded) == "b<|endoftext|>d<|endoftext|>"
    template = Processor.from_folder(tiny, ProcessorSettings()).encode(conversation)
    changed = encoded.input_ids != template.input_ids
    assert set(encoded.input_ids[changed]) == {processor.tokenizer.control_tokens["<|endoftext|>"]}
    assert changed.sum() == 2


def test_max_length_is_exact_and_its_error_counts_tokens(tiny: Path, example: Callable[..., Example]) -> None:
    conversation = example(("user", 0, "what?"), ("assistant", "a car"))
    length = len(Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56))).encode(conversation).input_ids)
    Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56), max_length=length)).encode(conversation)
    with pytest.raises(LorgnetteError) as caught:
        Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56), max_length=length - 1)).encode(conversation)
    assert caught.value.message == f"{length} tokens (4 of them for images), more than max_length={length - 1}"
    assert caught.value.where == conversation.where
    assert "max_length" in str(caught.value.hint)


def test_an_unreadable_image_is_named_every_time(processor: Processor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    conversation = Example("x", (Turn("user", (Image(path),)), Turn("assistant", ("a",))), Path("x.json"), 1)
    for content in (None, b"", b"no image"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LorgnetteError) as caught:
            processor.encode(conversation)
        assert "a.png" in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["vocab.json", "preprocessor_config.json"])
def test_a_missing_checkpoint_file_is_named(tiny: Path, tmp_path: Path, name: str) -> None:
    for path in tiny.iterdir():
        if path.name not in (name, "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(LorgnetteError, match=name):
        Processor.from_folder(tmp_path, ProcessorSettings())


def test_a_template_that_cannot_render_is_found_at_once(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / "chat_template.json").write_text('{"chat_template": "{{ 1 / 0 }}"}')
    with pytest.raises(LorgnetteError, match="chat template refuses the conversation: division by zero"):
        Processor.from_folder(folder, ProcessorSettings())


# Every family: its template, its tokens of 28 or 32 pixels, its thoughts.

TEMPLATES = {
    "Qwen3-VL": ("qwen3_vl", family_templates.WITHOUT_SYSTEM),
    "Qwen3-VL-Thinking": ("qwen3_vl", family_templates.THINKING),
    "Qwen3.5": ("qwen3_5", family_templates.THOUGHT_LAST),
    "Qwen3.8": ("qwen3_5_moe", family_templates.THOUGHT_ALWAYS),
}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """files(model_type) → the small files of a tiny model of this family."""
    folders: dict[str, Path] = {}

    def write(model_type: str) -> Path:
        if model_type not in folders:
            folders[model_type] = tmp_path_factory.mktemp(model_type)
            write_small_files(folders[model_type], model_type)
        return folders[model_type]

    return write


def with_template(folder: Path, template: str, tmp_path: Path) -> Path:
    copy = shutil.copytree(folder, tmp_path / "m")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return copy


def talk(image_files: Sequence[Path], *texts: str) -> Example:
    """Questions and answers in turn; each question after one more image."""
    turns: list[Turn] = []
    for number, text in enumerate(texts):
        images = tuple(map(Image, image_files[: number // 2 + 1])) if number % 2 == 0 else ()
        turns.append(Turn("assistant" if number % 2 else "user", (*images, text)))
    return Example("x", tuple(turns), Path("x.json"), 1)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_every_family_has_the_tokens_of_its_processor(
    files: Callable[[str], Path], image_files: list[Path], model_type: str, add_generation_prompt: bool
) -> None:
    """With the options of its template. Negative control: those of another model."""
    folder = files(model_type)
    processor = Processor.from_folder(folder, ProcessorSettings(image_size=None, image_tokens=(4, 40)))
    config = json.loads((folder / "preprocessor_config.json").read_text())
    side = config["patch_size"] * config["merge_size"]
    sizes = {"shortest_edge": 4 * side**2, "longest_edge": 40 * side**2}
    their_images = Qwen2VLImageProcessorPil(**{**config, "size": sizes})
    theirs = ImageOnlyProcessor(their_images, AutoTokenizer.from_pretrained(folder))
    template = processor.chat_template.source
    example = talk(image_files, "what is it?", "a red car", "e\u0301 नमस्ते and this?", "two, it's  12")
    encoded = processor.encode(example, add_generation_prompt=add_generation_prompt)
    turns = example.without_answer().turns if add_generation_prompt else example.turns
    content = {
        turn: [{"type": "image"} if isinstance(p, Image) else {"type": "text", "text": p} for p in turn.parts]
        for turn in turns
    }
    messages = [{"role": turn.role, "content": content[turn]} for turn in turns]

    def tokenize(**options: bool) -> list[int]:
        text = theirs.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False, **options
        )
        images = [PIL.Image.open(p.path).convert("RGB") for turn in turns for p in turn.parts if isinstance(p, Image)]
        inputs = theirs(text=[text], images=images, return_tensors="pt")
        assert [[g.t, g.h, g.w] for g in encoded.grids] == inputs["image_grid_thw"].tolist()
        ids: list[int] = inputs["input_ids"][0].tolist()
        return ids

    options = dict(FAMILIES[model_type].template_options)
    assert encoded.input_ids.tolist() == tokenize(**options)
    if options and add_generation_prompt:
        assert encoded.input_ids.tolist() != tokenize()


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("Qwen3-VL", "a car<|im_end|>a bus<|im_end|>"),
        ("Qwen3-VL-Thinking", "\n</think>\n\na bus<|im_end|>"),
        ("Qwen3.5", "a bus<|im_end|>"),
        ("Qwen3.8", "a car<|im_end|>a bus<|im_end|>"),
    ],
)
def test_an_answer_is_learned_if_it_begins_as_a_prediction(
    files: Callable[[str], Path], image_files: list[Path], tmp_path: Path, name: str, learned: str
) -> None:
    """A thought that the template writes has no loss; one that the model has to write has."""
    folder = with_template(files(TEMPLATES[name][0]), TEMPLATES[name][1], tmp_path)
    processor = Processor.from_folder(folder, ProcessorSettings(image_size=(64, 64)))
    example = talk(image_files, "what?", "a car", "and this?", "a bus")
    encoded = processor.encode(example)
    assert decode_labels(processor, encoded) == learned
    text = processor.tokenizer.decode_with_control_tokens(encoded.input_ids.tolist())
    assert text.count(EMPTY_THOUGHT) == {"Qwen3-VL": 0, "Qwen3.8": 2}.get(name, 1)
    # What is learned goes on from the prompt, token by token.
    prompt = processor.encode(example, add_generation_prompt=True).input_ids
    np.testing.assert_array_equal(encoded.input_ids[: len(prompt)], prompt)
    assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]
    assert processor.count_skipped_answers(example) == (0 if learned.startswith("a car") else 1)
    only_first = replace(example, turns=(*example.turns[:3], replace(example.turns[3], has_loss=False)))
    if learned.startswith("a car"):
        assert decode_labels(processor, processor.encode(only_first)) == "a car<|im_end|>"
    else:
        with pytest.raises(LorgnetteError, match="no answer that is to be learned begins as a prediction"):
            processor.encode(only_first)


@pytest.mark.parametrize("name", ["Qwen3-VL-Thinking", "Qwen3.5"])
def test_an_answer_with_a_thought_of_its_own_is_refused(
    files: Callable[[str], Path], image_files: list[Path], tmp_path: Path, name: str
) -> None:
    folder = with_template(files(TEMPLATES[name][0]), TEMPLATES[name][1], tmp_path)
    example = talk(image_files, "what?", "<think>hm</think>a car")
    with pytest.raises(LorgnetteError, match=r"an answer has <think>.* · x.json, row 1 · remove the thought"):
        Processor.from_folder(folder, ProcessorSettings()).encode(example)
    Processor.from_folder(files("qwen3_vl"), ProcessorSettings()).encode(example)  # a text like any other


def test_a_prediction_is_shown_without_its_thought(files: Callable[[str], Path]) -> None:
    tokenizer = TextTokenizer.from_folder(files("qwen3_5"), needs_json=True)
    end = tokenizer.control_tokens["</think>"]
    ids = [*tokenizer.encode("<box> hm\n"), end, *tokenizer.encode("\n\na car"), tokenizer.control_tokens["<|im_end|>"]]
    assert tokenizer.decode(ids) == "a car"
    assert "".join(tokenizer.decode_each(ids)) == "a car"
    assert tokenizer.decode(ids[: ids.index(end)]) == "<box> hm\n"  # it has not begun to answer


def test_what_a_model_does_otherwise_is_said(
    files: Callable[[str], Path], image_files: list[Path], tmp_path: Path
) -> None:
    def list_remarks(processor: Processor) -> list[str]:
        return processor.list_remarks(processor.encode_row(example).num_skipped, 0)

    example = talk(image_files, "what?", "a car", "and this?", "a bus")
    rounded = "image_size 280×280 becomes 288×288: an image token of this model has 32×32 pixels"
    assert list_remarks(Processor.from_folder(files("qwen2_5_vl"), ProcessorSettings())) == []
    assert list_remarks(Processor.from_folder(files("qwen3_vl"), ProcessorSettings())) == [rounded]
    [first, second] = list_remarks(Processor.from_folder(files("qwen3_5"), ProcessorSettings()))
    assert first == rounded
    assert second.startswith("1 answer is not trained: in a conversation this model begins only its last answer")
    folder = with_template(files("qwen3_vl"), family_templates.THINKING, tmp_path)
    settings = ProcessorSettings(image_size=(288, 288))
    [thinks, _] = list_remarks(Processor.from_folder(folder, settings))
    assert thinks.startswith("this model thinks before it answers")


def test_tokens_of_a_newer_model_come_from_its_tokenizer_json(files: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(files("qwen3_5"), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(files("qwen2_vl") / name, folder)
    with pytest.raises(LorgnetteError, match=r"tokenizer\.json is missing; the tokens of this model"):
        Processor.from_folder(folder, ProcessorSettings())


def test_an_image_token_of_another_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    """transformers would find no image in any prompt."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    Processor.from_folder(folder, ProcessorSettings())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 5}))
    with pytest.raises(LorgnetteError, match=r"image_token_id is 5, but <\|image_pad\|> is"):
        Processor.from_folder(folder, ProcessorSettings())
