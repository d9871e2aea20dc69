"""Encodes a file of texts into a .npy matrix; the same command resumes.

  python -m launch.encode --model=PATH --input=texts.jsonl --output=vectors.npy \\
      [--field=text] [--prompt_name=document | --prompt='query: ']
"""

from absl import flags
import jax

from jaxembed import corpus, embedder, sharding

from . import cli, step_flag

_STEP = step_flag.define()
_MODEL = flags.DEFINE_string('model', None, 'Folder or hub id of the model.')
_INPUT = flags.DEFINE_string('input', None, 'A text per line (.txt), or JSON '
                             'objects per line (.jsonl); .gz works.')
_OUTPUT = flags.DEFINE_string('output', None, '.npy file to make.')
_FIELD = flags.DEFINE_string('field', 'text', 'The JSON field that is the text.')
_PROMPT = flags.DEFINE_string('prompt', None, 'Put in front of every text.')
_PROMPT_NAME = flags.DEFINE_string(
    'prompt_name', None, "The model's prompt to put in front, by name: document for a "
    "corpus, query for queries. Without one, the model's default.")
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Texts per step, all devices.')
_DIM = flags.DEFINE_integer('truncate_dim', None, 'Keep the first so many dimensions.')
_NORMALIZE = flags.DEFINE_bool('normalize', False, "To length 1, whatever the model's "
                               'modules say.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'float16'], 'On disk.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace --output.')


def main():
  mesh = sharding.make_mesh() if jax.device_count() > 1 else None
  model = embedder.Embedder.load(_MODEL.value, mesh=mesh, step=_STEP())
  vectors = corpus.encode_file(
      model, _INPUT.value, _OUTPUT.value, field=_FIELD.value, prompt=_PROMPT.value,
      prompt_name=_PROMPT_NAME.value,
      batch_size=_BATCH.value, normalize=_NORMALIZE.value, truncate_dim=_DIM.value,
      dtype=_DTYPE.value, overwrite=_OVERWRITE.value)
  prompt = model.prompt_text(_PROMPT_NAME.value, _PROMPT.value)
  print(f'{_OUTPUT.value}: {vectors.shape[0]} vectors of {vectors.shape[1]}, '
        f'{vectors.dtype}, prompt {prompt!r}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['model', 'input', 'output'])
  cli.run(main)
