"""`serve`: what is served under which name, what it prints, and that its answers are `predict`'s."""

import base64
import gc
import io
import json
import random
import shutil
import socket
import subprocess
import urllib.request
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from rich.console import Console

import lorgnette
from lorgnette import config
from lorgnette.commands import serve as serve_module
from lorgnette.commands.predict import Model, resolve_spec
from lorgnette.commands.serve import ServerHandle, name_models
from lorgnette.config import LoraSettings
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.engine import loading
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import LoadedModel
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.server.guard import GuardSettings

MAX_NEW_TOKENS = 7
Question = tuple[str, Path]
"""The name of a model, and an image."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and two runs of the built-in model, `first` and `second`. Their adapters differ in all they can."""
    from lorgnette.inference.loading import build_metadata
    from lorgnette.lora import peft_files
    from lorgnette.models.adapter_shape import AdapterShape
    from lorgnette.models.base_checkpoint import BaseCheckpoint
    from lorgnette.processing.processor import Processor

    root, generator = tmp_path_factory.mktemp("serve"), torch.Generator().manual_seed(0)
    checkpoint = BaseCheckpoint.from_folder(BUILT_IN_MODEL)
    few = LoraSettings(rank=6, alpha=3, target_modules=("q_proj", "down_proj"))
    for name, lora, size, prompt in (
        ("first", LoraSettings(rank=4, alpha=8), "112x112", "COCO Yes:"),
        ("second", few, "84x140", "What is it?"),
    ):
        words = [f"image_size={size}", f"data.prompt={prompt}", f"predict.max_new_tokens={MAX_NEW_TOKENS}"]
        settings = config.load_settings(None, ["model=demo", *words])
        metadata = build_metadata(settings, checkpoint, Processor.from_folder(BUILT_IN_MODEL, settings.processor))
        shapes = AdapterShape.from_settings(checkpoint.load_text_config(), lora).factor_shapes()
        state = {name: 0.16 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        adapter = root / name / "adapter"
        adapter.mkdir(parents=True)
        peft_files.write_adapter(adapter, state, checkpoint.family, lora, metadata)
        (root / name / "config.yaml").touch()
    for i in range(2):
        draw_scene(sample_scene(random.Random(i))).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def output() -> io.StringIO:
    """What `served` prints."""
    return io.StringIO()


@pytest.fixture(scope="module")
def served(folder: Path, output: io.StringIO) -> Iterator[ServerHandle]:
    """Both runs, on a free port; the second under another name."""
    words = [folder / "first", f"other={folder / 'second'}"]
    console = Console(file=output, width=400)
    server = lorgnette.serve(*words, port=0, block=False, device="cpu", console=console)
    assert server is not None
    with server:
        yield server


@pytest.fixture(scope="module")
def client(served: ServerHandle) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.api_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(folder: Path) -> Mapping[Question, str]:
    """What `predict` answers: in the reference engine, since there is no GPU."""
    images = sorted(folder.glob("*.png"))
    texts: dict[Question, str] = {}
    for name, run in (("first", "first"), ("other", "second")):
        with lorgnette.load(folder / run, device="cpu") as model:
            for image, row in zip(images, model.predict(images, both=run == "first"), strict=True):
                texts[name, image] = str(row.tuned)
                if run == "first":  # whose prompt and image size the base model has
                    texts["base", image] = str(row.base)
    assert len(set(texts.values())) > 4  # else a confusion of models or images would not show
    return texts


def build_message(image: Path, text: str | None = None) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}]


def ask(client: openai.OpenAI, question: Question, *, is_streamed: bool, **options: Any) -> str:
    name, image = question
    messages = build_message(image)
    if not is_streamed:
        answer = client.chat.completions.create(model=name, messages=messages, **options)
        return str(answer.choices[0].message.content)
    with client.chat.completions.create(model=name, messages=messages, stream=True, **options) as chunks:
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_answers_are_those_of_predict(client: openai.OpenAI, expected: Mapping[Question, str]) -> None:
    """Alone, each in one piece and as a stream; the prompt is that of the adapter's training."""
    for i, (question, text) in enumerate(expected.items()):
        assert ask(client, question, is_streamed=i % 2 == 0) == text, question


def test_answers_do_not_depend_on_others(client: openai.OpenAI, expected: Mapping[Question, str]) -> None:
    """Eight clients at once, streams beside whole answers, models mixed."""
    questions = list(expected) * 2
    random.Random(0).shuffle(questions)
    with ThreadPoolExecutor(8) as pool:
        numbered = enumerate(questions)
        texts = list(pool.map(lambda pair: ask(client, pair[1], is_streamed=pair[0] % 2 == 0), numbered))
    assert texts == [expected[question] for question in questions]


def test_a_sampled_answer_is_that_of_predict(client: openai.OpenAI, folder: Path, expected: Any, terminal: Any) -> None:
    """In the engine that answers on a GPU; transformers draws in its own way."""
    spec, cpu = resolve_spec(str(folder / "first"), None, terminal), torch.device("cpu")
    assert spec.adapter is not None
    features = loading.build_features(spec.checkpoint, spec.processor.image_processor, cpu, torch.float32)
    fast = loading.load_fast_model(spec.checkpoint, SavedAdapter.load(spec.adapter), features, torch.float32)
    model, image, sampling = (
        Model(spec, "cpu", terminal),
        folder / "0.png",
        {"temperature": 0.9, "top_p": 0.9, "seed": 5},
    )
    model._weights = LoadedModel(fast, spec.processor)
    [row] = model.predict(image, both=True, **sampling)
    for is_streamed in (False, True):
        texts = [ask(client, (name, image), is_streamed=is_streamed, **sampling) for name in ("first", "base")]
        assert texts == [row.tuned, row.base]
    assert row.tuned != expected["first", image]
    assert ask(client, ("first", image), is_streamed=False, **{**sampling, "seed": 6}) != row.tuned


def test_a_prompt_and_a_limit_are_those_of_the_request(client: openai.OpenAI, folder: Path) -> None:
    image, prompt = folder / "1.png", "Describe it."
    with lorgnette.load(folder / "first", device="cpu") as model:
        [row] = model.predict(image, prompt=prompt, max_new_tokens=5)
    answer = client.chat.completions.create(model="first", messages=build_message(image, prompt), max_tokens=5)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (row.tuned, "length")


def test_what_is_printed_works(served: ServerHandle, output: io.StringIO, folder: Path, expected: Any) -> None:
    """The page's address, the names, and the curl line, which asks about photo.jpg."""
    lines = [line.partition(" ") for line in output.getvalue().splitlines()]
    lines = [(name, text.strip()) for name, _, text in lines]
    names = "model model loading answers answers page API curl ready"
    assert [name for name, _ in lines] == names.split()
    printed = dict(lines)
    assert printed["page"] == served.url
    assert printed["API"] == f"{served.api_url}, models: first, other, base"
    assert served.models == ("first", "other", "base")
    assert [text.partition(":")[0] for name, text in lines if name == "answers"] == ["first, base", "other"]
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(served.url, timeout=10) as page:
        assert (page.status, "token" in page.url) == (200, False)
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    shutil.copyfile(folder / "0.png", folder / "photo.jpg")  # by its content it is a PNG, as ever
    done = subprocess.run(
        ["sh", "-c", printed["curl"]], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == expected["first", folder / "0.png"]


def test_the_printed_addresses_are_those_that_clients_type() -> None:
    """The wildcard is no address; a key is named, not shown."""
    terminal = Terminal(Console(file=(output := io.StringIO()), width=400))
    guard = GuardSettings("0.0.0.0", 8787, "secret", allow_hosts=("192.168.1.5", "captions.example"))
    handle = ServerHandle(None, None, guard, SimpleNamespace(models=[SimpleNamespace(name='50%s "é')]))  # type: ignore[arg-type]
    serve_module._print_start(terminal, handle, guard)
    text = output.getvalue()
    assert f"page       http://192.168.1.5:8787/?token={guard.token}\n" in text
    assert "secret" not in text
    assert '-H "Authorization: Bearer $LORGNETTE_API_KEY"' in text
    printf = text.split("printf ")[1].split("| curl")[0].replace("base64 < photo.jpg", "echo AAAA")
    body = json.loads(subprocess.run(["sh", "-c", f"printf {printf}"], capture_output=True, check=True).stdout)
    assert body["model"] == '50%s "é'
    assert body["messages"][0]["content"][0]["image_url"]["url"] == "data:image/jpeg;base64,AAAA"
    at_proxy = GuardSettings("0.0.0.0", 8787, "k", allow_hosts=("captions.example:80",))
    assert at_proxy.address == "captions.example:80"
    assert GuardSettings("::1", 80).address == "[::1]:80"


def test_stop_frees_the_port_and_the_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        models = load_models(*arguments, **options)
        kept.append(weakref.ref(models))
        return models

    load_models = serve_module.load_models
    monkeypatch.setattr(serve_module, "load_models", load)
    server = lorgnette.serve(folder / "first", port=0, block=False, device="cpu", max_new_tokens=3)
    assert server is not None
    port = int(server.api_url.split(":")[2].split("/")[0])
    with openai.OpenAI(base_url=server.api_url, api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(model="base", messages=build_message(folder / "0.png"))
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
    server.stop()
    server.stop()  # does nothing
    gc.collect()
    assert [reference() for reference in kept] == [None]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert "stopped" in repr(server)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["runs/first"], {"first": "runs/first"}),
        (["runs/first/adapter"], {"first": "runs/first/adapter"}),
        (["runs/first/best"], {"first-best": "runs/first/best"}),
        (["runs/first/"], {"first": "runs/first/"}),
        (["cats=runs/first", "runs/second"], {"cats": "runs/first", "second": "runs/second"}),
        (["odd=name"], {"odd=name": "odd=name"}),
        (["new cats=missing"], {"new cats": "missing"}),
        (["demo"], {"demo": "demo"}),
        (["Qwen/Qwen2-VL-2B-Instruct"], {"Qwen2-VL-2B-Instruct": "Qwen/Qwen2-VL-2B-Instruct"}),
        (["runs/x=1/adapter"], {"adapter": "runs/x=1/adapter"}),
    ],
)
def test_names(words: list[str], names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("first", "second"):
        for adapter in ("adapter", "best"):
            (tmp_path / "runs" / run / adapter).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").touch()
    (tmp_path / "odd=name").mkdir()
    assert name_models(words) == names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which model? · no run, adapter or model is named · lorgnette serve runs/captions"),
        (["a/run", "b/run"], "two models are called run · a/run and b/run · name one of them: NAME=b/run"),
        (["x=a", "x=b"], "two models are called x · a and b · name one of them: NAME=b"),
        ([" =a"], "a model needs a name that can be typed"),
        (["\x1b=a"], "a model needs a name that can be typed"),
    ],
)
def test_names_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        name_models(words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"words": ["{first}/../missing"]}, ["no such adapter", "missing"]),
        ({"words": ["base={first}"]}, ["cannot be called base"]),
        ({"words": ["{first}", "demo"]}, ["served in any case", "leave out demo"]),
        ({"words": ["{first}", "{tiny}"]}, ["different base models"]),
        ({"words": ["{first}"], "model": "{tiny}"}, ["base model"]),
        ({"words": ["{first}/../0.png"]}, ["0.png"]),
        ({"words": ["{first}"], "host": "0.0.0.0"}, ["needs an API key", "LORGNETTE_API_KEY"]),
        ({"words": ["{first}"], "host": "0.0.0.0", "api_key": "k"}, ["other machines need a name", "--allow-host"]),
        ({"words": ["{first}"], "host": "192.0.2.1", "api_key": "k"}, ["no address of this machine"]),
        ({"words": ["{first}"], "api_key": ""}, ["the API key is empty"]),
        ({"words": ["{first}"], "api_key": "two words"}, ["no HTTP header can carry"]),
        ({"words": ["{first}"], "allow_host": "http://x"}, ["is not the name of a host"]),
        ({"words": ["{first}"], "cors": "app.example"}, ["is not an origin"]),
        ({"words": ["{first}"], "image_size": "huge"}, ["not an image size"]),
        ({"words": ["{first}"], "port": 100_000}, ["port"]),
        ({"words": ["{first}"], "max_new_tokens": 0}, ["max_new_tokens"]),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_read(
    options: dict[str, Any], parts: list[str], folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.models.weight_loader.load_weights_into", None)
    monkeypatch.delenv("LORGNETTE_API_KEY", raising=False)
    places = {"first": folder / "first", "tiny": tiny}
    words = [word.format(**places) for word in options.pop("words")]
    given = {name: value.format(**places) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(LorgnetteError) as caught:
        lorgnette.serve(*words, **{"port": 0, "device": "cpu", **given})
    for part in parts:
        assert part in str(caught.value), str(caught.value)
