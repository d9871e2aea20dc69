"""Train, evaluate, run and convert text-embedding models in JAX."""
