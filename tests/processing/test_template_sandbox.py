# ruff: noqa: E501 - a template on each line
"""Real templates render as in jinja2's sandbox; a hostile one ends in an error, quickly and in little memory."""

import json
import resource
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jinja2.ext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorgnette.errors import LorgnetteError
from lorgnette.processing import chat_template
from lorgnette.processing.chat_template import ChatTemplate, ConversationShape
from lorgnette.processing.template_sandbox import TemplateSandbox
from lorgnette.resolve import BUILT_IN_MODEL

SHAPE: ConversationShape = (("user", (True, False)), ("assistant", (False,)))
TEXT = "{{ messages[0].content[1].text }}{{ messages[1].content[0].text }}"
"""The texts of SHAPE in order, so that only what is added to it can be refused."""


@cache
def compile_plain(source: str) -> jinja2.Template:
    extensions = [jinja2.ext.loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    return environment.from_string(source)


@cache
def compile_metered(source: str) -> tuple[TemplateSandbox, jinja2.Template]:
    sandbox = TemplateSandbox()
    return sandbox, sandbox.compile_source(source)


def render_plain(source: str, **values: object) -> str:
    return compile_plain(source).render(**values)


def render_metered(source: str, **values: object) -> str:
    sandbox, template = compile_metered(source)
    sandbox.budget = 10**6
    return template.render(**values)


def build_messages(shape: list[tuple[str, list[str | None]]]) -> list[dict[str, object]]:
    return [
        {
            "role": role,
            "content": [{"type": "image"} if text is None else {"type": "text", "text": text} for text in parts],
        }
        for role, parts in shape
    ]


@pytest.fixture(scope="module")
def templates(shared: Callable[[str], Path]) -> list[str]:
    folder = shared("qwen2-vl")
    sources = [path.read_text(encoding="utf-8") for path in sorted((folder / "configs").glob("*.jinja"))]
    files = (folder / "chat_template.json", folder / "tokenizer_config.json", BUILT_IN_MODEL / "chat_template.json")
    sources += [json.loads(path.read_text(encoding="utf-8"))["chat_template"] for path in files]
    assert len(sources) >= 5
    return sources


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant"]), st.lists(st.none() | st.sampled_from(["a", "b\n", ""]), min_size=1)
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=8)
@given(turns=TURNS, system=st.booleans(), prompt=st.booleans(), tools=st.booleans())
def test_real_templates_render_as_in_jinja2(templates, turns, system: bool, prompt: bool, tools: bool) -> None:
    messages = build_messages([("system", ["s"]), *turns] if system else turns)
    # Their json escapes for HTML; ours is transformers'.
    values = {"messages": messages, "add_generation_prompt": prompt, "tools": [{"name": "f"}] if tools else None}
    for source in templates:
        plain = render_plain(source, **values).replace("\\u0022", '"')
        assert render_metered(source, **values) == plain


EXPRESSIONS = [
    "{% set n = namespace(a=0, b='') %}{% for i in range(4) %}{% set n.a = n.a + i %}{% set n.b = n.b ~ i %}{% endfor %}{{ n.a }}{{ n.b }}",
    "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f('b', y=3) ~ f(1) }}",
    "{% for k, v in {'a': 1, 'b': [1, 'x']}.items() %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ k }}{{ v }}{% else %}none{% endfor %}",
    "{% for i in [1, 2, 3] if i != 2 %}{% if loop.first %}{% continue %}{% endif %}{{ i }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{{ 'abc'[::-1] }}{{ ' a '.strip() | upper }}{{ 'a-b'.split('-') | join('+') }}{{ [1, 2][0] }}{{ (1, 2) }}{{ 'a' ~ 1 ~ none }}",
    "{{ 'aaa' | replace('a', 'bc') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ ','.join(['x', 'y']) }}{{ '-' * 3 }}{{ 7 % 3 }}{{ 2 ** 5 }}",
    "{{ [3, 1] | length }}{{ [{'a': 1}, {'a': 2}] | map(attribute='a') | list }}{{ [1, 2, 3] | select('gt', 1) | list }}{{ x | default('d') }}",
    "{% set y %}a{{ 1 }}{% endset %}{{ y }}{{ 'b' in 'abc' }}{{ 1 == 1.0 }}{{ not 1 }}{{ -1 }}{{ 1 if x is defined else 2 }}{{ x }}",
    "{{ [1, 2] + [3] }}{{ 'a' is string }}{{ {} is mapping }}{{ 3 is divisibleby 3 }}{{ 'é<' }}{{ '<' | safe }}{{ [1, 1] | unique | list }}",
]  # fmt: skip


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_every_construct_gives_what_jinja2_gives(source: str) -> None:
    assert render_metered(source) == render_plain(source)


def test_json_is_written_as_in_transformers() -> None:
    assert render_metered("{{ x | tojson }}", x={"é": "<'>", "a": [1, None]}) == '{"é": "<\'>", "a": [1, null]}'


HOSTILE = [
    # Loops that never end, nested and one after another.
    "{% for a in range(10**7) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{{ range(99999) | map('string')" + " | map('string')" * 500 + " | list | length }}",
    "{% for a in 'x' * 90000 %}{% for b in 'x' * 90000 %}{% endfor %}{% endfor %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    # Macros that call themselves.
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    # Texts, lists and numbers that grow.
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ ['a'] * 10**9 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x.replace('a', 'aaaa') %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x | replace('a', 'aaaa') %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x.join(n.x) %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x | join(n.x) %}{% endfor %}",
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x == n.x }}",
    "{% set n = namespace(x={}) %}{% for i in range(60) %}{% set n.x = {'a': n.x.items(), 'b': n.x.items()} %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=[n.x, n.x]) %}{% endfor %}{{ n.x }}{{ 1/0 }}",
    "{% set s = 'x' * 90000 %}" + "{% set a = s[1:] %}" * 300,
    "{% set s = 'x' * 90000 %}{% for i in range(9999) %}{% if s == s[1:] ~ 'x' %}{% endif %}{% endfor %}",
    "{% for a in range(99999) %}" + "y" * 50_000 + "{% endfor %}",
    "{% macro f() %}{% for a in range(99999) %}" + "y" * 50_000 + "{% endfor %}{% endmacro %}{% set x = f() %}",
    "{% set x %}{% for a in range(99999) %}" + "y" * 50_000 + "{% endfor %}{% endset %}",
    "{{ 'a'.center(10**10) }}", "{{ 'a' | center(10**10) }}", "{{ 'a' | indent(10**10) }}", "{{ 'a'.zfill(10**10) }}",
    "{{ '%010000000000d' % 1 }}", "{{ '{:>10000000000}'.format(1) }}", "{{ '%1000000000d' | format(1) }}",
    "{{ '\t'.expandtabs(10**10) }}", "{{ [1] | batch(10**9, 0) | list }}", "{{ lipsum(n=10**6) }}",
    "{{ [[1]] | tojson(indent=10**9) }}", "{{ [1] | slice(10**9) | list }}", "{{ [2] | sum(start=9) | pprint }}",
    # What is no arithmetic, no text or no end.
    "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ 10 ** 400 * 1.5 }}", "{{ 2.5 ** 9999 }}", "{{ ('f' * 9000) | int(base=16) }}",
    "{{ messages.x.y }}", "{{ raise_exception('x' * 90000) }}", "{{ range(10**30) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ 1" + " + 1" * 9000 + " }}", "{{ " + "[" * 300 + "]" * 300 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "{{ " + "9" * 9000 + " }}",
    "x" * 2**17,
    # What reaches out of the template.
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ ''.__class__.__mro__ }}{{ ().__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}",
    "{{ [].__class__ }}{{ raise_exception.__globals__['os'].system('x') }}", "{{ cycler.__init__.__globals__ }}{{ 1/0 }}",
    "{% set x = 'a'.join %}{{ x(messages * 10**6) }}", "{{ messages | map('center', 10**9) | list }}",
    "{{ dict(a=1).update(b=2) }}", "{{ {}.fromkeys(range(9999)) }}", "{{ '' | attr('join') }}", "{{ 1 | iterate(-5) }}",
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_template_ends_in_an_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shape checks of the tests make each step take several times as long.
    monkeypatch.setattr(chat_template, "_BUDGET", 50_000)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(LorgnetteError, match=r"chat template (refuses the conversation|cannot be read): .") as caught:
        ChatTemplate(source + TEXT, "x.jinja").render(SHAPE, False)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert len(str(caught.value)) < 300


def test_long_conversations_render() -> None:
    """The budget grows with the conversation."""
    source = json.loads((BUILT_IN_MODEL / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    shape: ConversationShape = (("user", (True, False)), ("assistant", (False,))) * 50
    assert len(ChatTemplate(source, "x").render(shape, False)) == 201
