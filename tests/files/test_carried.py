"""What travels from a model folder is a closed list, without code and foreign paths."""

import json

import pytest

from jaxembed.files import carried


@pytest.fixture
def source(tmp_path):
  """A folder whose every file says SECRET unless it is one that travels."""
  source = tmp_path / 'source'
  (source / '1_Pooling').mkdir(parents=True)
  (source / 'sub').mkdir()
  for name in ('.env', 'id_rsa', 'credentials.json', 'token.txt', 'key.model',
               'optimizer.pt', 'pytorch_model.bin', 'modeling_x.py', 'README.md',
               'model.safetensors.index.json', 'sub/config.json', '1_Pooling/key.pem'):
    (source / name).write_text('"SECRET"')
  (tmp_path / 'outside').write_text('{"key": "SECRET"}')
  for name in ('vocab.txt', 'added_tokens.json', 'special_tokens_map.json'):
    (source / name).symlink_to(tmp_path / 'outside')
  (source / '2_Dense').symlink_to(tmp_path)
  (tmp_path / 'config.json').write_text('{"key": "SECRET"}')
  (source / 'config.json').write_text(json.dumps({
      'model_type': 'bert', 'hidden_size': 8,
      'auto_map': {'AutoModel': 'modeling_x.SECRET'},
      'attn_implementation': 'SECRET/kernel', 'text_config': {'auto_map': 'SECRET'}}))
  (source / 'tokenizer_config.json').write_text(json.dumps({
      'pad_token': '[PAD]', 'tokenizer_file': '/SECRET',
      'auto_map': {'AutoTokenizer': [None, 'a/b--c.SECRET']}}))
  (source / 'tokenizer.json').write_text('{ "as": "it is" }')
  (source / '1_Pooling' / 'config.json').write_text('{"pooling_mode_cls_token": true}')
  (source / 'modules.json').write_text('[{"path": "", "type": "SECRET.Transformer"}]')
  return source


def test_only_the_list_travels(source, tmp_path):
  with pytest.warns(UserWarning, match='is not copied'):
    carried.copy_settings(source, tmp_path / 'target')
  target = tmp_path / 'target'
  files = {str(p.relative_to(target)): p.read_text() for p in target.rglob('*')
           if p.is_file()}
  assert sorted(files) == ['1_Pooling/config.json', 'config.json', 'tokenizer.json',
                           'tokenizer_config.json']
  assert not any('SECRET' in text for text in files.values())
  assert files['tokenizer.json'] == '{ "as": "it is" }'
  assert json.loads(files['config.json']) == {
      'model_type': 'bert', 'hidden_size': 8, 'text_config': {}}


def test_modules_of_sentence_transformers_travel_as_they_are(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  text = '[{"path":"", "type": "sentence_transformers.models.Transformer"}]\n'
  (tmp_path / 'a' / 'modules.json').write_text(text)
  carried.copy_settings(tmp_path / 'a', tmp_path / 'b')
  assert (tmp_path / 'b' / 'modules.json').read_text() == text
