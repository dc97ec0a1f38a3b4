"""The body of a chat completion: OpenAI's keys, checked. What would change the answer and is not supported is an error.

Unknown keys are ignored: clients send many that mean nothing here.
"""

import secrets
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lorgnette.inference.sampling import SamplingParams
from lorgnette.server.api_errors import ApiError

MAX_STOPS = 4
MAX_MESSAGES = 256
"""Of a request, and parts of a message."""
_MAX_VALUES = 300_000
"""Of a body: its commas and opening brackets, those in texts too. That is more than texts may have; 32 MiB of values
would take seconds and gigabytes."""
_MIN_TEMPERATURE = 1e-5
"""Below it the likeliest token is the only one; logits divided by less are infinite."""
_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "prompt_logprobs": (0,),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "logit_bias": ({},), "modalities": (["text"],), "audio": (),
    "web_search_options": (), "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
    "top_k": (-1, 0), "min_p": (0,), "min_tokens": (0,), "bad_words": ([],), "ignore_eos": (False,), "echo": (False,),
    "stop_token_ids": ([],), "include_stop_str_in_output": (False,), "continue_final_message": (False,),
    "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "grammar": (), "json_schema": (), "regex": (), "ebnf": (), "structural_tag": (),
    "max_new_tokens": (), "max_length": (), "n_predict": (), "do_sample": (False,), "num_beams": (1,),
    "num_return_sequences": (1,), "no_repeat_ngram_size": (0,), "repeat_penalty": (1,), "mirostat": (0,),
    "enable_thinking": (False,),
    "lora_path": (), "length_penalty": (1,), "use_beam_search": (False,), "typical_p": (1,), "allowed_token_ids": (),
    "truncate_prompt_tokens": (), "add_generation_prompt": (True,), "chat_template": (), "documents": (),
    "chat_template_kwargs": ({}, {"enable_thinking": False}), "mm_processor_kwargs": ({},),
}  # fmt: skip
"""Keys of servers and of `generate` that are not supported → the values beside null that ask for nothing."""
_HINTS = {
    "n": "send the request n times, with other seeds",
    "response_format": "only text is supported",
    "tools": "the model calls no tools",
    **dict.fromkeys(("max_new_tokens", "max_length", "n_predict"), "write max_tokens"),
    "do_sample": "write a temperature",
}
_UNION_BRANCHES = frozenset({"str", "list[ContentPart]", "ImageUrl", "list[str]"})
"""pydantic's names for the branches of a union, in the place of an error."""


class _BodyPart(BaseModel):
    """Keeps keys that it does not know."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class ImageUrl(_BodyPart):
    """An image. `detail` and other keys have no effect: the model's own settings say the size."""

    url: str


class ContentPart(_BodyPart):
    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class Message(_BodyPart):
    role: str
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES)] | None = None


class StreamOptions(_BodyPart):
    include_usage: bool | None = None


class ChatRequest(_BodyPart):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises ApiError for what is no request, and for what is not supported."""
        if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
            raise ApiError(400, f"the request has more than {_MAX_VALUES:,} values")
        try:
            # Read before it is checked: in one call pydantic takes several times as long for large images.
            request = cls.model_validate(from_json(body, allow_inf_nan=False))
        except ValidationError as error:
            raise _explain(error) from None
        except ValueError as error:
            raise ApiError(400, f"the body is no JSON: {error}") from None
        for name, value in (request.model_extra or {}).items():
            if name in _NO_EFFECT and value is not None and value not in _NO_EFFECT[name]:
                message = f"{name} is not supported" + (f": {_HINTS[name]}" if name in _HINTS else "")
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        if "" in request.stop_texts:
            raise ApiError(400, "stop has an empty text", param="stop")
        return request

    @property
    def stop_texts(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def build_sampling(self, max_new_tokens: int) -> SamplingParams:
        """How the answer is generated: greedily, unless a temperature is given. max_new_tokens: the model's default.

        A negative seed counts from 2⁶⁴ down. Without a seed, sampled answers differ.
        """
        limit = self.max_completion_tokens or self.max_tokens or max_new_tokens
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
        temperature = self.temperature if (self.temperature or 0) >= _MIN_TEMPERATURE else None
        top_p = 1.0 if self.top_p is None else self.top_p
        return SamplingParams(limit, 1, temperature, top_p, seed)


def _explain(error: ValidationError) -> ApiError:
    """The first error of the branch that fits best: of the type that the value has, and farthest inside."""
    errors = error.errors(include_url=False, include_input=False)
    details = max(errors, key=lambda details: (len(details["loc"]), not details["type"].endswith("_type")))
    where = ".".join(str(part) for part in details["loc"] if part not in _UNION_BRANCHES)
    reason = "Input should be an object" if details["type"] == "model_type" else details["msg"]
    return ApiError(400, f"{where}: {reason}" if where else reason, param=where or None)
