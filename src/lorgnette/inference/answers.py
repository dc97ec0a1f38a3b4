"""Answers to prompts before and after training, as rows of a report."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest

import torch

from lorgnette.distributed import World
from lorgnette.inference.answer_boxes import locate_references
from lorgnette.inference.loading import LoadedModel, explain_out_of_memory
from lorgnette.inference.sampling import SamplingParams
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.processing.processor import Processor, describe_image_size
from lorgnette.processing.rank_shares import split_between_ranks
from lorgnette.report.console import Terminal
from lorgnette.types import BASE_MODEL, Example, Prediction, PredictionRow


class AnswersInterrupted(KeyboardInterrupt):
    """Ctrl-C while prompts are answered. rows: those with an answer, of num_prompts."""

    def __init__(self, rows: Sequence[PredictionRow], num_prompts: int) -> None:
        self.rows, self.num_prompts = rows, num_prompts


def answer_examples(
    model: LoadedModel,
    examples: Sequence[Example],
    sampling: SamplingParams,
    terminal: Terminal,
    *,
    with_base: bool = True,
    with_adapter: bool = True,
    memory_hint: str = "free some memory, or use --device cpu",
    world: World = World(),
) -> list[PredictionRow]:
    """Answer every distinct (images, prompt) of the examples once, in order, without and with the adapter.

    memory_hint: the advice in an out-of-memory error. world: its ranks share the prompts, and each gets all answers.
    Raises AnswersInterrupted with what was answered before Ctrl-C; with several ranks, by all of them.
    """
    prompts = locate_references(group_by_prompt(examples), model.processor)
    before, after = list[Prediction](), list[Prediction]()

    def build_rows() -> list[PredictionRow]:
        generation = describe_generation(model.processor, sampling)
        pairs = zip_longest(before, after)
        return [prompt.build_row(*pair, generation) for prompt, pair in zip(prompts, pairs, strict=False)]

    try:
        for answers, is_asked, label, adapter in (
            (before, with_base, "before", None),
            (after, with_adapter, "after", "tuned"),
        ):
            if is_asked:
                for prediction in _generate(model, prompts, sampling, terminal, label, adapter, memory_hint, world):
                    answers.append(prediction)
    except KeyboardInterrupt as interrupt:
        raise AnswersInterrupted(build_rows(), len(prompts)) from interrupt
    return build_rows()


def answer_prompts(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    sampling: SamplingParams,
    terminal: Terminal,
    label: str,
    adapter: str | None,
    memory_hint: str = "use a smaller --batch-size",
) -> list[Prediction]:
    """The answer to every prompt. label: of the progress bar; adapter: None disables it."""
    return list(_generate(model, prompts, sampling, terminal, label, adapter, memory_hint))


def _generate(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    sampling: SamplingParams,
    terminal: Terminal,
    label: str,
    adapter: str | None,
    memory_hint: str,
    world: World = World(),
) -> Iterator[Prediction]:
    examples = [prompt.example for prompt in prompts]
    with terminal.show_progress(label, len(examples)) as advance, explain_out_of_memory(memory_hint):
        on_progress = world.share_progress(f"answers {label}", advance)
        generate = partial(model.generate_answers, sampling=sampling, adapter=adapter, on_progress=on_progress)
        yield from share_answers(generate, examples, model.processor, world)
        on_progress(0)  # shows what other ranks have done since


def share_answers(
    generate: Callable[[Sequence[Example]], Iterable[Prediction]],
    examples: Sequence[Example],
    processor: Processor,
    world: World,
) -> Iterator[Prediction]:
    """The greedy answer to every example, in order, on every rank; each generates those of its share.

    An answer is expected to be as long as the example's own.
    """
    if world.size == 1:
        yield from generate(examples)
        return
    shares = split_between_ranks([processor.count_answer_tokens(example) + 1 for example in examples], world.size)
    # A batch of long answers may take a CPU more than ten minutes, but no GPU.
    with world.status.phase("answers", is_bounded=torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        own = []
        for p in generate([examples[i] for i in shares[world.rank]]):
            own.append((p.text, p.adapter, p.is_complete, p.boxes))
            world.status.report_progress()
        gathered = world.gather_objects(own)
    by_place = dict(zip(chain(*shares), chain(*gathered), strict=True))
    yield from (Prediction(example, *by_place[i]) for i, example in enumerate(examples))


def describe_generation(processor: Processor, sampling: SamplingParams) -> str:
    """How answers are generated, in words. Only answers that were generated alike can be compared."""
    choice = "greedy"
    if sampling.temperature is not None:
        choice = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {sampling.seed}"
    size = describe_image_size(processor.settings, processor.image_processor.token_side)
    return f"image size {size}; {choice}; at most {sampling.max_new_tokens} tokens"


def describe_cuts(name: str, flags: Sequence[bool], limit: str) -> list[str]:
    """A warning if answers were cut. flags: whether each was; limit: the setting or option that cut them."""
    if not any(flags):
        return []
    return [f"{name}: {sum(flags)} of {len(flags)} answers are cut at {limit}"]


def describe_row_cuts(rows: Sequence[PredictionRow], limit: str) -> list[str]:
    """One warning for both models."""
    base, tuned = [row.base_is_cut for row in rows], [row.tuned_is_cut for row in rows]
    flags = {rows[0].before if rows else BASE_MODEL: base, "adapter": tuned}
    counts = [f"{name}: {sum(cut)} of {len(cut)} answers" for name, cut in flags.items() if any(cut)]
    return [f"{'; '.join(counts)} are cut at {limit}"] if counts else []
