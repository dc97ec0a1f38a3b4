"""`gpus=N device=cpu` and torchrun through the command line: the same adapter, one voice, one folder."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorgnette.report import run_log
from tests.e2e.conftest import environment, write_captions

ADAPTER_BOUND = 5e-5
"""Of a parameter after some steps in float32, whatever the number of ranks."""
AGENT = '''
"""What torchrun does, on one of two machines; it forks its one rank, which then needs no time for its imports."""

import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from lorgnette.cli import main

def run_rank(words):
    sys.argv = ["lorgnette", *words]
    try:
        main()
    except SystemExit as exit_:
        if exit_.code:
            raise

port, *words = sys.argv[1:]
options = {"rdzv_backend": "c10d", "rdzv_endpoint": f"127.0.0.1:{port}", "max_restarts": 0, "start_method": "fork"}
elastic_launch(LaunchConfig(2, 2, 1, run_id="test", local_addr="127.0.0.1", **options), run_rank)(words)
'''
SETTINGS = [
    "engine=fast", "device=cpu", "image_size=28", "lora.rank=2", "lora.dropout=0.1", "data.holdout=2",
    "train.batch_size=6", "train.max_steps=3", "train.save_steps=2", "train.learning_rate=0.002",
    "predict.max_new_tokens=2", "predict.metrics=ROUGE-L", "report_to=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, fork_command: Callable[..., list[str]], tiny: Path) -> Path:
    """A run of one process; its data is beside it."""
    folder = tmp_path_factory.mktemp("alone")
    write_captions(folder)
    train(folder, fork_command, tiny, "run=alone")
    return folder / "alone"


def train(folder: Path, fork_command: Callable[..., list[str]], tiny: Path, *more: str) -> str:
    """What `lorgnette train` prints."""
    words = fork_command("lorgnette", "train", "captions.csv", f"model={tiny}", *SETTINGS, *more)
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_same_run(run: Path, alone: Path, num_ranks: int) -> None:
    """The adapter and the answers are those of one process, the files too, but for what the other ranks printed."""
    adapter, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, alone))
    moved = max(np.abs(value).max() for name, value in expected.items() if "lora_B" in name)
    assert moved > 10 * ADAPTER_BOUND, "lora_B starts with zeros"
    for name, value in expected.items():
        np.testing.assert_allclose(adapter[name], value, rtol=0, atol=ADAPTER_BOUND)
    assert (run / "predictions.jsonl").read_text() == (alone / "predictions.jsonl").read_text()
    assert {path.name for path in run.iterdir()} - {path.name for path in alone.iterdir()} == {"ranks"}
    config, expected_config = ((folder / "config.yaml").read_text() for folder in (run, alone))
    assert config.replace(str(run), str(alone)).replace("fully_shard: true", "fully_shard: auto") == expected_config
    steps = [record for record in run_log.read_log(run / "log.jsonl") if record["kind"] == "train"]
    assert steps[-1]["ranks"] == num_ranks


def test_two_processes_train_the_adapter_of_one(
    alone: Path, fork_command: Callable[..., list[str]], tiny: Path
) -> None:
    printed = train(alone.parent, fork_command, tiny, "run=two", "gpus=2")
    check_same_run(alone.parent / "two", alone, 2)
    assert "ranks      2 processes on the CPU on 1 machine" in printed
    assert printed.count("trained    3 steps") == 1
    log = (alone.parent / "two" / "ranks" / "rank-1.log").read_text()
    assert "trained    3 steps" in log
    assert "Error" not in log


def test_a_run_goes_on_with_another_number_of_ranks(
    alone: Path, fork_command: Callable[..., list[str]], tiny: Path
) -> None:
    """From the checkpoint of step 2, which one process wrote, with three."""
    run = alone.parent / "resumed"
    shutil.copytree(alone, run)
    shutil.rmtree(run / "checkpoints" / "step-000003")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(alone), str(run)))
    words = fork_command("lorgnette", "train", "--resume", "resumed", "gpus=3")
    done = subprocess.run(words, cwd=alone.parent, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed    at step 2 of 3" in done.stderr
    check_same_run(run, alone, 3)


def test_two_agents_train_as_two_machines(alone: Path, fork_command: Callable[..., list[str]], tiny: Path) -> None:
    """Each holds half of every layer."""
    folder = alone.parent
    (folder / "agent.py").write_text(AGENT)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    words = ["train", "captions.csv", f"model={tiny}", *SETTINGS, "run=torchrun", "gpus=2", "train.fully_shard=true"]
    command = fork_command(folder / "agent.py", port, *words)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment() | {"SLURM_NNODES": "2"}
    agents = [subprocess.Popen(command, cwd=folder, env=env, text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    printed = [agent.communicate(timeout=100) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    check_same_run(folder / "torchrun", alone, 2)
    assert sorted(bool(out) for out, _ in printed) == [False, True], "one rank speaks"
    remarks = "".join(text for _, text in printed)
    assert remarks.count("ranks      2 processes on the CPU on 2 machines") == 1
    assert remarks.count("layers     each of 2 GPUs holds a part of every layer") == 1
    assert remarks.count("trained    3 steps") == 1
