"""Scores of embedding models on tasks with known answers."""
