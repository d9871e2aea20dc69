"""Conversion of models: Hugging Face in; sentence-transformers, NV-Embed, PEFT out."""
