"""Image features: computed once per image, kept on the device, on the host and on disk."""
