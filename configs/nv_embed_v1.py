"""NV-Embed-v1's recipe: as v2's, with less data and labels as passages.

Lee et al. 2024 (arXiv 2405.17428). From the paper: LoRA 16/32/0.1, batches of 128
with 7 hard negatives, 20k + 18k steps at 2e-5 and 1.5e-5, weight decay 0.03, 512
tokens; classes and clusters are compared with the texts of their labels; scored
pairs of 4 or more serve both ways, with negatives that BM25 finds and that are not
known to match better than 2.5. The warm-up is that of the paper's third version.
Not published, and chosen here: the temperature (0.02), Adam's betas, clipping;
weights are the sizes listed for v2. Expected as data/nv_embed/NAME.jsonl, with an
"instruction" in each row: mined rows ({"query", "positive", "negatives"}), scored
pairs ({"sentence1", "sentence2", "score"}), texts and their labels.
"""

from jaxembed import config

PROMPT = 'Instruct: {instruction}\nQuery: '
# name -> listed samples, in thousands.
RETRIEVAL = {
    'msmarco': 500, 'paq': 500, 'nli': 270, 'hotpotqa': 170, 'fever': 140,
    'nq': 100, 'squad': 87, 'stackexchange': 80, 'arguana': 16, 'fiqa': 5,
    'bioasq': 2.4}
SCORED = {'sts12': 1.8, 'sts22': 0.3, 'stsb': 2.7}
LABELS = {
    'amazon_counterfactual': 6, 'amazon_polarity': 20, 'amazon_reviews': 40,
    'banking77': 10, 'emotion': 16, 'imdb': 24, 'mtop_intent': 15,
    'toxic_conversations': 50, 'tweet_sentiment': 27, 'arxiv': 100, 'biorxiv': 30,
    'medrxiv': 4.6, 'reddit': 90, 'stackexchange_clustering': 90,
    'twenty_newsgroups': 1.7}


def _sources(sets, **rules):
  return [config.SourceConfig(
      name=name, path=f'data/nv_embed/{name}.jsonl', weight=float(size),
      query_prompt=PROMPT, **rules) for name, size in sets.items()]


def _stage(name, steps, peak_lr, sources):
  return config.StageConfig(
      name=name, steps=steps, token_budget=48 * 512,
      data=config.DataConfig(
          sources=sources, batch_size=128, num_negatives=7,
          query_lengths=(512,), passage_lengths=(512,)),
      loss=config.LossConfig(temperature=0.02),
      optim=config.OptimConfig(
          peak_lr=peak_lr, warmup_steps=50, schedule='linear', weight_decay=0.03))


def get_config() -> config.Config:
  scored = {'rows': 'bm25', 'min_score': 4.0, 'max_negative_score': 2.5,
            'symmetric': True, 'passage_prompt': PROMPT}
  return config.Config(
      name='nv_embed_v1',
      model=config.ModelSpec(
          source='mistralai/Mistral-7B-v0.1', attention='bidirectional',
          pooling='latent_attention', latents=512, heads=8, head_dim=4096,
          ff_mult=4, max_length=512, dtype='bfloat16', remat='full',
          prompt_pooling='nv_embed', eos_text='</s>',
          lora_rank=16, lora_alpha=32.0, lora_dropout=0.1),
      # tensor 2: the 128 queries of a batch split no more than 128 ways, and the
      # smallest pod that holds the recipe, v5e:16x16, has 256 chips.
      mesh=config.MeshConfig(data=1, fsdp=-1, tensor=2),
      stages=[
          _stage('retrieval', 20_000, 2e-5, _sources(RETRIEVAL)),
          _stage('blend', 18_000, 1.5e-5,
                 _sources(RETRIEVAL, in_batch=False)
                 + _sources(SCORED, in_batch=False, **scored)
                 + _sources(LABELS, in_batch=False, rows='label_text'))])
