"""Tiny models, runs and batches that tests of several rooms share."""
