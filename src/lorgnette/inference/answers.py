"""Answers to prompts before and after training, as rows of a report."""

from collections.abc import Sequence

from lorgnette.inference.loading import LoadedModel, explain_out_of_memory
from lorgnette.inference.sampling import SamplingParams
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.report.console import Terminal
from lorgnette.types import Example, PredictionRow


def answer_examples(
    model: LoadedModel,
    examples: Sequence[Example],
    sampling: SamplingParams,
    terminal: Terminal,
    *,
    with_base: bool = True,
    with_adapter: bool = True,
    memory_hint: str = "free some memory, or use --device cpu",
) -> list[PredictionRow]:
    """Answer every distinct (images, prompt) of the examples once, in order, without and with the adapter. memory_hint:
    the advice in an out-of-memory error."""
    prompts = group_by_prompt(examples)
    before: Sequence[str | None] = [None] * len(prompts)
    after: Sequence[str | None] = [None] * len(prompts)
    if with_base:
        before = answer_prompts(model, prompts, sampling, terminal, "before", None, memory_hint)
    if with_adapter:
        after = answer_prompts(model, prompts, sampling, terminal, "after", "tuned", memory_hint)
    return [prompt.build_row(base, tuned) for prompt, base, tuned in zip(prompts, before, after, strict=True)]


def answer_prompts(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    sampling: SamplingParams,
    terminal: Terminal,
    label: str,
    adapter: str | None,
    memory_hint: str = "use a smaller --batch-size",
) -> list[str]:
    """The answer to every prompt. label: of the progress bar; adapter: None disables it."""
    examples = [prompt.example for prompt in prompts]
    with terminal.show_progress(label, len(examples)) as advance, explain_out_of_memory(memory_hint):
        predictions = model.generate_answers(examples, sampling, adapter=adapter, on_progress=advance)
        return [prediction.text for prediction in predictions]
