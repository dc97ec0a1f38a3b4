"""The chat template: rendered by shape, its texts put back one by one, its faults named."""

import json
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.processing.chat_template import ChatTemplate, ConversationShape

ASKED: ConversationShape = (("user", (True, False)), ("assistant", (False,)))
PLAIN = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text or '#' }}{% endfor %}{% endfor %}"


def test_pieces_are_the_templates_own_and_the_texts_numbers(tiny: Path) -> None:
    pieces = ChatTemplate.from_folder(tiny).render(ASKED, False)
    assert [piece for piece in pieces if isinstance(piece, int)] == [0, 1]
    assert "".join(str(piece) for piece in pieces) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>0<|im_end|>\n"
        "<|im_start|>assistant\n1<|im_end|>\n"
    )


def test_to_answer_is_to_end_with_the_assistants_header(tiny: Path) -> None:
    pieces = ChatTemplate.from_folder(tiny).render((("system", (False,)), ("user", (False,))), True)
    assert pieces[0] == "<|im_start|>system\n"
    assert str(pieces[-1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_first_file_that_has_a_template_is_taken(tmp_path: Path) -> None:
    def taken() -> str:
        return ChatTemplate.from_folder(tmp_path).source

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert taken() == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": None}))
    assert taken() == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert taken() == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja é", encoding="utf-8")
    assert taken() == "jinja é"


def test_no_template_is_an_error(tmp_path: Path) -> None:
    for content in (None, "{}"):
        if content:
            (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(LorgnetteError, match="checkpoint has no chat template") as caught:
            ChatTemplate.from_folder(tmp_path)
        assert caught.value.where == str(tmp_path)
        assert "Instruct" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("chat_template.json", b"{", "chat_template.json cannot be read"),
        ("chat_template.json", b"[]", "chat_template.json cannot be read"),
        ("tokenizer_config.json", b"\xff\xfe", "tokenizer_config.json cannot be read"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja cannot be read"),
        ("chat_template.jinja", b"{% if %}", "chat template cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LorgnetteError) as caught:
        ChatTemplate.from_folder(tmp_path)
    assert caught.value.message.startswith(what)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "refuses the conversation: "),  # a text model's
        ("{{ messages[7].content.x }}", "refuses the conversation: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the conversation: "),  # the sandbox holds
        ("hello", "does not keep every text once and in order"),
        (PLAIN + PLAIN, "does not keep every text once and in order"),
        (PLAIN.replace("in messages", "in messages | reverse"), "does not keep every text once and in order"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(source: str, what: str) -> None:
    with pytest.raises(LorgnetteError, match=what) as caught:
        ChatTemplate(source, "x.jinja").render(ASKED, False)
    assert caught.value.where == "x.jinja"
    assert caught.value.hint


def test_loop_controls_work_as_in_transformers() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content[0].text }}!{% endfor %}"
    assert ChatTemplate(source, "x").render((("user", (False,)),), False) == (0, "!")
