"""Cards: what the hub reads of them, and what is pushed there."""

import dataclasses
import json

import pytest
import yaml

from jaxembed import bundle, config
from jaxembed.convert import card, exporters, model_card, push
from jaxembed.files import front_matter
from jaxembed.models import presets
from tests.helpers import launcher

REPORT = {'versions': {'sentence_transformers': '6', 'jax': '1', 'transformers': '5'},
          'max_difference': 1e-7, 'tokens': 9, 'dims': 8, 'told': 'the same'}
RESULT = {'task': 'sts', 'data': 'stsb/test.tsv', 'split': 'test',
          'scores': {'spearman': 0.8203, 'pearson': None}}


@pytest.fixture
def model(tmp_path):
  (tmp_path / 'base').mkdir()
  (tmp_path / 'base/README.md').write_text(
      '---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: org/base\n'
      'widget: {a: 1}\n---\n# Base\n')
  run = tmp_path / 'run'
  (run / 'model').mkdir(parents=True)
  (run / 'model/model_config.json').write_text('{}')
  (run / 'manifest.json').write_text(json.dumps({
      'config': {'stages': [{'steps': 7, 'loss': {'name': 'info_nce'}, 'optim': {
          'peak_lr': 1e-4}, 'data': {'batch_size': 8, 'query_lengths': [16],
                                     'passage_lengths': [32]}}]},
      'data': {'stages[0]/nli': {'rows': 4145, 'sha256': 'x'}}, 'starts': []}))
  cfg = config.ModelConfig(backbone=presets.tiny('bert'))
  return bundle.Bundle(
      params={}, cfg=cfg, source=str(run), step=7, prompts={'query': 'ask: '},
      card=front_matter.read(tmp_path / 'base'))


def _written(model, tmp_path, format='sentence-transformers', facts=card.NOTHING,
             name='mine'):
  card.write(tmp_path, name, format, model, REPORT, facts)
  text = (tmp_path / 'README.md').read_text()
  _, head, body = text.split('---\n', 2)
  return yaml.safe_load(head), body


def test_a_card_tells_base_licence_data_and_scores(model, tmp_path):
  head, body = _written(model, tmp_path, facts=card.Facts(
      results=(RESULT,), notes=('A note.',)))
  assert (head['license'], head['language'], head['base_model']) == (
      'apache-2.0', ['en', 'de'], 'org/base')
  assert 'widget' not in head
  for said in ('A note.', '| 0 | 7 | info_nce | 0.0001 | 8 | 16 / 32 |',
               '| nli (stage 0) | 4145 |',
               '| test.tsv (test) | sts | spearman | 0.8203 |',
               "encode_query(['what is asked'])", 'AutoModel', 'Embedder.load'):
    assert said in body, said
  # The hub's own reader of model-index.
  data = pytest.importorskip('huggingface_hub').ModelCard.load(
      tmp_path / 'README.md').data
  (entry,) = data.eval_results
  assert (entry.task_type, entry.metric_type, entry.metric_value) == (
      'semantic-similarity', 'spearman', 0.8203)
  head, _ = _written(model, tmp_path, facts=card.Facts(
      license='mit', languages=('fr',)))
  assert (head['license'], head['language']) == ('mit', ['fr'])


@pytest.mark.parametrize('name', ['mine', 'it\'s "mine" \\'])
def test_examples_in_a_card_are_python(model, tmp_path, name):
  for format in exporters.FORMATS:
    _, body = _written(model, tmp_path, format, name=name)
    assert f'(`{model_card.REPORT}`)' in body
    blocks = body.split('```python\n')[1:]
    assert blocks
    for block in blocks:
      compile(block.split('```')[0], format, 'exec')


def test_no_licence_is_told(model, tmp_path):
  bare = dataclasses.replace(model, card={'base_model': '/home/me/model'})
  with pytest.warns(UserWarning, match='--license'):
    head, _ = _written(bare, tmp_path, facts=card.Facts())
  assert 'license' not in head and 'base_model' not in head


@pytest.mark.parametrize('text', [
    '', '# no header', '---\nlicense: [\n---\n', '---\n- 1\n---\n',
    '---\nlicense: 3\n---\n',
    '---\nlicense: !!python/object/apply:os.system [true]\n---\n'])
def test_a_header_that_says_nothing_is_none(tmp_path, text):
  (tmp_path / 'README.md').write_text(text)
  assert front_matter.read(tmp_path) == {}


def test_results_are_those_of_evaluate(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps(RESULT))
  (tmp_path / 'b.json').write_text('{"a": 1}')
  assert card.read_results([str(tmp_path / 'a.json')]) == (RESULT,)
  with pytest.raises(ValueError, match='no result of jaxembed evaluate'):
    card.read_results([str(tmp_path / 'b.json')])


class Hub:
  """What stands in for the hub's API."""

  def __init__(self, files=()):
    self.files, self.calls = list(files), []

  def create_repo(self, repo, **options):
    self.calls.append(('create', repo, options))

  def list_repo_files(self, repo):
    return ['.gitattributes', *self.files]

  def upload_folder(self, **options):
    self.calls.append(('upload', options['repo_id'], options['folder_path']))


def test_a_push_is_one_commit_and_replaces_nothing_unasked(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'sub/a').write_text('12')
  assert push.files(tmp_path) == [('sub/a', 2)]
  hub = Hub()
  address = push.push(tmp_path, 'org/name', token='t', private=True, api=hub)
  assert address == 'https://huggingface.co/org/name'
  assert hub.calls == [('create', 'org/name', {'private': True, 'exist_ok': True}),
                       ('upload', 'org/name', str(tmp_path))]
  full = Hub(['model.safetensors'])
  with pytest.raises(FileExistsError, match='holds model.safetensors'):
    push.push(tmp_path, 'org/name', token='t', api=full)
  assert [c[0] for c in full.calls] == ['create']
  push.push(tmp_path, 'org/name', token='t', overwrite=True, api=full)
  hub.upload_folder = lambda **_: 1 / 0
  with pytest.raises(OSError, match='ZeroDivisionError.*hf upload'):
    push.push(tmp_path, 'org/name', token='t', api=hub)
  for name in ('name', 'a/b/c', '/x', 'a/b.git', 'a/' + 'b' * 100, 'a/-b', 'a/b..c'):
    with pytest.raises(ValueError, match='no name on the hub'):
      push.check(name, 't')


def test_without_a_token_nothing_is_done(tmp_path, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, 'get_token', lambda: None)
  ended = launcher.run('convert', '--source=m', f'--target={tmp_path}/t',
                       '--push=org/name')
  assert 'hf auth login' in ended.error and ended.code == 1


def test_pooling_that_needs_code_is_said_to():
  cfg = config.ModelConfig(backbone=presets.tiny('mistral'),
                           pooling=config.PoolingConfig(kind='latent_attention'))
  text = model_card.render('m', cfg, {}, True, REPORT)
  assert 'none has this pooling' in text and 'AutoModel' not in text
