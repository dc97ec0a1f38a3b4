import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_nf4_checkpoint

from lorgnette.errors import LorgnetteError
from lorgnette.hub.http import RetryPolicy
from lorgnette.hub.models import fetch_model, is_complete_model
from lorgnette.lora.unquantized_base import find_unquantized_base
from lorgnette.models.base_checkpoint import BaseCheckpoint

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)
NAME = "Qwen/Qwen2-VL-2B-Instruct"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub reads its variables when it is imported; in this process it may have been already."""
    folder = tmp_path / "hf" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    return folder


def model(weights: int = 300_000) -> dict[str, bytes]:
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    files = {name: b"{}" for name in ("config.json", "preprocessor_config.json", "chat_template.json")}
    files |= {"tokenizer.json": b"t" * 50_000, "vocab.json": b"{}", "merges.txt": b"", "README.md": b"# long"}
    files |= {"model.safetensors.index.json": json.dumps(index).encode()}
    files |= {name: random.Random(name).randbytes(weights) for name in SHARDS}
    return files | {"original/model.safetensors": b"o" * 90_000, "pytorch_model.bin": b"p" * 90_000}


def needed(hub: Any) -> set[str]:
    return set(model()) - {"original/model.safetensors", "pytorch_model.bin"}


def get(**more: Any) -> tuple[Path, list[str]]:
    messages: list[str] = []
    return fetch_model(NAME, on_message=messages.append, retry_policy=QUICK, **more), messages


@pytest.mark.parametrize("source", ["hf", "modelscope"])
@pytest.mark.parametrize("has_folder", [True, False])
def test_only_needed_files_are_fetched_and_only_once(source: Any, has_folder: bool, hub: Any, tmp_path: Path) -> None:
    files = model()
    hub.repo(source, "models", NAME, files)
    folder, _ = get(source=source, folder=tmp_path / "m" if has_folder else None)
    assert folder == tmp_path / "m" if has_folder else str(folder).startswith(str(tmp_path))
    result = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert result == needed(hub)
    assert all((folder / name).read_bytes() == files[name] for name in result)
    for name in SHARDS:
        assert len(hub.requests(name)) == 1
    log = len(hub.log)
    assert get(source=source, folder=tmp_path / "m" if has_folder else None)[0] == folder
    assert len(hub.log) == log


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_a_model_is_refused_before_its_weights_are_fetched(source: Any, hub: Any) -> None:
    hub.repo(source, "models", NAME, model())
    seen: list[bool] = []

    def refuse(folder: Path) -> None:
        seen.append((folder / "config.json").is_file())
        raise LorgnetteError("of no family")

    with pytest.raises(LorgnetteError, match="of no family"):
        get(source=source, check_config=refuse)
    assert seen == [True]
    assert not any(hub.requests(name) for name in SHARDS)


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_small_files_are_fetched_alone(source: Any, hub: Any) -> None:
    """And not again: neither for themselves nor with the weights."""
    hub.repo(source, "models", NAME, model() | {"tokenizer_config.json": b"{}"})
    folder, _ = get(source=source, needs_weights=False)
    assert not any(hub.requests(name) for name in SHARDS)
    assert (folder / "config.json").is_file()
    log = len(hub.log)
    assert get(source=source, needs_weights=False)[0] == folder
    assert len(hub.log) == log
    assert is_complete_model(get(source=source)[0])
    assert [len(hub.requests(name)) for name in (*SHARDS, "tokenizer.json")] == [1, 1, 1]


def test_shards_may_be_called_as_those_of_newer_models(hub: Any, tmp_path: Path) -> None:
    shards = [f"model.safetensors-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files = {name: content for name, content in model().items() if name not in SHARDS}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
    hub.repo("hf", "models", NAME, files | {shard: b"w" * 1000 for shard in shards})
    folder, _ = get(folder=tmp_path / "m")
    assert is_complete_model(folder)


def test_the_clients_own_cache_is_filled_as_the_client_does(hub: Any, cache: Path) -> None:
    from huggingface_hub import snapshot_download

    hub.repo("hf", "models", NAME, model())
    folder, _ = get()
    assert folder.parent.name == "snapshots"
    log = len(hub.log)
    allowed = sorted(needed(hub))
    assert Path(snapshot_download(NAME, local_files_only=True, allow_patterns=allowed)) == folder
    assert Path(snapshot_download(NAME, endpoint=hub.url, allow_patterns=allowed)) == folder
    assert len(hub.log) - log <= 2
    assert len(hub.requests("-of-")) == 2


def test_the_cache_of_the_client_is_used(hub: Any) -> None:
    from huggingface_hub import snapshot_download

    hub.repo("hf", "models", NAME, model())
    snapshot_download(NAME, endpoint=hub.url)
    log = len(hub.log)
    _, messages = get()
    assert len(hub.log) == log
    assert "from Hugging Face's cache" in messages[0]


def test_a_folder_is_returned_unchanged(tmp_path: Path) -> None:
    assert fetch_model(str(tmp_path)) == tmp_path
    for name in ("./none", "/none/at/all", "one", "a/b/c"):
        with pytest.raises(LorgnetteError, match="no such model folder"):
            fetch_model(name)


def test_auto_falls_back_to_modelscope_and_says_so(hub: Any) -> None:
    hub.repo("modelscope", "models", NAME, model())
    folder, messages = get()
    assert is_complete_model(folder)
    assert messages == [
        f"{NAME}: not from Hugging Face: there is no such repository, or it is private (HTTP 404)",
        f"{NAME}: from ModelScope",
    ]
    words = len(hub.requests("/api/models"))
    assert get()[1] == [f"{NAME}: from ModelScope's cache, {folder}"]
    assert len(hub.requests("/api/models")) == words


def test_auto_resumes_on_the_hub_it_started_with(hub: Any, trick: Any) -> None:
    hub.repo("modelscope", "models", NAME, model())
    hub.trick(SHARDS[1], *[trick(cut=1000)] * 1, *[trick(status=503)] * 5)
    with pytest.raises(LorgnetteError, match=r"server error \(HTTP 503\)"):
        get()
    hub.repo("hf", "models", NAME, model())
    hub.tricks.clear()
    served = hub.served
    assert get()[1] == [f"{NAME}: from ModelScope"]
    assert hub.served - served < 300_000 + 20_000


def test_neither_hub_has_it(hub: Any) -> None:
    with pytest.raises(
        LorgnetteError, match=r"neither hub gives it: Hugging Face: .*\(HTTP 404\); ModelScope: .*\(HTTP 404\)"
    ) as e:
        get()
    assert "\n" not in str(e.value)


def test_a_repository_without_a_model_is_named(hub: Any) -> None:
    hub.repo("hf", "models", NAME, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(LorgnetteError, match="it has no safetensors weights"):
        get()
    hub.repo("hf", "models", NAME, {"model.safetensors": b"x"})
    with pytest.raises(LorgnetteError, match=r"it has no config\.json"):
        get()


def test_a_wrong_hash_is_refused(hub: Any, trick: Any, cache: Path) -> None:
    hub.repo("modelscope", "models", NAME, model())
    hub.trick(SHARDS[0], *[trick(body=bytes(300_000))] * 5)
    with pytest.raises(LorgnetteError, match=r"the file's hash is .*, the hub lists"):
        get()
    assert len(hub.requests(SHARDS[0])) == 2


CHILD = "import sys; from lorgnette.hub.models import fetch_model; print(fetch_model(sys.argv[1], source=sys.argv[2]))"


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_weights_resume_after_a_kill(source: Any, hub: Any, trick: Any, tmp_path: Path) -> None:
    """In processes of their own, so that the variables are read as users set them."""
    files = model(3_000_000)
    hub.repo(source, "models", NAME, files)
    paths = {name: name if source == "modelscope" else f"/{NAME}/resolve/{'5f' * 20}/{name}" for name in SHARDS}
    for path in paths.values():
        hub.trick(path, trick(cut=2_000_000), trick(pause=30))
    command = [sys.executable, "-W", "error", "-c", CHILD, NAME, source]
    child = subprocess.Popen(command)
    for _ in range(2000):
        if all(len([item for item in hub.requests(name)]) == 2 for name in SHARDS):
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    served = hub.served
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert all((Path(out.stdout.strip()) / name).read_bytes() == files[name] for name in SHARDS)
    assert 2_000_000 <= hub.served - served < 2_200_000
    assert str(tmp_path) in out.stdout
    log = len(hub.log)
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert len(hub.log) == log


def test_free_space_is_checked_before_the_weights(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    hub.repo("hf", "models", NAME, model())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(LorgnetteError, match=r"not enough disk space: .* needed, 0\.0 MB free"):
        get()
    assert not hub.requests("-of-")


def test_offline_no_request_is_sent(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("hf", "models", NAME, model())
    hub.repo("modelscope", "models", NAME, model())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LorgnetteError, match="it is in no cache, and HF_HUB_OFFLINE is set"):
        get()
    with pytest.raises(LorgnetteError, match="HF_HUB_OFFLINE forbids"):
        get(source="hf")
    assert not hub.log
    assert get(source="modelscope")[0].is_dir()
    assert get()[1][0].startswith(f"{NAME}: from ModelScope's cache")


def test_a_second_process_waits(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.repo("modelscope", "models", NAME, model())
    hub.trick(SHARDS[0], trick(pause=1.5))
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, NAME, "modelscope"], stdout=subprocess.DEVNULL
    )
    for _ in range(2000):
        if hub.requests(SHARDS[0]):
            break
        time.sleep(0.01)
    folder, messages = get(source="modelscope")
    assert child.wait(10) == 0
    assert any(message.startswith("waiting for another process") for message in messages)
    assert len(hub.requests(SHARDS[0])) == 1
    assert is_complete_model(folder)


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_what_nf4_weights_were_made_of_is_fetched(
    source: str, hub: Any, tiny: Path, tmp_path: Path, terminal: Any
) -> None:
    """The card names it, as the cards of the hubs' NF4 models do. An int8 model is refused before its weights come."""
    hub.repo(source, "models", "me/Base", {path.name: path.read_bytes() for path in tiny.iterdir()})
    nf4 = write_nf4_checkpoint(tmp_path / "nf4", tiny)
    config = (nf4 / "config.json").read_bytes()
    int8 = {"config.json": config.replace(b'"load_in_4bit": true', b'"load_in_8bit": true')}
    hub.repo(source, "models", "me/Int8", {path.name: path.read_bytes() for path in nf4.iterdir()} | int8)
    (nf4 / "README.md").write_text("---\nbase_model:\n- me/Int8\n- me/Base\n---\n")
    found = find_unquantized_base(BaseCheckpoint.from_folder(nf4), "me/Nf4", terminal)
    assert found.name == "me/Base"
    assert found.checkpoint.fingerprint == BaseCheckpoint.from_folder(tiny).fingerprint
    weights = [request.path for request in hub.requests("model.safetensors")]
    assert any("me/Base" in path for path in weights)
    assert not any("me/Int8" in path for path in weights)
