"""Qwen2.5-VL's text decoder in the fast engine: that of Qwen2-VL."""

from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderLayer

__all__ = ["Decoder", "DecoderLayer"]
