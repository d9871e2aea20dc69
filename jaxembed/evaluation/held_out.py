"""Held-out training pairs, scored as retrieval while a model trains."""

from collections.abc import Callable

from jaxembed import config, types
from jaxembed.data import sources, tokenise
from jaxembed.embedder import Embedder
from jaxembed.evaluation import geometry, metrics, retrieval

CUTOFFS = (1, 10)


def scorer(cfg: config.EvalConfig) -> Callable[..., dict[str, float]] | None:
  """score(params, model, tokenizer, mesh) -> 'eval/...' by name.

  Every query ranks the positives of all held-out rows; equal texts are one
  document. None without a `cfg.source`. The rows are read here, once.
  """
  if cfg.source is None:
    return None
  rows = sources.load(cfg.source)
  rows = [rows[i] for i in range(min(len(rows), cfg.limit or len(rows)))]
  corpus = {text: str(i) for i, text in enumerate(
      dict.fromkeys(p.text for row in rows for p in row.positives))}
  queries = {str(i): row.query for i, row in enumerate(rows)}
  qrels = {str(i): {corpus[p.text]: 1 for p in row.positives}
           for i, row in enumerate(rows)}

  def score(params: types.Params, model: config.ModelConfig,
            tokenizer: tokenise.Tokenizer, mesh) -> dict[str, float]:
    embedder = Embedder(params, model, tokenizer, mesh=mesh)
    quiet = {'batch_size': cfg.batch_size, 'show_progress_bar': False}
    vectors = embedder.encode(
        list(queries.values()), prompt=cfg.source.query_prompt, **quiet)
    documents = embedder.encode(
        list(corpus), prompt=cfg.source.passage_prompt, **quiet)
    found = retrieval.rank(list(queries), vectors, list(corpus.values()), documents,
                           depth=min(max(CUTOFFS), len(corpus)), mesh=mesh)
    scores = metrics.retrieval(qrels, found, CUTOFFS)
    answers = documents[[int(next(iter(gains))) for gains in qrels.values()]]
    health = {'alignment': geometry.alignment(vectors, answers),
              'uniformity': geometry.uniformity(documents),
              'effective_rank': geometry.effective_rank(documents)}
    kept = ('ndcg@10', 'recall@1', 'recall@10', 'mrr@10')
    return {f'eval/{name}': value for name, value in
            ({name: scores[name] for name in kept} | health).items()}

  return score
