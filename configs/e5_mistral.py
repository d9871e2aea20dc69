"""E5-Mistral's recipe: Mistral-7B as it is, causal, last token, one short stage.

Wang et al. 2024 (arXiv 2401.00368). From the paper: LoRA of rank 16, learning rate
1e-4, weight decay 0.1, batches of 2048 with one hard negative, about 1000 steps,
temperature 0.02, 512 tokens; instructions on queries alone, EOS behind every text
and its state as the vector. Chosen here: alpha 32, 100 steps of warm-up, the shares
of the sets, batches blended. Expected as data/e5/NAME.jsonl: rows of "query",
"positive", "negative" and "instruction".
"""

from jaxembed import config

# name -> samples, in thousands: the synthetic ones as published, the others rounded.
SETS = {
    'synthetic': 500, 'msmarco': 500, 'nli': 275, 'fever': 110, 'squad': 87,
    'hotpotqa': 90, 'trivia_qa': 60, 'nq': 60, 'quora': 60, 'dureader': 86,
    'miracl': 32, 't2ranking': 50, 'mr_tydi': 48, 'eli5': 32}


def get_config() -> config.Config:
  sources = [config.SourceConfig(
      name=name, path=f'data/e5/{name}.jsonl', weight=float(size),
      query_prompt='Instruct: {instruction}\nQuery: ') for name, size in SETS.items()]
  return config.Config(
      name='e5_mistral',
      model=config.ModelSpec(
          source='mistralai/Mistral-7B-v0.1', attention='causal', pooling='last',
          max_length=512, dtype='bfloat16', remat='full', append_token='</s>',
          lora_rank=16, lora_alpha=32.0),
      mesh=config.MeshConfig(data=1, fsdp=-1),
      stages=[config.StageConfig(
          name='contrastive', steps=1000, token_budget=16 * 512,
          data=config.DataConfig(
              sources=sources, batch_size=2048, num_negatives=1,
              query_lengths=(512,), passage_lengths=(512,)),
          loss=config.LossConfig(temperature=0.02),
          optim=config.OptimConfig(
              peak_lr=1e-4, warmup_steps=100, schedule='linear', weight_decay=0.1))])
