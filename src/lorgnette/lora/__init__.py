"""LoRA parameters, and the adapter's files in PEFT's format."""
