"""BGE-base's recipe: a BERT, its first token, huge batches, then hard negatives.

Xiao et al. 2023 (arXiv 2309.07597) and the published training notes. From these:
batches of 32,768 with in-batch negatives, AdamW at 1e-5, temperature 0.01; an
instruction in front of short queries for passages, none in front of passages;
cls pooling; fine-tuning on labelled triples with mined negatives. Chosen here:
BERT-base where they start from their own RetroMAE pre-training, steps, warm-up, and
the second stage's batch (512 x 8), temperature (0.02) and lengths. Expected under
data/bge: pairs/*.jsonl (query, positive) and triples/*.jsonl (negatives, too).
"""

from jaxembed import config

INSTRUCTION = 'Represent this sentence for searching relevant passages: '


def _stage(name, steps, batch_size, negatives, temperature, lengths, prompt):
  return config.StageConfig(
      name=name, steps=steps, token_budget=512 * lengths[1],
      data=config.DataConfig(
          sources=[config.SourceConfig(
              name=name, path=f'data/bge/{name}/*.jsonl', query_prompt=prompt)],
          batch_size=batch_size, num_negatives=negatives,
          query_lengths=lengths[:1], passage_lengths=lengths[1:]),
      loss=config.LossConfig(temperature=temperature),
      optim=config.OptimConfig(peak_lr=1e-5, warmup_steps=500, schedule='linear'))


def get_config() -> config.Config:
  return config.Config(
      name='bge_base',
      model=config.ModelSpec(
          source='google-bert/bert-base-uncased', pooling='cls', max_length=512,
          dtype='bfloat16'),
      mesh=config.MeshConfig(data=-1),
      stages=[_stage('pairs', 10_000, 32_768, 0, 0.01, (64, 256), ''),
              _stage('triples', 5_000, 512, 7, 0.02, (64, 256), INSTRUCTION)])
