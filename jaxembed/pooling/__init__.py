"""Pooling of token states to one vector per text."""
