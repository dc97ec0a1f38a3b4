"""The chat template is rendered once per shape, and its defects are named."""

import json
import shutil
from pathlib import Path

import pytest
from plain import ImageOnlyProcessor

from lorgnette.errors import LorgnetteError
from lorgnette.processing.chat_template import ChatTemplate, ConversationShape

SHAPE: ConversationShape = (("user", (True, False)), ("assistant", (False,)))
PLAIN = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text or '#' }}{% endfor %}{% endfor %}"


def test_pieces_are_the_templates_text_and_the_numbers_of_texts(tiny: Path) -> None:
    pieces = ChatTemplate.from_folder(tiny).render(SHAPE, False)
    assert [piece for piece in pieces if isinstance(piece, int)] == [0, 1]
    assert "".join(str(piece) for piece in pieces) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>0<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n"
    )


def test_a_generation_prompt_ends_with_the_assistants_header(tiny: Path) -> None:
    pieces = ChatTemplate.from_folder(tiny).render((("system", (False,)), ("user", (False,))), True)
    assert pieces[0] == "<|im_start|>system\n"
    assert str(pieces[-1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_first_file_with_a_template_is_read(tmp_path: Path) -> None:
    def read_source() -> str:
        return ChatTemplate.from_folder(tmp_path).source

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert read_source() == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": None}))
    assert read_source() == "config"
    (tmp_path / "chat_template.jinja").write_text("jinja é", encoding="utf-8")
    assert read_source() == "jinja é"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert read_source() == "json"


def test_a_missing_template_is_an_error(tmp_path: Path) -> None:
    for content in (None, "{}"):
        if content:
            (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(LorgnetteError, match="checkpoint has no chat template") as caught:
            ChatTemplate.from_folder(tmp_path)
        assert caught.value.where == str(tmp_path)
        assert "Instruct" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.json", b"{", "chat_template.json cannot be read"),
        ("chat_template.json", b"[]", "chat_template.json cannot be read"),
        ("tokenizer_config.json", b"\xff\xfe", "tokenizer_config.json cannot be read"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja cannot be read"),
        ("chat_template.jinja", b"{% if %}", "chat template cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LorgnetteError) as caught:
        ChatTemplate.from_folder(tmp_path)
    assert caught.value.message.startswith(message)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "refuses the conversation: "),  # a text model's
        ("{{ messages[7].content.x }}", "refuses the conversation: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the conversation: "),  # blocked by the sandbox
        ("hello", "does not keep every text once and in order"),
        (PLAIN + PLAIN, "does not keep every text once and in order"),
        (PLAIN.replace("in messages", "in messages | reverse"), "does not keep every text once and in order"),
    ],
)
def test_an_unsuitable_template_is_refused(source: str, message: str) -> None:
    with pytest.raises(LorgnetteError, match=message) as caught:
        ChatTemplate(source, "x.jinja").render(SHAPE, False)
    assert caught.value.where == "x.jinja"
    assert caught.value.hint


def test_loop_controls_work_as_in_transformers() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content[0].text }}!{% endfor %}"
    assert ChatTemplate(source, "x").render((("user", (False,)),), False) == (0, "!")


def test_of_two_templates_that_of_transformers_is_taken(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    assert (folder / "chat_template.json").is_file()
    (folder / "chat_template.jinja").write_text(PLAIN)
    theirs = ImageOnlyProcessor.from_pretrained(folder, backend="pil")
    assert ChatTemplate.from_folder(folder).source == theirs.chat_template != PLAIN
