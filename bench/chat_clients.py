"""Users of a server who stream chat completions, in a process of their own, so that the server keeps its interpreter.

    python bench/chat_clients.py < jobs           # bench/serve.py starts it

Each line of the input is a job: {"port": …, "start": seconds of the monotonic clock, "users": [[question, …], …]}. A
user asks one question after another; a question has "model", "image", "prompt" and "max_tokens". The line of output has
every answer with its question: status, text, tokens, and seconds since it was asked. Events are parsed when the last
has arrived: reading costs no more than a copy.
"""

import base64
import json
import re
import socket
import sys
import time
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TIMEOUT_S = 120
_EVENT = re.compile(rb"data: (\{.*\})\r?\n")


def build_request(question: dict[str, Any], port: int) -> bytes:
    """The bytes of a streamed request. Whatever else a question has is a parameter of the API."""
    image = base64.b64encode(Path(question["image"]).read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
        {"type": "text", "text": question["prompt"]},
    ]
    more = {name: value for name, value in question.items() if name not in ("image", "prompt", "max_tokens")}
    body = {
        "messages": [{"role": "user", "content": parts}], "max_completion_tokens": question["max_tokens"],
        "stream": True, "stream_options": {"include_usage": True}, **more,
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer none\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return head.encode() + content


def ask(request: bytes, port: int) -> dict[str, Any]:
    """Send a request and read its stream to the end."""
    content, arrivals = bytearray(), list[tuple[int, float]]()
    asked = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        while part := connection.recv(65536):
            content += part
            arrivals.append((len(content), time.monotonic()))
    return {"asked": asked, **read_answer(bytes(content), arrivals, asked)}


def read_answer(content: bytes, arrivals: list[tuple[int, float]], asked: float) -> dict[str, Any]:
    """Text, tokens and times of a stream. arrivals: bytes so far, and when.

    The first event has the role, and text comes from the second on. complete: whether the stream ended as it should.
    """
    text, times, num_tokens = "", list[float](), None
    for match in _EVENT.finditer(content):
        event = json.loads(match[1])
        num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        for choice in event.get("choices", ()):
            if part := choice["delta"].get("content"):
                text += part
                times.append(arrivals[bisect_left(arrivals, (match.end(), 0.0))][1] - asked)
    return {
        "status": int(content.split(b" ", 2)[1]) if content else None, "text": text, "tokens": num_tokens,
        "first_s": times[0] if times else None, "last_s": times[-1] if times else None, "chunks": len(times),
        "complete": b"data: [DONE]" in content, "error": None if times else content[-300:].decode(errors="replace"),
    }  # fmt: skip


def run_users(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Let all users ask at once, from the job's start on."""
    port = job["port"]
    users = [[(question, build_request(question, port)) for question in questions] for questions in job["users"]]

    def run_user(own: list[tuple[dict[str, Any], bytes]]) -> list[dict[str, Any]]:
        time.sleep(max(0.0, job["start"] - time.monotonic()))
        return [question | ask(request, port) for question, request in own]

    with ThreadPoolExecutor(len(users)) as pool:
        return [answer for answers in pool.map(run_user, users) for answer in answers]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run_users(json.loads(line))), flush=True)
