"""Asks a server thousands of things at once, most of them broken, and looks for wrong answers and for leaks.

    python tests/soak.py FOLDER [--requests 10000] [--users 16] [--seed 0]

A real `lorgnette serve` of the built-in model and an adapter, in a process of its own. Users ask by raw sockets:
streamed and whole answers, greedy and sampled; clients that are killed before, in and after an answer; bodies that
break off; JSON, images and headers that are broken or hostile. Every good answer must be the one that was given alone,
every bad request gets its error, and at the end nobody waits, and threads, files, uploads and memory are as they were.
Prints a JSON object; exit status 1 if something was wrong.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import PIL.Image
import psutil

TIMEOUT_S = 60
START_LIMIT_S = 240
MAX_UPLOAD_BYTES = 256 * 2**20
MAX_BODY_BYTES = 32 * 2**20
NUM_ROUNDS = 5
NUM_IMAGES = 6
MODELS = ("tuned", "base")
LENGTHS = (2, 6, 32)
SEEDS = (None, 1)
TAIL_BYTES = 60_000
"""Of new images: behind the image's own bytes, where a decoder does not look."""
MAX_GROWTH = 48 * 2**20
"""Bytes that the server's memory may grow after two of five rounds, beside the features that it keeps: it also keeps
decoded images."""
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc gives free memory back at once: what grows is held by somebody."""
COLORS = ("red", "green", "blue", "yellow", "black", "white")


class WrongError(Exception):
    """The server did what it must not."""


class RefusedError(WrongError):
    """The queue is full, which is right in a crowd alone."""


# Requests and answers, byte by byte


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def error_code(self) -> str | None:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error["code"]


def build_http(path: str, body: bytes | None = None, **headers: object) -> bytes:
    """A request that asks to close the connection. headers: with _ for -; None leaves one out."""
    fields: dict[str, object] = {"Host": "127.0.0.1:{port}", "Connection": "close"}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": len(body)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def read_answer(content: bytes) -> Answer:
    head, _, body = content.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        raise WrongError(f"no answer: {content[:100]!r}")
    if b"transfer-encoding: chunked" in head.lower():
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
            if length == 0:
                break
    return Answer(int(head.split(b" ")[1]), body)


def read_text(answer: Answer, *, is_streamed: bool) -> str:
    """The text of a good answer. Raises WrongError for any other."""
    if answer.status != 200:
        is_full = answer.status == 429 and answer.error_code == "queue_full"
        raise (RefusedError if is_full else WrongError)(f"{answer.status}: {answer.body[:300]!r}")
    if not is_streamed:
        text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
        return text
    *events, done, rest = answer.body.decode().split("\n\n")
    if (done, rest) != ("data: [DONE]", ""):
        raise WrongError(f"the stream breaks off: {answer.body[-300:]!r}")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return "".join(delta.get("content") or "" for delta in deltas)


# What is asked


@dataclass(frozen=True)
class Question:
    """One whose answer is known. image: its number; seed: None for a greedy answer; a sampled one ends at an "e"."""

    model: str
    image: int
    length: int
    seed: int | None = None

    def build_body(self, images: Sequence[bytes], tail: bytes = b"", **more: object) -> bytes:
        sampling = {} if self.seed is None else {"temperature": 0.8, "top_p": 0.9, "seed": self.seed, "stop": "e"}
        image = {"type": "image_url", "image_url": {"url": encode_image(images[self.image] + tail)}}
        return encode_body(self.model, [image], max_completion_tokens=self.length, **sampling, **more)


def list_questions() -> list[Question]:
    return [Question(*values) for values in product(MODELS, range(NUM_IMAGES), LENGTHS, SEEDS)]


def encode_image(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def encode_body(model: str, content: object, **more: object) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **more}).encode()


def draw_images() -> list[bytes]:
    images = []
    for number, color in enumerate(COLORS):
        image, file = PIL.Image.new("RGB", (120, 90), color), io.BytesIO()
        image.paste((255 - 40 * number, 40 * number, 128), (10 * number, 20, 10 * number + 30, 70))
        image.save(file, "PNG")
        images.append(file.getvalue())
    return images


def build_png(width: int, height: int) -> bytes:
    """An image of zeros: many pixels in few bytes, but not as many as its header says."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def list_bad_requests(image: bytes) -> dict[str, tuple[bytes, int, str | None]]:
    """Name → a request, and the status and code of its error."""

    def ask(content: object, model: str = "tuned", **more: object) -> bytes:
        return build_http("/v1/chat/completions", encode_body(model, content, **more))

    def show(url: str) -> bytes:
        return ask([{"type": "image_url", "image_url": {"url": url}}])

    good = encode_body("tuned", [{"type": "image_url", "image_url": {"url": encode_image(image)}}])
    chat = "/v1/chat/completions"
    return {
        "not JSON": (build_http(chat, b'{"model": "tuned", "mess'), 400, None),
        "not UTF-8": (build_http(chat, b'{"model": "\xff\xfe"}'), 400, None),
        "a list": (build_http(chat, b"[]"), 400, None),
        "deep": (build_http(chat, b"[" * 100_000), 400, None),
        "no messages": (build_http(chat, b'{"model": "tuned", "messages": []}'), 400, None),
        "another model": (ask("What?", model="gpt-5"), 404, "model_not_found"),
        "two answers": (ask("What?", n=2), 400, "unsupported_parameter"),
        "a tool": (ask("What?", tools=[{"type": "function"}]), 400, "unsupported_parameter"),
        "too hot": (ask("What?", temperature=9), 400, None),
        "too long": (ask("word " * 30_000), 400, "context_length_exceeded"),
        "too many tokens": (ask("What?", max_tokens=10**9), 400, "context_length_exceeded"),
        "bomb": (show(encode_image(build_png(30_000, 30_000))), 400, "image_too_large"),
        "fewer pixels": (show(encode_image(build_png(500, 500))), 400, "invalid_image"),
        "narrow": (show(encode_image(build_png(9_000, 3))), 400, "invalid_image"),
        "half an image": (show(encode_image(image[: len(image) // 2])), 400, "invalid_image"),
        "no image": (show(encode_image(b"GIF89a")), 400, "invalid_image"),
        "markup": (show(encode_image(b"<svg xmlns='http://www.w3.org/2000/svg'/>")), 400, "invalid_image"),
        "not base64": (show("data:image/png;base64,!!!!"), 400, "invalid_base64"),
        "an address": (show("http://127.0.0.1:1/a.png"), 400, "invalid_image_url"),
        "a file": (show("file:///etc/passwd"), 400, "invalid_image_url"),
        "nine images": (ask([{"type": "image_url", "image_url": encode_image(image)}] * 9), 400, None),
        "a form": (build_http(chat, good, Content_Type="text/plain"), 415, None),
        "another host": (build_http(chat, good, Host="evil.example"), 403, "wrong_host"),
        "another origin": (build_http(chat, good, Origin="http://evil.example"), 403, "wrong_origin"),
        "huge": (build_http(chat, b"{", Content_Length=MAX_BODY_BYTES + 1), 413, "request_too_large"),
        "elsewhere": (build_http("/v1/embeddings", b"{}"), 404, None),
        "up": (build_http("/static/../../../../etc/passwd"), 401, "invalid_token"),
    }  # fmt: skip


# The users

Way = Callable[[random.Random], str]
"""Does something at random, and returns its name."""


@dataclass
class Users:
    """Threads that ask `port`. questions: those whose answers become known. counts: of what was asked; wrongs: what was
    wrong; seconds: of good answers."""

    port: int
    images: Sequence[bytes]
    questions: Sequence[Question]
    seed: int
    answers: dict[Question, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bad = list_bad_requests(self.images[0])
        self._lock = threading.Lock()
        self._ways: tuple[tuple[Way, int], ...] = (
            (self.ask_known, 50), (self.send_bad, 25), (self.leave_early, 12), (self.break_off, 6), (self.look, 4),
            (self.send_garbage, 3),
        )  # fmt: skip

    def ask_alone(self) -> dict[Question, str]:
        """Every question, one after another."""
        bodies = {question: question.build_body(self.images) for question in self.questions}
        return {question: self.get_text(body, is_streamed=False) for question, body in bodies.items()}

    def get_text(self, body: bytes, *, is_streamed: bool) -> str:
        return read_text(self.send(build_http("/v1/chat/completions", body)), is_streamed=is_streamed)

    def run(self, num_requests: int, num_users: int) -> None:
        """Let users do things at random, all at once."""
        self._run(num_requests, num_users, self.do_any)

    def crowd(self, num_users: int) -> None:
        """Let more users ask at once than may wait: each gets the right answer or is told to come again."""
        self._run(num_users, num_users, self.ask_in_crowd)

    def _run(self, num_requests: int, num_users: int, way: Way) -> None:
        first = self.counts.total()
        numbers = iter(range(first, first + num_requests))

        def run_user() -> None:
            while (number := next(numbers, None)) is not None:  # one thread at a time has the interpreter
                self.do_one(random.Random(f"{self.seed} {number}"), way)

        threads = [threading.Thread(target=run_user) for _ in range(num_users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def do_one(self, rng: random.Random, way: Way) -> None:
        name = "?"
        try:
            name = way(rng)
        except Exception as error:  # whatever is odd about an answer: the user goes on
            with self._lock:
                self.wrongs.append(f"{type(error).__name__}: {error}")
        with self._lock:
            self.counts[name] += 1

    def do_any(self, rng: random.Random) -> str:
        ways, weights = zip(*self._ways, strict=True)
        return rng.choices(ways, weights)[0](rng)

    def ask_in_crowd(self, rng: random.Random) -> str:
        try:
            return self.ask_known(rng)
        except RefusedError:
            return "refused"

    def ask_known(self, rng: random.Random) -> str:
        question, is_streamed = rng.choice(self.questions), rng.random() < 0.5
        tail = rng.randbytes(rng.randrange(TAIL_BYTES)) if rng.random() < 0.5 else b""
        start = time.monotonic()
        self.check_answer(question, tail, is_streamed=is_streamed)
        self.seconds.append(time.monotonic() - start)
        return "streamed" if is_streamed else "whole"

    def check_answer(self, question: Question, tail: bytes = b"", *, is_streamed: bool) -> None:
        """Raises WrongError if it is not the known one."""
        text = self.get_text(question.build_body(self.images, tail, stream=is_streamed), is_streamed=is_streamed)
        if text != self.answers[question]:
            raise WrongError(f"{question}: {text!r} instead of {self.answers[question]!r}")

    def send_bad(self, rng: random.Random) -> str:
        name, (request, status, code) = rng.choice(list(self._bad.items()))
        answer = self.send(request)
        if answer.status != status or (code and answer.error_code != code) or b"Traceback" in answer.body:
            raise WrongError(f"{name}: {answer.status} {answer.body[:300]!r}, not {status} {code}")
        return "bad"

    def leave_early(self, rng: random.Random) -> str:
        """Close the connection, politely or not, before, in or after the answer."""
        body = rng.choice(self.questions).build_body(self.images, stream=rng.random() < 0.7)
        with self.connect() as connection:
            connection.sendall(self.address(build_http("/v1/chat/completions", body)))
            for _ in range(rng.choice((0, 0, 1, 3, 10))):
                if not connection.recv(200):
                    break
            if rng.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "gone"

    def break_off(self, rng: random.Random) -> str:
        """Send a part of a request, wait a little and go."""
        request = self.address(build_http("/v1/chat/completions", rng.choice(self.questions).build_body(self.images)))
        with self.connect() as connection:
            connection.sendall(request[: rng.randrange(len(request))])
            time.sleep(rng.random() * 0.02)
        return "half"

    def look(self, rng: random.Random) -> str:
        path = rng.choice(("/health", "/metrics", "/v1/models", "/v1/models/tuned"))
        if (answer := self.send(build_http(path))).status != 200:
            raise WrongError(f"{path}: {answer.status} {answer.body[:300]!r}")
        return "look"

    def send_garbage(self, rng: random.Random) -> str:
        with self.connect() as connection:
            connection.sendall(rng.randbytes(rng.randrange(1, 2000)))
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
        return "garbage"

    def send(self, request: bytes) -> Answer:
        """The answer of a request whose connection the server closes."""
        content = b""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # refused before all was read: the answer is there
                connection.sendall(self.address(request))
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    content += part
        return read_answer(content)

    def address(self, request: bytes) -> bytes:
        return request.replace(b"{port}", str(self.port).encode(), 1)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)


# The server


@dataclass(frozen=True)
class Usage:
    """Of the server's process. memory: bytes, without the image features that it keeps."""

    memory: int
    files: int
    threads: int
    upload_bytes: int


class Server:
    """A running command. temporary: the folder of its temporary files."""

    def __init__(self, port: int, temporary: Path) -> None:
        self.port, self._temporary = port, temporary
        listeners = psutil.net_connections("tcp")
        self.process = psutil.Process(next(c.pid for c in listeners if c.laddr[1:] == (port,) and c.status == "LISTEN"))

    def read_metrics(self) -> dict[str, float]:
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
            connection.sendall(build_http("/metrics").replace(b"{port}", str(self.port).encode()))
            content = b"".join(iter(lambda: connection.recv(65536), b""))
        lines = re.findall(r"^(\w+)(?:\{.*\})? ([0-9.e+-]+)$", read_answer(content).body.decode(), re.MULTILINE)
        return {name: float(value) for name, value in lines}

    def wait_until_idle(self) -> None:
        """Raises WrongError if somebody still waits, or a row is not free."""
        deadline = time.monotonic() + 20
        while any((metrics := self.read_metrics())[name] for name in BUSY_METRICS):
            if time.monotonic() > deadline:
                raise WrongError(f"the server does not become idle: {metrics}")
            time.sleep(0.05)
        time.sleep(0.3)  # closed connections leave

    def measure(self) -> Usage:
        features = int(self.read_metrics()[FEATURE_METRIC])
        uploads = sum(path.stat().st_size for path in self._temporary.rglob("*") if path.is_file())
        with self.process.oneshot():
            memory, files = self.process.memory_info().rss - features, self.process.num_fds()
            return Usage(memory, files, self.process.num_threads(), uploads)


BUSY_METRICS = ("lorgnette_requests_waiting", "lorgnette_requests_running")
FEATURE_METRIC = "lorgnette_feature_bytes"


@contextlib.contextmanager
def start_server(command: Sequence[str], folder: Path) -> Iterator[tuple[Server, "subprocess.Popen[bytes]"]]:
    """command: without its port. Its temporary files are in folder/temporary, what it prints in folder/log.txt."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    temporary, log = folder / "temporary", folder / "log.txt"
    temporary.mkdir(parents=True)
    environment = {**os.environ, **MALLOC, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        child = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not is_ready(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise WrongError(f"the server does not start\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        yield Server(port, temporary), child
    finally:
        child.kill()
        child.wait()


def is_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(build_http("/health").replace(b"{port}", str(port).encode()))
            return b" 200 " in connection.recv(100)
    except OSError:
        return False


@contextlib.contextmanager
def catch(wrongs: list[str]) -> Iterator[None]:
    try:
        yield
    except (WrongError, OSError, subprocess.TimeoutExpired) as error:
        wrongs.append(f"{type(error).__name__}: {error}")


def explain_growth(before: Usage, after: Usage) -> list[str]:
    """What has grown that must not."""
    return [
        f"{name}: {start:,} before, {end:,} after"
        for name, start, end, limit in (
            ("memory", before.memory, after.memory, before.memory + MAX_GROWTH),
            ("files", before.files, after.files, before.files),
            ("threads", before.threads, after.threads, before.threads + 2),
            ("upload bytes", before.upload_bytes, after.upload_bytes, MAX_UPLOAD_BYTES),
        )
        if end > limit
    ]


def soak(
    command: Sequence[str], folder: Path, questions: Sequence[Question], *, num_requests: int, num_users: int,
    num_crowd: int, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Returns figures, and what was wrong under "wrongs"."""
    with start_server(command, folder) as (server, child):
        users = Users(server.port, draw_images(), questions, seed)
        users.answers, usages, start = users.ask_alone(), list[Usage](), time.monotonic()
        for _ in range(NUM_ROUNDS):  # in the first two caches fill and threads start
            users.run(num_requests // NUM_ROUNDS, num_users)
            with catch(users.wrongs):
                server.wait_until_idle()
            usages.append(server.measure())
        seconds, waits = time.monotonic() - start, list(users.seconds)
        users.crowd(num_crowd)
        with catch(users.wrongs):
            server.wait_until_idle()
        wrongs = list(users.wrongs)
        wrongs += explain_growth(usages[1], usages[-1])
        if users.ask_alone() != users.answers:
            wrongs.append("answers have changed")
        child.send_signal(signal.SIGTERM)  # a background job may ignore INT
        with catch(wrongs):
            child.wait(20)
        left = sorted(path.name for path in (folder / "temporary").iterdir())
        wrongs += [f"files are left: {left}"] if left else []
        log = (folder / "log.txt").read_text(errors="replace")
        wrongs += [f"it printed\n{log}"] if "Traceback" in log else []
    return {
        "requests": sum(users.counts.values()), "users": num_users, "seconds": round(seconds, 1),
        "counts": dict(sorted(users.counts.items())), "wrongs": wrongs, "rounds": list(map(vars, usages)),
        "answer_s": {"median": statistics.median(waits), "max": max(waits)}, "exit": child.returncode,
    }  # fmt: skip


def write_adapter(folder: Path) -> Path:
    """An adapter of the built-in model with random factors."""
    import torch

    from lorgnette.config import LoraSettings, ProcessorSettings
    from lorgnette.lora import peft_files
    from lorgnette.lora.flat_params import FlatLoraParams
    from lorgnette.lora.metadata import AdapterMetadata
    from lorgnette.models.adapter_shape import AdapterShape
    from lorgnette.models.base_checkpoint import BaseCheckpoint
    from lorgnette.processing.processor import Processor
    from lorgnette.resolve import BUILT_IN_MODEL

    lora, checkpoint = LoraSettings(rank=4), BaseCheckpoint.from_folder(BUILT_IN_MODEL)
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 56)))
    params = FlatLoraParams(AdapterShape.from_settings(checkpoint.load_text_config(), lora), torch.device("cpu"))
    torch.manual_seed(0)
    params.copy_from(torch.randn_like(params.values) * 0.05)
    metadata = AdapterMetadata(
        family="qwen2_vl", model="demo", revision=None, fingerprint=checkpoint.fingerprint, prompt="COCO Yes:",
        chat_template=processor.chat_template.source, processor=processor.settings,
    )  # fmt: skip
    folder.mkdir(parents=True)
    peft_files.write_adapter(folder, params.copy_to_cpu(), checkpoint.family, lora, metadata)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adapter = write_adapter(arguments.folder / "adapter")
    command = [sys.executable, "-m", "lorgnette", "serve", f"tuned={adapter}", "--device", "cpu"]
    report = soak(
        command, arguments.folder / "server", list_questions(), num_requests=arguments.requests,
        num_users=arguments.users, num_crowd=200, seed=arguments.seed,
    )  # fmt: skip
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["wrongs"] else 0


if __name__ == "__main__":
    sys.exit(main())
