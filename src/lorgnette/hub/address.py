"""What an address on a hub looks like: asked of every data set, most of which lie on no hub."""

HUBS = ("hf", "modelscope")


def is_hub_address(text: str) -> bool:
    """Is this an address on a hub, rather than a path?"""
    return text.partition(":")[0] in HUBS and ":" in text
