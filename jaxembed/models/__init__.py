"""Models in flax: backbone, LoRA adapters, presets, and the encoder around them."""
