"""A model asked as anybody else would ask it: plain transformers and peft, without lorgnette.

    python -P plain.py ASKED.json FOUND.json

Run as a script in a process of its own; it must not import lorgnette. ASKED is what `elsewhere.py` writes; FOUND holds
what was found, or `failed` where the adapter does not load.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Base, adapter and merged model on every sample."""
    transformers.utils.logging.set_verbosity_error()
    processor = _load_processor(request, request["base"])
    model, lacking = _load_model(request, request["base"])
    if lacking:
        return {"lacking": lacking}
    try:
        with warnings.catch_warnings(record=True):  # of names that do not match, which are compared below
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, request["adapter"]).eval()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return {"failed": " ".join(lines[1:2] or lines or [type(error).__name__])}
    saved = load_file(Path(request["adapter"]) / "adapter_model.safetensors").keys()
    wanted = get_peft_model_state_dict(model).keys()
    found: dict[str, Any] = {
        "names": {
            "matched": len(saved & wanted),
            "missing": sorted(wanted - saved),
            "left_over": sorted(saved - wanted),
        }
    }
    if request["witness"]:
        found["witness"] = _check_sample(request, processor, model)
    prompts = [_build_inputs(request, processor, sample) for sample in request["samples"]]
    tuned = [_generate_greedy(request, model, prompt) for prompt in prompts]
    by_tuned = [_compute_log_probs(model, prompt, answer) for prompt, answer in zip(prompts, tuned, strict=True)]
    with model.disable_adapter():
        base = [_generate_greedy(request, model, prompt) for prompt in prompts]
        by_base = [_compute_log_probs(model, prompt, answer) for prompt, answer in zip(prompts, tuned, strict=True)]
    if request["merged"] is None:
        model.merge_adapter(safe_merge=True)
    else:
        del model  # two models at once need twice the memory
        processor = _load_processor(request, request["merged"])
        model, found["lacking"] = _load_model(request, request["merged"])
        again = [_build_inputs(request, processor, sample) for sample in request["samples"]]
        found["same_inputs"] = all(
            torch.equal(one[name], other[name]) for one, other in zip(prompts, again, strict=True) for name in one
        )
    merged = [_generate_greedy(request, model, prompt) for prompt in prompts]
    by_merged = [_compute_log_probs(model, prompt, answer) for prompt, answer in zip(prompts, tuned, strict=True)]
    found["samples"] = [
        {
            "base": processor.tokenizer.decode(base[i], skip_special_tokens=True),
            "adapter": processor.tokenizer.decode(tuned[i], skip_special_tokens=True),
            "merged": processor.tokenizer.decode(merged[i], skip_special_tokens=True),
            "moved": _compute_distance(by_tuned[i], by_base[i]),
            "rounded": _compute_distance(by_tuned[i], by_merged[i]),
        }
        for i in range(len(prompts))
    ]
    found["versions"] = {"transformers": transformers.__version__, "peft": __import__("peft").__version__}
    found["of_lorgnette"] = sorted(name for name in sys.modules if name.partition(".")[0] == "lorgnette")
    return found


def _load_model(asked: dict[str, Any], folder: str) -> tuple[Any, list[str]]:
    """In float32, so that rounding is not mistaken for a difference; and the weights that the folder has not, for
    which transformers draws random ones."""
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model.generation_config = transformers.GenerationConfig()
    return model.to(asked["device"]).eval(), sorted(info["missing_keys"])


def _load_processor(asked: dict[str, Any], folder: str) -> Any:
    """The checkpoint's own. AutoProcessor would build a video processor, which wants torchvision, where the signature
    does not leave it out."""
    theirs = getattr(transformers, asked["processor"])

    def start(
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **more: Any
    ) -> None:
        theirs.__init__(self, image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **more)

    image_only: Any = type(theirs.__name__, (theirs,), {"__init__": start})
    return image_only.from_pretrained(folder, backend="pil")


def _build_inputs(asked: dict[str, Any], processor: Any, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The prompt of a conversation, its pictures at the size the adapter was trained with."""
    settings = asked["processor_settings"]
    pictures = [
        Image.open(part["path"]).convert("RGB")
        for turn in messages
        for part in turn["content"]
        if part["type"] == "image"
    ]
    sizes: dict[str, Any] = {"do_resize": False}
    if settings["image_size"] is None:
        side = processor.image_processor.patch_size * processor.image_processor.merge_size
        least, most = (tokens * side * side for tokens in settings["image_tokens"])
        sizes = {"size": {"shortest_edge": least, "longest_edge": most}}
    else:
        height, width = asked["resized"]
        pictures = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    made = processor(text=[text], images=pictures or None, return_tensors="pt", **(sizes if pictures else {}))
    return {name: values.to(asked["device"]) for name, values in made.items()}


def _generate_greedy(asked: dict[str, Any], model: Any, prompt: dict[str, torch.Tensor]) -> list[int]:
    """The likeliest tokens, the end token with them."""
    settings = transformers.GenerationConfig(
        max_new_tokens=asked["max_new_tokens"],
        do_sample=False,
        eos_token_id=asked["ends"],
        pad_token_id=asked["ends"][-1],
    )
    with torch.inference_mode():
        row = model.generate(**prompt, generation_config=settings)[0]
    return [int(number) for number in row[prompt["input_ids"].shape[1] :]]


def _compute_log_probs(model: Any, prompt: dict[str, torch.Tensor], answer: list[int]) -> torch.Tensor:
    """[R, V] next-token log-probabilities where each of the answer's R tokens is predicted, on the CPU."""
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    more = torch.tensor([answer], device=ids.device)
    types = prompt["mm_token_type_ids"]
    inputs = prompt | {
        "input_ids": torch.cat([ids, more], 1),
        "attention_mask": torch.cat([mask, torch.ones_like(more)], 1),
        "mm_token_type_ids": torch.cat([types, torch.zeros_like(more, dtype=types.dtype)], 1),
    }
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1]
    likely: torch.Tensor = logits.float().log_softmax(-1).cpu()
    return likely


def _compute_distance(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Means over the R positions: KL(one ‖ other) in nats, total variation ½ Σ|p − q|; how many first choices differ;
    the largest difference of a log-probability among those that either gives 1 % or more."""
    p, q = one.exp(), other.exp()
    seen = torch.maximum(p, q) >= 0.01
    return {
        "tokens": len(one),
        "kl": max(0.0, float((p * (one - other)).sum(-1).mean())),  # rounding may put it below
        "total_variation": float((p - q).abs().sum(-1).mean() / 2),
        "first_choices": int((one.argmax(-1) != other.argmax(-1)).sum()),
        "largest": float(((one - other).abs() * seen).max()),
    }


def _check_sample(asked: dict[str, Any], processor: Any, model: Any) -> dict[str, Any]:
    """Whether the prompt's tokens are training's, and the mean loss over the answer's."""
    witness = asked["witness"]
    prompt = _build_inputs(asked, processor, witness["messages"])
    if prompt["input_ids"][0].tolist() != witness["tokens"]:
        return {"same_tokens": False, "loss": None}
    answer = witness["answer"]
    likely = _compute_log_probs(model, prompt, answer)
    return {"same_tokens": True, "loss": -float(likely[torch.arange(len(answer)), torch.tensor(answer)].mean())}


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(main(json.loads(source.read_text(encoding="utf-8")))), encoding="utf-8")
