"""The loop over a language model, against a server on this machine."""

import http.server
import json
import threading

import numpy as np
import pytest

from jaxembed.config import SourceConfig
from jaxembed.mining import errors, inputs, language_model, miner, synthetic
from tests.helpers.fake_embedder import Fake

WIDTH = 24


def _vector(text):
  """Texts of one topic ('t7 ...') lie together; 'far' ones lie elsewhere."""
  rng = np.random.default_rng([ord(c) for c in text])
  topic = np.random.default_rng([ord(c) for c in text.split()[0]]).normal(size=WIDTH)
  return topic + 0.3 * rng.normal(size=WIDTH)


@pytest.fixture
def run(tmp_path):
  """20 rows; the answers of queries 3 and 8 are of another topic."""
  rows = [{'query': f't{i} question', 'pos': [
      f'{"elsewhere" if i in (3, 8) else f"t{i}"} answer {i}'],
      'neg': [f't{i} chatter']} for i in range(20)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  texts = inputs.collect(tmp_path / 'run', SourceConfig(
      name='rows', path=str(tmp_path / 'rows.jsonl')))
  fake = Fake(_vector, WIDTH)
  return texts, miner.mine(texts, {'fake': lambda: fake}, depth=10), fake


@pytest.fixture
def server():
  """An endpoint whose `answers` are called with each request's body."""
  seen = []

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      seen.append((self.path, self.headers.get('Authorization'), body))
      status, text = server.answers(len(seen), body)
      data = text if isinstance(text, bytes) else json.dumps(
          {'choices': [{'message': {'role': 'assistant', 'content': text}}]}).encode()
      self.send_response(status)
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  server.seen, server.url = seen, f'http://127.0.0.1:{server.server_port}/v1'
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


def test_errors_are_the_queries_whose_answer_is_not_first(run):
  texts, table, _ = run
  unit = lambda text: _vector(text) / np.linalg.norm(_vector(text))
  wanted = []
  for i in range(20):
    query, row = unit(f't{i} question'), texts.documents
    scores = {k: query @ unit(row[k][0]['text']) for k in range(len(row))}
    own = max(scores[k] for k in texts.positives_of(i))
    if sum(s > own for k, s in scores.items() if k not in texts.positives_of(i)):
      wanted.append(i)
  found = list(errors.find(texts, table))
  assert [e.query for e in found] == wanted and {3, 8} <= set(wanted)
  assert all(table.rows[e.query][0] == e.wrong[0] for e in found)


def test_requests_go_out_and_consistent_pairs_come_back(run, server, tmp_path):
  texts, table, fake = run
  requests, answers = tmp_path / 'requests.jsonl', tmp_path / 'answers.jsonl'
  count = errors.export(texts, table, requests, model='m', pairs=2)
  asked = [json.loads(line) for line in requests.open()]
  assert len(asked) == count
  (third,) = [r for r in asked if r['custom_id'] == 'query-3']
  shown = third['body']['messages'][1]['content']
  assert 't3 question' in shown and 'elsewhere answer 3' in shown and (
      't3 chatter' in shown) and 'Write 2 new' in shown

  good = {'query': 'n1 asks', 'positive': 'n1 tells', 'negative': 'n2 tells'}
  lost = {'query': 'n3 asks', 'positive': 'far away', 'negative': ''}
  close = {'query': 'n4 asks', 'positive': 'n4 tells', 'negative': 'n4 asks!!'}
  old = {'query': 'T3 question?', 'positive': 'x'}

  def reply(number, body):
    if number == 1:
      return 503, b'busy'
    if number == 2:
      return 200, b'no json'
    if 't3 question' in body['messages'][1]['content']:
      return 200, '```json\n' + json.dumps({'pairs': [good, lost, close, old, {}, 7]}
                                           ) + '\n```'
    return 200, 'I would rather not.'

  server.answers = reply
  assert language_model.ask(requests, server.url, answers, key='k', wait=0.01,
                            say=print) == (count, 0)
  assert len(server.seen) == count + 2
  assert {path for path, _, _ in server.seen} == {'/v1/chat/completions'}
  assert {key for _, key, _ in server.seen} == {'Bearer k'}
  assert server.seen[-1][2] == asked[-1]['body']

  # A kill in the middle of a line: only that request is asked again.
  answers.write_bytes(answers.read_bytes()[:-5])
  assert language_model.ask(requests, server.url, answers, wait=0.01) == (1, 0)

  told = synthetic.take(texts, fake, 'fake', answers, tmp_path / 'new.jsonl', top=3)
  rows = [json.loads(line) for line in (tmp_path / 'new.jsonl').open()]
  assert [row['query'] for row in rows] == ['n1 asks', 'n4 asks']
  assert rows[0]['pos'] == ['n1 tells'] and rows[0]['neg'] == ['n2 tells']
  score = lambda a, b: np.dot(*(v / np.linalg.norm(v) for v in map(_vector, (a, b))))
  closer = score('n4 asks', 'n4 asks!!') >= score('n4 asks', 'n4 tells')
  assert rows[1]['neg'] == ([] if closer else ['n4 asks!!'])
  assert (told.answers, told.without_pairs, told.pairs, told.repeated, told.not_found,
          told.kept) == (count, count - 1, 4, 1, 1, 2)
  with pytest.raises(FileExistsError, match='new.jsonl'):
    synthetic.take(texts, fake, 'fake', answers, tmp_path / 'new.jsonl')
  with pytest.raises(ValueError, match='another model'):
    synthetic.take(texts, Fake(name='b'), 'fake', answers, tmp_path / 'b.jsonl')


def test_the_server_is_quoted_where_it_refuses(run, server, tmp_path):
  texts, table, _ = run
  errors.export(texts, table, tmp_path / 'r.jsonl', model='none')
  server.answers = lambda *_: (404, b'no such model')
  with pytest.raises(ValueError, match=r'r.jsonl:1: .*404.*no such model'):
    language_model.ask(tmp_path / 'r.jsonl', server.url, tmp_path / 'a.jsonl')
  server.answers = lambda *_: (500, b'')
  assert language_model.ask(tmp_path / 'r.jsonl', server.url, tmp_path / 'a.jsonl',
                            wait=0, say=lambda _: None)[0] == 0
  with pytest.raises(ValueError, match='no http address'):
    language_model.ask(tmp_path / 'r.jsonl', 'file:///etc', tmp_path / 'a.jsonl')


@pytest.mark.parametrize('answer, count', [
    ('{"pairs": [{"query": "a", "positive": "b"}]}', 1),
    ('[{"query": "a", "positive": "b", "negative": "c"}]', 1),
    ('Here you are:\n{"pairs": [{"query": "a", "positive": "b"}]} Enjoy!', 1),
    ('{"pairs": [{"query": "a", "positive": "A!"}, {"query": 1, "positive": "b"}]}', 0),
    ('{"pairs": {"query": "a"}}', 0), ('{"pairs": [', 0), ('', 0), ('[' * 99999, 0),
])
def test_answers_of_many_shapes(answer, count):
  assert len(synthetic.parse(answer)) == count
