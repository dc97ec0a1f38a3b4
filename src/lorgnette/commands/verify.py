"""`verify`: does this adapter do anything, and elsewhere too?

First what its files say, then what a process of plain transformers and peft finds.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette.device import device_of
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import Asked, adapter_of
from lorgnette.lora.inspect import REMEDY, Inventory, inventory
from lorgnette.lora.metadata import FILE, PEFT_FILE
from lorgnette.lora.peft_files import WEIGHTS, todays_name
from lorgnette.metrics.eval_prompts import examples_of
from lorgnette.report.console import Terminal
from lorgnette.verification.peft_check import Distance, Found, Names, Sample, ask
from lorgnette.verification.reference_sample import TOLERANCE, Witness

ALIKE = 1e-2
"""Largest difference of a log-probability that summing in another order makes in float32; usually it is below 1e-4."""
STILL = 1e-6
"""A mean total variation below this is no movement: float32 itself is no finer."""


@dataclass(frozen=True)
class Finding:
    """good: True, False (a fault, and then there is a remedy), or None where it cannot be told or is worth a look."""

    about: str
    good: bool | None
    told: str
    remedy: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found out about an adapter; lines: how to use it elsewhere."""

    adapter: Path
    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...]
    lines: tuple[tuple[str, str], ...]

    @property
    def good(self) -> bool:
        return all(finding.good is not False for finding in self.findings)

    @property
    def remedies(self) -> tuple[str, ...]:
        """What mends the faults, each once."""
        found = [finding.remedy for finding in self.findings if finding.good is False and finding.remedy]
        return tuple(dict.fromkeys(found))

    @property
    def summary(self) -> str:
        """Of the faults, in words."""
        about = {finding.about for finding in self.findings if finding.good is False}
        return "base and adapter do not fit" if about == {"base"} else "this adapter is not good"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": str(self.adapter),
            "good": self.good,
            "findings": [asdict(finding) for finding in self.findings],
            "samples": [sample.model_dump(mode="json") for sample in self.samples],
            "use": dict(self.lines),
        }


def verify(
    adapter: Path | str,
    *,
    model: str | None = None,
    source: Path | str | None = None,
    rows: int = 4,
    device: str = "auto",
    console: Console | None = None,
) -> Verdict:
    """Look the adapter over and ask it about drawn pictures, or about the first rows of a data file.

    Raises LorgnetteError only where asking is not possible; what is wrong with the adapter is a finding.
    """
    terminal, adapter = Terminal(console), adapter_of(Path(adapter))
    if not any((adapter / name).exists() for name in (FILE, PEFT_FILE, WEIGHTS)):
        raise UsageError(
            "no such adapter" if not adapter.exists() else "no adapter in it",
            where=str(adapter),
            remedy="name a run, or its `adapter` folder",
        )
    findings: list[Finding] = []
    samples: tuple[Sample, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    contents, asked = _contents(adapter, findings), _base(model, adapter, terminal, findings)
    for finding in findings:
        _say(terminal, finding)
    if contents and asked and asked.contract and all(finding.good is not False for finding in findings):
        prompt = asked.contract.prompt
        examples = examples_of(Path(source), prompt, rows=rows) if source else ()
        found = ask(asked.checkpoint, adapter, asked.encoder, prompt, examples, device=device_of(device).type)
        more = _elsewhere(found, Witness.read(adapter))
        for finding in more:
            _say(terminal, finding)
        findings += more
        samples = found.samples
        say_texts(terminal, samples)
        if all(finding.good is not False for finding in more):
            lines = use(asked, contents)
    verdict = Verdict(adapter, tuple(findings), samples, lines)
    for name, line in lines:
        terminal.say(f"{name:<10} {line}")
    if not verdict.good:
        terminal.fail(f"lorgnette: {verdict.summary} · {adapter} · {'; '.join(verdict.remedies)}")
    return verdict


def use(asked: Asked, contents: Inventory) -> tuple[tuple[str, str], ...]:
    """How the adapter is used with plain peft, and with vLLM where vLLM takes it."""
    assert asked.adapter is not None
    base, adapter = name_elsewhere(asked), str(asked.adapter.resolve())
    pictures = "pictures", pictures_elsewhere(asked)
    peft = f"PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base!r}), {adapter!r})"
    if contents.vllm:
        refused = f"would refuse it: {'; '.join(contents.vllm)}. Merge it: lorgnette merge"
        return ("PEFT", peft), ("vLLM", refused), pictures
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"tuned={adapter}"]
    words += ["--max-lora-rank", str(contents.vllm_rank)]
    return ("PEFT", peft), ("vLLM", shlex.join(words)), pictures


def name_elsewhere(asked: Asked) -> str:
    """The base as others find it: a hub's name, or the whole path of a folder."""
    path = Path(asked.base)
    return asked.base if not path.exists() and asked.base != "demo" else str(asked.checkpoint.folder.resolve())


def pictures_elsewhere(asked: Asked) -> str:
    """What whoever asks elsewhere has to see to: pictures must come as the adapter was trained."""
    encode = asked.encoder.settings
    if asked.contract is None or not asked.contract.known:
        return "as large as in training: the adapter's folder does not say how large that was"
    if encode.size is not None:
        height, width = asked.encoder.rule.resized(1, 1)
        return f"resize them to {height}×{width} before they are sent: elsewhere they keep their shape"
    limits = {"min_pixels": asked.encoder.rule.least, "max_pixels": asked.encoder.rule.most}
    return f"--mm-processor-kwargs {shlex.quote(json.dumps(limits))}"


def say_texts(terminal: Terminal, samples: Sequence[Sample]) -> None:
    """Greedy texts side by side; the merged one where it differs."""
    for number, sample in enumerate(samples, 1):
        terminal.say(f"picture {number}  before: {sample.base}")
        terminal.say(f"           after:  {sample.adapter}")
        if sample.merged != sample.adapter:
            terminal.warn(f"           merged: {sample.merged}")


def moved(distance: Distance) -> str:
    """How far two models are apart, in words."""
    return (
        f"KL {distance.kl:.2g} nats and total variation {distance.total_variation:.2g} a token, "
        f"another first choice at {distance.first_choices} of {distance.tokens}"
    )


def _contents(adapter: Path, findings: list[Finding]) -> Inventory | None:
    try:
        contents = inventory(adapter)
    except LorgnetteError as error:
        findings.append(Finding("weights", False, error.what, error.remedy))
        return None
    kinds = ", ".join(f"{kind.name} {kind.modules}" for kind in contents.kinds)
    if contents.faults:
        findings += [Finding("weights", False, fault, REMEDY) for fault in contents.faults]
    elif contents.silent:
        silent = ", ".join(f"{kind.name} {kind.silent}" for kind in contents.kinds if kind.silent)
        told = f"B is zero in {contents.silent} of {contents.modules} modules, which do nothing: {silent}"
        findings.append(Finding("weights", None, told))
    else:
        told = f"{contents.modules} modules of rank {contents.rank} or less, no B is zero: {kinds}"
        findings.append(Finding("weights", True, told))
    return contents


def _base(model: str | None, adapter: Path, terminal: Terminal, findings: list[Finding]) -> Asked | None:
    """The base model, and whether it and the settings are those of training."""
    about = "encoding"
    try:
        kept = Witness.read(adapter)
        about = "base"
        asked = Asked.of(model, adapter, terminal)
        assert asked.contract is not None  # an adapter was asked for
        other = encoded_otherwise(asked, kept)
    except LorgnetteError as error:
        findings.append(Finding(about, False, f"{error.what} ({error.where})", error.remedy))
        return None
    if asked.contract.known:
        findings.append(Finding("base", True, f"{asked.base} has the weights and the template it was trained with"))
    else:
        findings.append(Finding("base", None, f"whether {asked.base} is its base is said nowhere (no lorgnette.json)"))
    if other is not None:
        findings.append(Finding("encoding", False, other, REMEDY))
    elif kept is not None:
        findings.append(Finding("encoding", True, "pictures, prompt and template make the tokens that training made"))
    else:
        told = "no witness was kept: another resolution or prompt than in training would not be noticed"
        findings.append(Finding("encoding", None, told))
    return asked


def encoded_otherwise(asked: Asked, kept: Witness | None) -> str | None:
    """What pictures, prompt and template are, that they were not in training; None: nothing, or nobody knows."""
    assert asked.adapter is not None
    assert asked.contract is not None
    if kept is None:
        return None
    if not asked.contract.known:
        return f"{FILE} is missing, and with it the size of the pictures, the prompt and the base of the training"
    return kept.difference(asked.adapter, asked.encoder, asked.contract.prompt)


def _elsewhere(found: Found, kept: Witness | None) -> list[Finding]:
    """What plain transformers and peft had to say."""
    if found.lacking:
        told = f"{len(found.lacking)} weights are in none of its files, as {found.lacking[0]}"
        return [Finding("base", False, told, "download the checkpoint again, whole")]
    if found.failed is not None:
        return [Finding("loading", False, f"plain peft does not take it: {found.failed}", REMEDY)]
    if found.names.missing or found.names.left_over:
        return [_names(found.names)]
    total = found.names.matched
    versions = " and ".join(f"{name} {version}" for name, version in found.versions.items())
    findings = [Finding("loading", True, f"plain {versions}: all {total} names match")]
    if kept is not None and found.witness is not None:
        findings.append(replayed(kept, found))
    tuned = Distance.over([sample.moved for sample in found.samples])
    merged = Distance.over([sample.rounded for sample in found.samples])
    told = f"{moved(tuned)} on {len(found.samples)} pictures"
    if tuned.total_variation < STILL:
        told = f"the adapter moves nothing: {told}"
    findings.append(Finding("moved", tuned.total_variation >= STILL, told, REMEDY))
    same = merged.largest < ALIKE
    told = f"{'answers as base and adapter do' if same else 'answers otherwise'}: {moved(merged)}"
    return [*findings, Finding("merged", same, told, "see whether it does with other versions of peft")]


def _names(names: Names) -> Finding:
    """PEFT leaves out what it does not find, and only warns."""
    told = f"plain peft finds {names.matched} of {names.matched + len(names.missing)} tensors"
    if names.left_over and {todays_name(name) for name in names.left_over} == set(names.missing):
        told += f": these are names from before transformers 4.52, as {names.left_over[0]}"
        return Finding("loading", False, told, "merge it (lorgnette merge), which reads them, or rename them")
    if names.missing:
        told += f"; {len(names.missing)} are missing, as {names.missing[0]}"
    if names.left_over:
        told += f"; it has no use for {len(names.left_over)}, as {names.left_over[0]}"
    return Finding("loading", False, told, REMEDY)


def replayed(kept: Witness, found: Found) -> Finding:
    """The witness asked again, by other code than the engine's."""
    assert found.witness is not None
    now = found.witness.loss
    if now is None:
        told = "plain transformers makes other tokens of it than training did"
        return Finding("witness", False, told, "see whether it does with other versions of transformers")
    told = f"loss on its drawn picture {kept.loss:.4f} when it was saved ({kept.dtype}), {now:.4f} now"
    if abs(now - kept.loss) <= TOLERANCE[kept.dtype]:
        return Finding("witness", True, told)
    told += ": these are not the weights, or not the scale (lora_alpha, r, use_rslora), that were saved"
    return Finding("witness", False, told, f"copy {WEIGHTS} and {PEFT_FILE} again, both of one adapter")


def _say(terminal: Terminal, finding: Finding) -> None:
    say = {True: terminal.say, None: terminal.warn, False: terminal.fail}[finding.good]
    say(f"{finding.about:<10} {finding.told}")
