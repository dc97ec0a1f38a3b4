"""`serve`: answers over HTTP, as OpenAI's API does and on a page, from adapters beside their base model."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from rich.console import Console

from lorgnette.commands.arguments import as_name
from lorgnette.commands.predict import resolve_spec
from lorgnette.errors import UsageError
from lorgnette.inference.answers import describe_generation
from lorgnette.inference.loading import release_unused_models
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.shell import format_command, quote_word
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir
from lorgnette.server.app import build_app
from lorgnette.server.guard import API_KEY_VARIABLE, GuardSettings, read_api_key
from lorgnette.server.http_server import DEFAULT_PORT, HttpServer, open_port
from lorgnette.server.models import ModelSet, ServedModel, load_models
from lorgnette.server.prompts import PromptEncoder
from lorgnette.server.scheduler import Scheduler
from lorgnette.server.uploads import UploadStore

_NAMED = re.compile(r"(?P<name>[^=/]+)=(?P<source>.+)")
_DATA = "\0"
"""Stands for the image in the JSON of a request."""


class ServerHandle:
    """A server that answers until `stop`, or until the end of a `with` block.

    url: the page, with its token. api_url: the base URL of OpenAI's clients. models: the names that they may ask.
    """

    def __init__(self, server: HttpServer, encoder: PromptEncoder, guard: GuardSettings, models: ModelSet) -> None:
        self.url, self.api_url = guard.page_url, f"http://{guard.address}/v1"
        self.models = tuple(served.name for served in models.models)
        self._server: HttpServer | None = server
        self._encoder = encoder

    def __repr__(self) -> str:
        return f"<lorgnette.ServerHandle {self.api_url!r}{'' if self._server else ', stopped'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Return when the server has ended; Ctrl-C goes through."""
        if self._server is not None:
            self._server.wait()

    def stop(self) -> None:
        """End the open answers with an error, and free the memory of the models."""
        if self._server is not None:
            server, self._server = self._server, None  # it holds the models
            server.stop()
            del server
            self._encoder.close()
            release_unused_models()


def serve(
    *named_models: Path | str | Run,
    model: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    api_key: str | None = None,
    allow_host: str | Sequence[str] = (),
    cors: str | Sequence[str] = (),
    max_new_tokens: int | None = None,
    image_size: str | None = None,
    device: str = "auto",
    block: bool = True,
    console: Console | None = None,
) -> ServerHandle | None:
    """Answer over HTTP until Ctrl-C: OpenAI's API, and a page that shows the answers of all models beside each other.

        lorgnette.serve("runs/captions")
        server = lorgnette.serve("cats=runs/captions", "dogs=runs/captions-2", block=False)

    named_models: runs, adapters or a model, each as NAME=PATH or under the name of its run. All have one base model,
    which is served with them as `base`. model: the base model, if it is not the one recorded with the adapters.
    host: other machines reach one that is not loopback; it needs an api_key, and allow_host with the names that clients
    use. port: default: 8787, or the next that is free; 0: any. api_key: default: that of the environment,
    LORGNETTE_API_KEY. cors: origins of other web pages that may use the API. max_new_tokens: of an answer that asks for
    no limit; default: as each adapter's run answers. image_size: as in `predict`. block: False returns when it answers.

    Raises LorgnetteError, before weights are read, for what cannot be served.
    """
    terminal, start = Terminal(console), time.monotonic()
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError("no limit", where=f"max_new_tokens={max_new_tokens}", hint="an answer has 1 token or more")
    sources = name_models([*named_models] or ([] if model is None else [model]))
    with ExitStack() as stack:
        # What is wrong with the command, before any weight is read.
        listener = open_port(host, port)
        stack.callback(listener.close)
        guard = GuardSettings.from_options(host, listener.getsockname()[1], read_api_key(api_key), allow_host, cors)
        base = os.fspath(model) if model else None
        specs = {name: resolve_spec(source, base, terminal, image_size) for name, source in sources.items()}
        for name, spec in specs.items():
            terminal.print(f"model      {name}: {spec.title}")
        terminal.print("loading    the weights, until the first answer")
        with terminal.show_time("loading"):
            models = load_models(specs, device, max_new_tokens=max_new_tokens)
            for line in _describe_answers(models.models):
                terminal.print(line)
            scheduler = Scheduler.from_models(models)
            stack.callback(scheduler.close)
            remarks = scheduler.wait_until_ready()
        for remark in remarks:
            terminal.warn(remark)
        encoder = PromptEncoder(UploadStore())
        stack.callback(encoder.close)
        server = HttpServer(build_app(models, scheduler, encoder, guard), listener, scheduler.close)
        server.start()
        stack.pop_all()
    handle = ServerHandle(server, encoder, guard, models)
    if host == "127.0.0.1" and port is None and guard.port != DEFAULT_PORT:
        terminal.warn(f"port       {DEFAULT_PORT} is taken; this is {guard.port}")
    _print_start(terminal, handle, guard)
    terminal.print_result(
        f"ready      in {time.monotonic() - start:.1f} s, until {'Ctrl-C' if block else '`stop` is called'}"
    )
    if not block:
        return handle
    try:
        handle.wait()
    finally:
        handle.stop()
    return None


def name_models(given: Sequence[Path | str | Run]) -> dict[str, str]:
    """Name → what is served: a run, an adapter or a model. Raises UsageError for two of one name, and for none."""
    if not given:
        hint = format_command("serve", "runs/captions")
        raise UsageError("which model?", where="no run, adapter or model is named", hint=hint)
    named: dict[str, str] = {}
    for word in map(as_name, given):
        match = None if Path(word).exists() else _NAMED.fullmatch(word)
        name, source = (match["name"], match["source"]) if match else (_name_source(word), word)
        if not name.strip() or not name.isprintable():
            raise UsageError("a model needs a name that can be typed", where=word, hint=f"write NAME={word}")
        if name in named:
            hint = f"name one of them: {quote_word(f'NAME={source}')}"
            raise UsageError(f"two models are called {name}", where=f"{named[name]} and {source}", hint=hint)
        named[name] = source
    return named


def _name_source(source: str) -> str:
    """A run's name, also for its adapter; `RUN-best` for the best one; a folder's name, or a model's without owner."""
    path = Path(source)
    if not path.exists():
        return source.rpartition("/")[2] or source
    path = path.resolve()
    if RunDir(path.parent).config.is_file():
        return path.parent.name if path.name == "adapter" else f"{path.parent.name}-{path.name}"
    return path.name


def _describe_answers(models: Sequence[ServedModel]) -> Iterator[str]:
    """How each model answers; those that answer alike are one line."""
    names: dict[str, list[str]] = {}
    for served in models:
        text = describe_generation(served.processor, SamplingParams(served.max_new_tokens, 1))
        names.setdefault(text, []).append(served.name)
    for text, alike in names.items():
        yield f"answers    {', '.join(alike)}: {text}, unless a request says otherwise"


def _print_start(terminal: Terminal, handle: ServerHandle, guard: GuardSettings) -> None:
    """The addresses, and a command that asks the first model about photo.jpg with its own prompt."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_DATA}"}}
    body = {"model": handle.models[0], "messages": [{"role": "user", "content": [image]}]}
    before, after = map(quote_word, json.dumps(body).split(json.dumps(_DATA)[1:-1]))
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if guard.api_key else ""
    terminal.print_result(f"page       {handle.url}")
    terminal.print_result(f"API        {handle.api_url}, models: {', '.join(handle.models)}")
    terminal.print_result(
        f"curl       printf %s {before} \"$(base64 < photo.jpg | tr -d '\\n')\" {after} | "
        f"curl -sS {quote_word(f'{handle.api_url}/chat/completions')}{key} -H 'Content-Type: application/json' -d @-"
    )
