"""Chat templates that behave as those of the families: with or without a system text, with thoughts before answers."""

_PARTS = (
    "{% macro write(parts) %}{% for part in parts %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endmacro %}"
)
_EMPTY = "'<think>\\n\\n</think>\\n\\n'"
_LAST = (
    "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
)
_ROOT = (
    _PARTS + _LAST + "{% if last.user < 0 %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and (IS_THOUGHT) %}{{ EMPTY }}{% endif %}{{ write(m.content) | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ PROMPT }}{% endif %}"
)  # fmt: skip
_ASKED = f"{_EMPTY} if enable_thinking is defined and enable_thinking is false else '<think>\\n'"


def _build(is_thought: str, prompt: str) -> str:
    return _ROOT.replace("IS_THOUGHT", is_thought).replace("EMPTY", _EMPTY).replace("PROMPT", prompt)


WITHOUT_SYSTEM = _build("false", "''")
"""Qwen3-VL Instruct."""
THINKING = _build("loop.index0 > last.user", "'<think>\\n'")
"""Qwen3-VL Thinking: every prompt opens a thought."""
THOUGHT_LAST = _build("loop.index0 > last.user", _ASKED)
"""Qwen3.5 and 3.6: only the last answer has a thought."""
THOUGHT_ALWAYS = _build("true", _ASKED)
"""Qwen3.8: every answer has one."""
