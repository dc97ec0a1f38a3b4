"""What a reader of a comparison asks: what was compared with what, on which machine, and what to type next."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorgnette.commands.compare_candidates import Candidate
from lorgnette.io.shell import format_command
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import METRICS, get_best_model_metric
from lorgnette.report import run_log
from lorgnette.report.manifest import build_manifest, format_date
from lorgnette.report.verdict import Verdict
from lorgnette.training.run_facts import list_machine

MAX_PROMPT = 80
Facts = list[tuple[str, str]]


def tabulate_candidates(candidates: Sequence[Candidate]) -> list[tuple[str, tuple[str, ...]]]:
    """(what, its value for every candidate): each is named so that another person can find it."""
    facts = [dict(_describe_candidate(candidate)) for candidate in candidates]
    names = dict.fromkeys(name for known in facts for name in known)
    return [(name, tuple(known.get(name, "–") for known in facts)) for name in names]


def _describe_candidate(candidate: Candidate) -> Iterator[tuple[str, str]]:
    settings = candidate.training_settings if candidate.is_tuned else {}
    if candidate.saved_answers is not None:
        yield "kind", "answers in a file"
        yield "file", candidate.saved_answers.where
    if candidate.spec is not None:
        tuned = "a tuned model" if candidate.is_tuned else "a model that was not tuned"
        yield "kind", "a base model with an adapter" if candidate.spec.adapter else tuned
        yield "base model", f"{candidate.spec.base_model}{' in NF4' if candidate.spec.checkpoint.quantization else ''}"
        if candidate.spec.adapter:
            yield "adapter", str(candidate.spec.adapter)
    if candidate.run is not None and candidate.is_tuned:
        yield "run", str(candidate.run.path)
    if step := find_step(candidate):
        yield "step", step
    if "lora.rank" in settings:
        yield "LoRA", f"rank {settings['lora.rank']}, alpha {settings.get('lora.alpha', '?')}"
    if settings.get("data.prompt"):
        yield "trained with the prompt", settings["data.prompt"]


def find_step(candidate: Candidate) -> str:
    """The step that an adapter of a run is of, as far as its folder and the log say it."""
    adapter, run = candidate.spec.adapter if candidate.spec else None, candidate.run
    if run is None or adapter is None or not run.log.is_file():
        return ""
    records = run_log.read_log(run.log)
    steps = [int(step) for step, _ in run_log.select_series(records, "train", "loss")]
    if adapter.parent.name == "checkpoints":
        return adapter.name.removeprefix("step-").lstrip("0")
    if not steps:
        return ""
    if adapter.name != "best":
        return f"{max(steps)} (the last)"
    settings = candidate.load_run_settings()
    metric = get_best_model_metric(settings) if settings else None
    sign = -METRICS[metric].sign if metric else 1
    evals = [point for point in run_log.select_series(records, "eval", metric or "eval_loss") if point[0] > 0]
    return f"{int(min(evals, key=lambda point: (sign * point[1], point[0]))[0])} (the best)" if evals else ""


def list_facts(
    prompts: Sequence[EvalPrompt], source: Path, generations: Sequence[str], device: str
) -> list[tuple[str, Facts]]:
    """The facts of a comparison, in groups."""
    manifest = build_manifest(seed=0, command=sys.argv, device=device)
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    asked = texts[0] if len(texts) == 1 else f"{len(texts)} different prompts"
    num_images = len({path for prompt in prompts for path in prompt.image_paths})
    num_scored = sum(bool(prompt.references) for prompt in prompts)
    data = [
        ("File", source.name),
        ("Questions", f"{len(prompts)}, {num_scored} with references"),
        ("Images", f"{num_images} distinct"),
        ("Prompt", asked if len(asked) <= MAX_PROMPT else f"{asked[: MAX_PROMPT - 1]}…"),
    ]
    machine = [fact for fact in list_machine(manifest, {}) if fact[1]]
    return [
        ("Data", [fact for fact in data if fact[1]]),
        ("Comparison", [
            ("Made", format_date(manifest["started"])),
            *([("Answers", generations[0])] if len(set(generations)) == 1 else []),
            ("Command", str(manifest["command"])),
        ]),
        ("Machine", machine),
    ]  # fmt: skip


def list_next_steps(
    candidates: Sequence[Candidate], typed: Sequence[str], source: Path, best: int | None, verdict: Verdict
) -> list[tuple[str, str]]:
    """(purpose, command), about the best candidate if it is an adapter. typed: the candidates as they are typed."""
    more = [*typed, "MORE.csv"]
    steps = []
    if verdict.kind in ("unsure", "unchanged"):
        steps.append(("Compare them on more images", format_command("compare", *more)))
    spec = candidates[best].spec if best is not None else None
    if best is not None and spec is not None and spec.adapter is not None:
        name = typed[best]
        merged = Path(name).parent / f"{Path(name).name}-merged"
        steps += [
            (f"Ask {candidates[best].name} about an image", format_command("predict", "IMAGE", "--adapter", name)),
            ("Score its answers alone", format_command("evaluate", name, source)),
            ("Check that plain transformers + PEFT give the same output", format_command("verify", name)),
            ("Write one checkpoint that needs no adapter", format_command("merge", name, merged)),
        ]
    return steps
