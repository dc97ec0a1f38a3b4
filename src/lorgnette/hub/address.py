"""Recognizes the address of a data set on a hub. Imports nothing, since every data path is checked."""

HUBS = ("hf", "modelscope")


def is_hub_address(text: str) -> bool:
    """Whether this is an address on a hub rather than a path."""
    return text.partition(":")[0] in HUBS and ":" in text
