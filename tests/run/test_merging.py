"""`merge` refuses to write over anything, and its folder is a model like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.model.adapter_files import WEIGHTS
from lorgnette.predict.elsewhere import Distance, Found, Names, Replayed, Sample
from lorgnette.report.terminal import Terminal
from lorgnette.run.merging import merge
from lorgnette.run.opened import Asked
from lorgnette.run.starting import train


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """found(lost=0.5) → the other process is not started; half of what the adapter moves is lost in rounding."""

    def answer(lost: float = 0.0, **changed: Any) -> None:
        near, far = (
            Distance(tokens=4, kl=share, total_variation=share, first_choices=0, largest=0)
            for share in (lost * 0.4, 0.4)
        )
        sample = Sample(base="a", adapter="b", merged="b" if lost < 0.5 else "a", moved=far, rounded=near)
        given = {"names": Names(matched=28, missing=(), left_over=()), "same_inputs": True, "samples": (sample,)}
        monkeypatch.setattr("lorgnette.predict.elsewhere.ask", lambda *_, **__: Found(**given | changed))

    return answer


def test_an_adapter_becomes_a_model(
    chosen: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real other process, which finds the folder to be a model of its own."""
    folder = train(chosen("train.lr=1e-2"))
    out = merge(folder.path, tmp_path / "merged")
    said = capsys.readouterr().err
    for line in (
        f"merged     {out}",
        "adapter    moves the base by KL ",
        "rounding   to BF16 moves it by KL ",
        "after:",
    ):
        assert line in said
    assert f"vllm serve {out.resolve()}" in said
    asked = Asked.of(str(out), None, Terminal())
    assert asked.checkpoint.family.model_type == "qwen2_vl"
    assert asked.encoder.rule.size == (28, 28)  # a merged model is asked as its adapter was trained
    with pytest.raises(UsageError, match="something is there already"):
        merge(folder.adapter, out)


def test_what_rounding_costs(
    chosen: Callable[..., Settings], tmp_path: Path, found: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(chosen())
    found(lost=0.6)
    merge(folder.adapter, tmp_path / "one")
    said = capsys.readouterr().err
    assert "another first choice at 0 of 4: 60.0% of that" in said
    assert "merged: a" in said
    found(names=Names(matched=0, missing=("a",), left_over=("b",)))
    merge(folder.adapter, tmp_path / "two")
    assert "compared   not: plain peft does not take the adapter" in capsys.readouterr().err
    found(same_inputs=False)
    with pytest.raises(LorgnetteError, match=r"makes other inputs than its base · .*three"):
        merge(folder.adapter, tmp_path / "three")
    found(lacking=("a",))
    with pytest.raises(LorgnetteError, match=r"the merged folder lacks weights · .*four"):
        merge(folder.adapter, tmp_path / "four")
    found(witness=Replayed(same_tokens=True, loss=0.0))
    with pytest.raises(LorgnetteError, match=r"not the one that was trained: .* and merge again"):
        merge(folder.adapter, tmp_path / "five")


def test_a_broken_adapter_is_not_merged(chosen: Callable[..., Settings], tmp_path: Path) -> None:
    path = train(chosen()).adapter / WEIGHTS
    (path.parent / "lorgnette.json").rename(path.parent / "elsewhere")
    with pytest.raises(LorgnetteError, match=r"lorgnette.json is missing.*`lorgnette verify` says more"):
        merge(path.parent, tmp_path / "merged")
    (path.parent / "elsewhere").rename(path.parent / "lorgnette.json")
    save_file({name: tensor / 0 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(LorgnetteError, match=r"numbers that are not finite.*`lorgnette verify` says more"):
        merge(path.parent, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
