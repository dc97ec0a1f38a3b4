"""Names of Qwen2-VL's weights in the hub's files. Needs no torch."""


def convert_weight_name(name: str) -> str:
    """transformers' current name. Until 4.52 the decoder was at `model` and the vision tower at `visual`; the hub's
    files still use these names."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return name.replace("model.", "model.language_model.", 1)
    return name
