"""The libraries that all machines of a run must have in the same version."""

LIBRARIES = (
    *("torch", "ray", "numpy", "open_clip_torch", "transformers", "peft", "safetensors", "numba"),
    *("scipy", "pillow"),
)
"""Results depend on them, or messages do."""
