"""Kernels: one folder per operation, with a reference and device implementations."""
