"""NV-Embed-v2's recipe: Mistral-7B made bidirectional, latent attention, two stages.

Lee et al. 2024 (arXiv 2405.17428v3), appendix C. LoRA 16/32/0.1 on every
projection, the latent head trained in full; stage 1 on retrieval sets with
in-batch and 7 mined hard negatives, stage 2 on a blend of all tasks with own
negatives only. Not published, and chosen here: the temperature (0.02), Adam's
betas, clipping. Expected as data/nv_embed/NAME.jsonl, with an "instruction" in each
row: mined rows ({"query", "positive", "negatives"}) of the retrieval and STS sets,
texts and their labels ({"text", "label"}) of the others.
"""

from jaxembed import config

PROMPT = 'Instruct: {instruction}\nQuery: '
# name -> listed samples, in thousands (table 12).
RETRIEVAL = {
    'msmarco': 500, 'paq': 500, 'nli': 270, 'hotpotqa': 170, 'fever': 140,
    'nq': 100, 'squad': 87, 'stackexchange': 80, 'hover': 17, 'arguana': 16,
    'fiqa': 5, 'nfcorpus': 3.6, 'bioasq': 2.4, 'miracl': 2, 'mr_tydi': 2,
    'scifact': 0.9, 'synthetic': 120}
STS = {'sts12': 1.8, 'sts22': 0.3, 'stsb': 2.7}
# Compared with texts of the same and of other labels (table 5) ...
EXAMPLES = {
    'emotion': 16, 'mtop_intent': 15, 'mtop_domain': 15, 'massive_intent': 11,
    'massive_scenario': 11, 'arxiv': 100, 'biorxiv': 30, 'medrxiv': 4.6,
    'reddit': 90, 'stackexchange_clustering': 90, 'twenty_newsgroups': 1.7}
# ... and with the labels' own texts.
LABELS = {
    'amazon_counterfactual': 6, 'amazon_polarity': 20, 'amazon_reviews': 40,
    'banking77': 10, 'imdb': 24, 'toxic_conversations': 50, 'tweet_sentiment': 27}


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
  own = {'in_batch': False}
  both_sides = own | {'passage_prompt': PROMPT}
  return config.Config(
      name='nv_embed_v2',
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
                 _sources(RETRIEVAL, **own) + _sources(STS, **both_sides)
                 + _sources(EXAMPLES, rows='same_label', **both_sides)
                 + _sources(LABELS, rows='label_text', **own))])
