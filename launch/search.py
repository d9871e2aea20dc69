"""Finds the nearest documents of queries in a vector store.

  jaxembed search --store=corpus.vectors --model=PATH --queries=queries.jsonl \\
      --out=found.jsonl [--k=10]
  jaxembed search --store=int8.vectors --query_store=queries.vectors \\
      --rescore=float.vectors --out=found.jsonl

Stores come from launch.encode. One of int8 or binary is searched in integers, and the
best are scored again with its own rows or with those of --rescore; --exact scores every
row as floats instead. A line of --out is {"query": id, "ids": [...], "scores": [...]}.
"""

import json

from absl import flags

from jaxembed import embedder, search, sharding, store
from jaxembed.data import text_rows
from jaxembed.files import place, whole_file
from jaxembed.similarity import NAMES, unit

from . import cli, step_flag

_STEP = step_flag.define()
_STORE = flags.DEFINE_string('store', None, 'Vectors to search: a store, or .npy.')
_MODEL = flags.DEFINE_string('model', None, 'Model that encodes --queries.')
_QUERIES = flags.DEFINE_string('queries', None, '.txt or .jsonl of queries.')
_FIELD = flags.DEFINE_string('field', 'text', "The field of a query's text.")
_QUERY_STORE = flags.DEFINE_string('query_store', None, 'Vectors of queries, instead.')
_K = flags.DEFINE_integer('k', 10, 'Documents of each query.')
_SIMILARITY = flags.DEFINE_enum('similarity', None, NAMES, "Default: the model's, or "
                                'dot.')
_EXACT = flags.DEFINE_bool('exact', False, 'No integers.')
_OVERSAMPLE = flags.DEFINE_integer('oversample', 4, 'Candidates found in integers, in '
                                   'units of --k.')
_RESCORE = flags.DEFINE_string('rescore', None, 'Store of the same rows in floats.')
_MEMORY = flags.DEFINE_float('memory_gib', 1.0, 'For blocks of vectors and scores.')
_OUT = flags.DEFINE_string('out', None, '.jsonl file to write.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --out.')
flags.mark_flags_as_required(['store', 'out'])


def main():
  out = cli.written(_OUT)
  whole_file.refuse_existing(out, _OVERWRITE.value,
                             'pass --overwrite or another --out')
  mesh = sharding.mesh_of_several()
  found = store.open(cli.given(_STORE))
  ids, queries, similarity = _asked(found, mesh)
  settings = {'mesh': mesh, 'memory': int(_MEMORY.value * 2**30)}
  if found.dtype in ('int8', 'binary') and not _EXACT.value:
    if similarity == 'cosine':
      queries = unit(queries)
    rescore = store.open(_RESCORE.value) if _RESCORE.value else None
    scores, rows = search.quantized_top_k(
        queries, found, _K.value, oversample=_OVERSAMPLE.value, rescore=rescore,
        **settings)
  else:
    scores, rows = search.top_k(queries, found, _K.value, similarity=similarity,
                                **settings)
  with whole_file.opened(out) as file:
    for query, row, score in zip(ids, rows, scores):
      file.write(json.dumps({'query': query, 'ids': found.ids_of(row),
                             'scores': score.tolist()}) + '\n')
  print(f'{out}: the {_K.value} nearest of {len(found)} documents for {len(ids)} '
        'queries')


def _asked(found: store.VectorStore, mesh):
  """(ids, vectors, similarity) of the queries."""
  if bool(_QUERY_STORE.value) == bool(_QUERIES.value and _MODEL.value):
    raise ValueError('give --model and --queries, or --query_store')
  if _QUERY_STORE.value:
    queries = store.open(_QUERY_STORE.value)
    return queries.ids, queries[:], _SIMILARITY.value or 'dot'
  model = embedder.Embedder.load(cli.given(_MODEL), mesh=mesh, step=_STEP())
  made_by = found.work.get('model')
  if made_by and made_by != model.vector_fingerprint():
    raise ValueError(f'{found.path} was made by another model than {_MODEL.value}; '
                     'encode the queries with the model that made it')
  source = place.fetched(cli.given(_QUERIES))
  rows = list(text_rows.rows(source, _FIELD.value,
                             id_field=text_rows.id_field(source, None)))
  vectors = model.encode_query([row.text for row in rows], truncate_dim=found.width)
  return ([row.id or str(n) for n, row in enumerate(rows)], vectors,
          _SIMILARITY.value or model.similarity_fn_name)


if __name__ == '__main__':
  cli.run(main)
