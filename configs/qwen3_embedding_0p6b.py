"""Qwen3-Embedding-0.6B's recipe: a causal base, last token, weak pairs, then labels.

Zhang et al. 2025 (arXiv 2506.05176). From the paper and its model card: the base
and its causal mask, EOS behind every text and its state as the vector, instructions
on queries ('Query:' without a space), the loss with all four kinds of negatives and
the margin of 0.1 that drops false ones, Matryoshka widths, a stage of about 150M
synthetic weak pairs and one of about 7M labelled and 12M synthetic pairs. Not
published, and chosen here: batch sizes, steps, learning rates, temperature (0.02),
lengths, the number of hard negatives, which widths. The third stage of the paper,
merging checkpoints, is not part of a training run. Expected under data/qwen3:
weak/*.jsonl (query, positive, instruction) and labelled/*.jsonl (negatives, too).
"""

from jaxembed import config

PROMPT = 'Instruct: {instruction}\nQuery:'


def _stage(name, steps, peak_lr, batch_size, negatives):
  return config.StageConfig(
      name=name, steps=steps, token_budget=64 * 512,
      data=config.DataConfig(
          sources=[config.SourceConfig(
              name=name, path=f'data/qwen3/{name}/*.jsonl', query_prompt=PROMPT)],
          batch_size=batch_size, num_negatives=negatives,
          query_lengths=(64, 512), passage_lengths=(128, 512)),
      loss=config.LossConfig(
          temperature=0.02, terms=('qd', 'qq', 'dd', 'dq'), margin=0.1,
          widths=(1024, 512, 256, 128, 64, 32)),
      optim=config.OptimConfig(
          peak_lr=peak_lr, warmup_steps=500, schedule='cosine', weight_decay=0.01))


def get_config() -> config.Config:
  return config.Config(
      name='qwen3_embedding_0p6b',
      model=config.ModelSpec(
          source='Qwen/Qwen3-0.6B-Base', attention='causal', pooling='last',
          max_length=512, dtype='bfloat16', remat='full', append_token='<|endoftext|>'),
      mesh=config.MeshConfig(data=1, fsdp=-1),
      stages=[_stage('weak', 18_000, 5e-5, 8192, 0),
              _stage('labelled', 10_000, 1e-5, 2048, 7)])
