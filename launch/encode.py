"""Encodes a file of texts into vectors on disk; the same command resumes.

  jaxembed encode --model=PATH --input=texts.jsonl --output=vectors.npy \\
      [--field=text] [--prompt_name=document | --prompt='query: ']
  jaxembed encode --model=PATH --input=corpus.jsonl --output=corpus.vectors \\
      [--dtype=int8] [--id_field=_id] [--part_of=0/4]

An --output that ends in .npy is one matrix; any other is the folder of a vector store,
with ids, which `jaxembed search` and `jaxembed mine` read. Several hosts fill one
store: each gets the same command with its own --part_of.
"""

from absl import flags
import jax

from jaxembed import corpus, embedder, sharding, store

from . import cli, length_flags, step_flag

_STEP = step_flag.define()
_LENGTH = length_flags.define()
_MODEL = flags.DEFINE_string('model', None, 'Folder or hub id of the model.')
_INPUT = flags.DEFINE_string('input', None, 'A text per line (.txt), or JSON '
                             'objects per line (.jsonl); .gz works.')
_OUTPUT = flags.DEFINE_string('output', None, '.npy file to make, or folder of a '
                              'vector store.')
_FIELD = flags.DEFINE_string('field', 'text', 'The JSON field that is the text.')
_PROMPT = flags.DEFINE_string('prompt', None, 'Put in front of every text.')
_PROMPT_NAME = flags.DEFINE_string(
    'prompt_name', None, "The model's prompt to put in front, by name: document for a "
    "corpus, query for queries. Without one, the model's default.")
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts per step, all devices.')
_DIM = flags.DEFINE_integer('truncate_dim', None, 'Keep the first so many dimensions.')
_NORMALIZE = flags.DEFINE_bool('normalize', False, "To length 1, whatever the model's "
                               'modules say.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', store.DTYPES, 'On disk; .npy files '
                           'are float32 or float16.')
_IDS = flags.DEFINE_string('id_field', None, 'The JSON field that is the id, for a '
                           'store. Default: _id or id, where rows have one.')
_PART = flags.DEFINE_string('part_of', None, 'I/N: this process is number I, from 0, '
                            'of N that fill a store together.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --output.')


def main():
  # Hosts encode shards of their own, each by itself.
  mesh = sharding.mesh_of_several(jax.local_devices())
  model = embedder.Embedder.load(cli.given(_MODEL), mesh=mesh, step=_STEP(),
                                 length=_LENGTH.method())
  _LENGTH.apply(model)
  vectors = corpus.encode_file(
      model, cli.given(_INPUT), cli.given(_OUTPUT), field=_FIELD.value,
      prompt=_PROMPT.value, prompt_name=_PROMPT_NAME.value,
      batch_size=_BATCH.value, normalize=_NORMALIZE.value, truncate_dim=_DIM.value,
      dtype=_DTYPE.value, overwrite=_OVERWRITE.value, id_field=_IDS.value,
      host=_host())
  if vectors is None:
    print(f'{_OUTPUT.value}: this part is done; shards of others are missing')
    return
  prompt = model.prompt_text(_PROMPT_NAME.value, _PROMPT.value)
  print(f'{_OUTPUT.value}: {vectors.shape[0]} vectors of {vectors.shape[1]}, '
        f'{vectors.dtype}, prompt {prompt!r}')


def _host() -> tuple[int, int]:
  """(which, of how many) this process is."""
  if _PART.value is None:
    return jax.process_index(), jax.process_count()
  index, slash, count = _PART.value.partition('/')
  if not (slash and index.isdecimal() and count.isdecimal()):
    raise ValueError(f'--part_of is {_PART.value!r}; give for example 0/4')
  return int(index), int(count)


if __name__ == '__main__':
  flags.mark_flags_as_required(['model', 'input', 'output'])
  cli.run(main)
