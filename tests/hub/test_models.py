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

from lorgnette.errors import LorgnetteError
from lorgnette.hub.line import RetryPolicy
from lorgnette.hub.models import fetch_model, is_complete_model

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
    return set(model()) - {"README.md", "original/model.safetensors", "pytorch_model.bin"}


def get(**more: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    return fetch_model(NAME, on_message=said.append, retry_policy=QUICK, **more), said


@pytest.mark.parametrize("source", ["hf", "modelscope"])
@pytest.mark.parametrize("into", [True, False])
def test_only_what_is_needed_comes_and_only_once(source: Any, into: bool, hub: Any, tmp_path: Path) -> None:
    files = model()
    hub.repo(source, "models", NAME, files)
    folder, _ = get(source=source, into=tmp_path / "m" if into else None)
    assert folder == tmp_path / "m" if into else str(folder).startswith(str(tmp_path))
    found = {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert found == needed(hub)
    assert all((folder / name).read_bytes() == files[name] for name in found)
    for name in SHARDS:
        assert len(hub.asked(name)) == 1
    log = len(hub.log)
    assert get(source=source, into=tmp_path / "m" if into else None)[0] == folder
    assert len(hub.log) == log


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
    assert len(hub.asked("-of-")) == 2


def test_what_the_client_has_cached_is_used(hub: Any) -> None:
    from huggingface_hub import snapshot_download

    hub.repo("hf", "models", NAME, model())
    snapshot_download(NAME, endpoint=hub.url)
    log = len(hub.log)
    _, said = get()
    assert len(hub.log) == log
    assert "from Hugging Face's cache" in said[0]


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch_model(str(tmp_path)) == tmp_path
    for name in ("./none", "/none/at/all", "one", "a/b/c"):
        with pytest.raises(LorgnetteError, match="no such model folder"):
            fetch_model(name)


def test_auto_goes_on_to_modelscope_and_says_so(hub: Any) -> None:
    hub.repo("modelscope", "models", NAME, model())
    folder, said = get()
    assert is_complete_model(folder)
    assert said == [
        f"{NAME}: not from Hugging Face: there is no such repository, or it is private (404)",
        f"{NAME}: from ModelScope",
    ]
    asked = len(hub.asked("/api/models"))
    assert get()[1] == [f"{NAME}: from ModelScope's cache, {folder}"]
    assert len(hub.asked("/api/models")) == asked


def test_auto_goes_on_where_it_has_begun(hub: Any, trick: Any) -> None:
    hub.repo("modelscope", "models", NAME, model())
    hub.trick(SHARDS[1], *[trick(cut=1000)] * 1, *[trick(status=503)] * 5)
    with pytest.raises(LorgnetteError, match=r"the server failed \(503\)"):
        get()
    hub.repo("hf", "models", NAME, model())
    hub.tricks.clear()
    served = hub.served
    assert get()[1] == [f"{NAME}: from ModelScope"]
    assert hub.served - served < 300_000 + 20_000


def test_neither_hub_has_it(hub: Any) -> None:
    with pytest.raises(
        LorgnetteError, match=r"neither hub gives it: Hugging Face: .*\(404\); ModelScope: .*\(404\)"
    ) as e:
        get()
    assert "\n" not in str(e.value)


def test_what_is_no_model_is_said(hub: Any) -> None:
    hub.repo("hf", "models", NAME, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(LorgnetteError, match="it has no safetensors weights"):
        get()
    hub.repo("hf", "models", NAME, {"model.safetensors": b"x"})
    with pytest.raises(LorgnetteError, match=r"it has no config\.json"):
        get()


def test_a_wrong_hash_is_not_taken(hub: Any, trick: Any, cache: Path) -> None:
    hub.repo("modelscope", "models", NAME, model())
    hub.trick(SHARDS[0], *[trick(body=bytes(300_000))] * 5)
    with pytest.raises(LorgnetteError, match=r"the file's hash is .*, the hub lists"):
        get()
    assert len(hub.asked(SHARDS[0])) == 2


CHILD = "import sys; from lorgnette.hub.models import fetch_model; print(fetch_model(sys.argv[1], source=sys.argv[2]))"


@pytest.mark.parametrize("source", ["hf", "modelscope"])
def test_after_a_kill_the_weights_go_on(source: Any, hub: Any, trick: Any, tmp_path: Path) -> None:
    """In processes of their own, so that the variables are read as users set them."""
    files = model(3_000_000)
    hub.repo(source, "models", NAME, files)
    paths = {name: name if source == "modelscope" else f"/{NAME}/resolve/{'5f' * 20}/{name}" for name in SHARDS}
    for path in paths.values():
        hub.trick(path, trick(cut=2_000_000), trick(pause=30))
    command = [sys.executable, "-W", "error", "-c", CHILD, NAME, source]
    child = subprocess.Popen(command)
    for _ in range(2000):
        if all(len([each for each in hub.asked(name)]) == 2 for name in SHARDS):
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


def test_free_space_is_looked_at_before_the_weights(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    hub.repo("hf", "models", NAME, model())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(LorgnetteError, match=r"are to come and 0\.0 MB are free"):
        get()
    assert not hub.asked("-of-")


def test_offline_nobody_is_asked(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
        if hub.asked(SHARDS[0]):
            break
        time.sleep(0.01)
    folder, said = get(source="modelscope")
    assert child.wait(10) == 0
    assert any(line.startswith("waiting for another process") for line in said)
    assert len(hub.asked(SHARDS[0])) == 1
    assert is_complete_model(folder)
