"""Runs base, adapter and merged model with plain transformers + PEFT, without lorgnette.

A script for a process of its own: `python -P peft_worker.py REQUEST.json RESULT.json`. It must not import lorgnette.
`peft_check.py` writes the request and reads the result, and describes the result's fields.
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
from safetensors.torch import load_file
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Answer every prompt with base, adapter and merged model."""
    transformers.utils.logging.set_verbosity_error()
    model, missing_weights = _load_model(request, request["base"])
    if missing_weights:
        return {"missing_weights": missing_weights}
    try:
        model, saved_names, expected_names = _load_adapter(request, model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PEFT raises nearly anything for values that do not fit the model
        return {"load_error": f"{type(error).__name__}: {error}"}
    result: dict[str, Any] = {"saved_names": saved_names, "expected_names": expected_names}
    if saved_names == expected_names:
        result |= _compare_answers(request, model)
    result["versions"] = {"transformers": transformers.__version__, "peft": __import__("peft").__version__}
    result["lorgnette_modules"] = sorted(name for name in sys.modules if name.partition(".")[0] == "lorgnette")
    return result


def _load_adapter(request: dict[str, Any], model: Any) -> tuple[Any, list[str], list[str]]:
    """Load the adapter with PEFT. Also returns the tensor names in its file and in the model."""
    saved = load_file(Path(request["adapter"]) / "adapter_model.safetensors").keys()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    modules = {part for name in saved for part in name.split(".")}
    if head.weight is embedding.weight and modules & {"embed_tokens", "lm_head"}:
        # PEFT would merge what belongs to one of the two into both.
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    embeddings = {id(head.weight), id(embedding.weight)}
    with warnings.catch_warnings(record=True):  # about names that do not match; `main` compares them
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, request["adapter"]).eval()
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    # PEFT saves whole embeddings too, if they were resized, or on request.
    whole = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in embeddings}
    return model, sorted(saved), sorted(expected | (whole & saved))


def _compare_answers(request: dict[str, Any], model: Any) -> dict[str, Any]:
    """Answer with the adapter, the base model and the merged model. `model` cannot be used afterwards."""
    # The adapter.
    processor, result = _load_processor(request["base"]), dict[str, Any]()
    if request["sample"]:
        result["sample_loss"] = _compute_sample_loss(request, processor, model)
    prompts = [_build_inputs(request, processor, messages) for messages in request["prompts"]]
    ids_by_model = {"adapter": [_generate_greedy(request, model, prompt) for prompt in prompts]}
    pairs = list(zip(prompts, ids_by_model["adapter"], strict=True))
    log_probs_by_model = {"adapter": [_compute_log_probs(model, *pair) for pair in pairs]}

    def answer(name: str, model: Any) -> None:
        """Greedy answers to the prompts, and log-probabilities along the adapter's answers."""
        ids_by_model[name] = [_generate_greedy(request, model, prompt) for prompt in prompts]
        log_probs_by_model[name] = [_compute_log_probs(model, *pair) for pair in pairs]

    # The base model, if loading the adapter has not changed it.
    if not request["is_base_changed"]:
        with model.disable_adapter():
            answer("base", model)
    # The merged model.
    if request["merged"] is not None:
        del model  # two models at once need twice the memory
        processor = _load_processor(request["merged"])
        model, result["missing_weights"] = _load_model(request, request["merged"])
        merged_prompts = [_build_inputs(request, processor, messages) for messages in request["prompts"]]
        result["has_same_inputs"] = all(
            torch.equal(a[name], b[name]) for a, b in zip(prompts, merged_prompts, strict=True) for name in a
        )
        answer("merged", model)
    elif request["is_mergeable"]:
        try:
            model.merge_adapter(safe_merge=True)
            answer("merged", model)
        except (ValueError, NotImplementedError) as error:
            result["merge_failure"] = str(error)
    if request["is_base_changed"]:
        del model
        answer("base", _load_model(request, request["base"])[0])
    return result | {"answers": _describe_answers(processor, ids_by_model, log_probs_by_model)}


def _describe_answers(processor: Any, ids: dict[str, Any], log_probs: dict[str, Any]) -> list[dict[str, Any]]:
    """The texts of every model and their distances from the adapter's."""
    answers = []
    for i, adapter_log_probs in enumerate(log_probs["adapter"]):
        texts = {name: processor.tokenizer.decode(x[i], skip_special_tokens=True) for name, x in ids.items()}
        distances = {name: _compute_distance(adapter_log_probs, x[i]) for name, x in log_probs.items()}
        numbers = {"adapter_effect": distances["base"], "merge_error": distances.get("merged")}
        answers.append({"merged": None, **texts, **numbers})
    return answers


def _load_model(request: dict[str, Any], folder: str) -> tuple[Any, list[str]]:
    """Load in float32, so that rounding is not mistaken for a difference.

    Also returns the weights missing from the folder; transformers initializes those at random.
    """
    auto_model = transformers.AutoModelForImageTextToText
    # config.json could name a kernel to download.
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa", "output_loading_info": True}
    quantization = request["quantization"] if folder == request["base"] else None
    if quantization is not None:
        options |= _build_quantization_options(quantization, folder)
    model, info = auto_model.from_pretrained(folder, **options)
    if quantization is not None:
        _dequantize(model)
    model.generation_config = transformers.GenerationConfig()
    return model.to(request["device"]).eval(), sorted(info["missing_keys"])


def _build_quantization_options(quantization: dict[str, Any], folder: str) -> dict[str, Any]:
    """Options of from_pretrained for a base model in NF4; its config.json may name other modules than are stored."""
    config = transformers.BitsAndBytesConfig(**quantization["options"])
    options: dict[str, Any] = {"device_map": {"": "cpu"}}
    if not quantization["is_stored"]:
        return options | {"quantization_config": config}
    model_config = transformers.AutoConfig.from_pretrained(folder)
    model_config.quantization_config = config.to_dict()
    return options | {"config": model_config}


def _dequantize(model: Any) -> None:
    """Make plain layers of bitsandbytes' ones, whose products have another precision on some CPUs.

    All other weights become float32: transformers leaves them in the dtype of a file that has NF4 weights.
    """
    from bitsandbytes.nn import Linear4bit

    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            state.dtype = torch.float32  # else rounded to the dtype of whoever quantized them
            shapes[name] = state.shape
            state.shape = torch.Size((1, state.shape.numel()))  # of a matrix, some CPUs take wrong scales
    model.dequantize()
    for name, shape in shapes.items():
        weight = model.get_submodule(name).weight
        weight.data = weight.data.view(shape)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()


def _load_processor(folder: str) -> Any:
    """Load the checkpoint's processor without its video part, because that requires torchvision."""
    config = transformers.AutoConfig.from_pretrained(folder)
    processor_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])

    def init(self: Any, image_processor: Any, tokenizer: Any, chat_template: Any = None, **kwargs: Any) -> None:
        processor_class.__init__(self, image_processor, tokenizer, chat_template=chat_template, **kwargs)

    image_only: Any = type(processor_class.__name__, (processor_class,), {"__init__": init})
    return image_only.from_pretrained(folder, backend="pil")


def _build_inputs(request: dict[str, Any], processor: Any, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Build the model inputs of a prompt, with its images at the size used in training."""
    settings = request["processor_settings"]
    parts = [part for turn in messages for part in turn["content"] if part["type"] == "image"]
    images = [Image.open(part["path"]).convert("RGB") for part in parts]
    resize: dict[str, Any] = {"do_resize": False}
    if settings["image_size"] is None:
        side = processor.image_processor.patch_size * processor.image_processor.merge_size
        min_pixels, max_pixels = (tokens * side * side for tokens in settings["image_tokens"])
        resize = {"size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}}
    else:
        height, width = request["fixed_size"]
        images = [image.resize((width, height), Image.Resampling.BICUBIC) for image in images]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, **request["template_options"])
    inputs = processor(text=[text], images=images or None, return_tensors="pt", **(resize if images else {}))
    return {name: tensor.to(request["device"]) for name, tensor in inputs.items()}


def _generate_greedy(request: dict[str, Any], model: Any, prompt: dict[str, torch.Tensor]) -> list[int]:
    """Generate the answer's token ids greedily, with its end token.

    No token of an answer is an image's: `_compute_log_probs` gives it to the model, which would look for the image.
    """
    tokens = {"eos_token_id": request["eos_token_ids"], "pad_token_id": request["eos_token_ids"][-1]}
    config = transformers.GenerationConfig(
        max_new_tokens=request["max_new_tokens"], do_sample=False, suppress_tokens=_list_image_tokens(model), **tokens
    )
    with torch.inference_mode():
        output_ids = model.generate(**prompt, generation_config=config)[0]
    return [int(token_id) for token_id in output_ids[prompt["input_ids"].shape[1] :]]


def _list_image_tokens(model: Any) -> list[int]:
    """The ids of the control tokens of images and videos."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = (getattr(model.config, name, None) for name in names)
    return [token_id for token_id in ids if token_id is not None]


def _compute_log_probs(model: Any, prompt: dict[str, torch.Tensor], answer: list[int]) -> torch.Tensor:
    """[R, V] log-probabilities at the positions that predict the answer's R tokens, on the CPU."""
    ids, mask, types = (prompt[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids"))
    answer_ids = torch.tensor([answer], device=ids.device)
    inputs = prompt | {
        "input_ids": torch.cat([ids, answer_ids], 1),
        "attention_mask": torch.cat([mask, torch.ones_like(answer_ids)], 1),
        "mm_token_type_ids": torch.cat([types, torch.zeros_like(answer_ids, dtype=types.dtype)], 1),
    }
    with torch.inference_mode():
        logits = model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1).cpu()


def _compute_distance(log_p: torch.Tensor, log_q: torch.Tensor) -> dict[str, Any]:
    """Compare two [R, V] log-probabilities: means over R of KL(p ‖ q) in nats and of ½ Σ|p − q|."""
    p, q = log_p.exp(), log_q.exp()
    is_likely = torch.maximum(p, q) >= 0.01
    return {
        "num_tokens": len(log_p),
        "kl": max(0.0, float((p * (log_p - log_q)).sum(-1).mean())),  # rounding may make it negative
        "total_variation": float((p - q).abs().sum(-1).mean() / 2),
        "num_argmax_changes": int((log_p.argmax(-1) != log_q.argmax(-1)).sum()),
        "max_logprob_difference": float(((log_p - log_q).abs() * is_likely).max()),
    }


def _compute_sample_loss(request: dict[str, Any], processor: Any, model: Any) -> float | None:
    """Compute the mean loss of the reference sample's answer; None if its prompt gives other token ids."""
    sample = request["sample"]
    prompt = _build_inputs(request, processor, sample["messages"])
    if prompt["input_ids"][0].tolist() != sample["prompt_ids"]:
        return None
    answer = torch.tensor(sample["answer_ids"])
    log_probs = _compute_log_probs(model, prompt, sample["answer_ids"])
    return -float(log_probs[torch.arange(len(answer)), answer].mean())


if __name__ == "__main__":
    request_path, result_path = map(Path, sys.argv[1:])
    result_path.write_text(json.dumps(main(json.loads(request_path.read_text(encoding="utf-8")))), encoding="utf-8")
