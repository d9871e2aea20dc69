"""Long texts found by a sentence in them: passkeys, needles, LongEmbed's real tasks.

Zhu et al. 2024 (LongEmbed, arXiv 2404.12096): documents of one length, in each of which
a sentence stands that a query asks for; the share of queries whose document is ranked
first, by length and by how deep in it the sentence stands.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import random
import re
from typing import Any
import warnings

import numpy as np

from jaxembed import search
from jaxembed.data import beir
from jaxembed.embedder import Embedder
from jaxembed.evaluation import retrieval
from jaxembed.files import place

LENGTHS = tuple(256 << i for i in range(8))  # to 32,768 tokens
TASKS = ('passkey', 'needle')
# Folders of LongEmbed's real tasks, scored by nDCG@10.
REAL = ('narrativeqa', 'qmsum', '2wikimqa', 'summ_screen_fd')

_WORDS = 25  # of a sentence of filler, so that documents are about as long as asked
_FIRST = """
Ada Amir Anna Bela Boris Carla Chen Dana Dario Elif Emil Fatima Felix Greta Hana Hugo
Ines Ivan Jamal Julia Kemal Lena Liam Mara Mina Nadia Nils Olga Omar Paula Priya Quinn
Rosa Sami Tessa Tomas Uma Viktor Wanda Yusuf
"""
_LAST = """
Abbott Almeida Baker Bauer Castro Conti Dahl Dubois Egger Farkas Ferrari Gomez Haas
Ito Jansen Kaya Klein Kovacs Lang Larsen Moreau Nagy Novak Okafor Olsen Petrov Popov
Quist Rossi Sato Silva Stone Tanaka Urban Varga Weber Wolf Yilmaz Young Zhang
"""
_CITIES = """
Accra Adelaide Agra Aleppo Algiers Ankara Antwerp Athens Baku Bali Bamako Basel Beirut
Bergen Berlin Bogota Boston Bremen Bristol Brno Bruges Cairo Calgary Cardiff Cork
Cusco Dakar Dallas Delhi Denver Dhaka Doha Dublin Durban Essen Fez Florence Galway
Gdansk Geneva Genoa Ghent Graz Hanoi Havana Helsinki Houston Istanbul Jakarta Kampala
Kiev Kobe Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon Lodz London Luanda Lyon Madrid
Malaga Manila Miami Milan Minsk Mumbai Munich Nairobi Naples Nice Osaka Oslo Oxford
Padua Panama Paris Perth Porto Prague Quito Riga Rome Salvador Santiago Seoul Seville
Sofia Split Sydney Tallinn Tokyo Toronto Tunis Turin Utrecht Valencia Vienna Vilnius
Warsaw York Zagreb Zurich
"""
_PLEASURES = (
    'eat a warm sandwich by the river', 'climb the old bell tower at dawn',
    'watch the boats come home', 'listen to a brass band in the square',
    'buy cheese at the night market', 'ride the last tram to its end',
    'swim before breakfast', 'lose a game of chess to a stranger')


@dataclasses.dataclass(frozen=True)
class Probe:
  """Documents of one length, and queries for the first of them."""

  length: int  # tokens that a document has at most
  documents: tuple[str, ...]
  queries: tuple[str, ...]  # query i asks for document i
  depths: tuple[float, ...]  # of query i: 0, its sentence is the first; 1, the last


@dataclasses.dataclass(frozen=True)
class Grid:
  """Shares of queries whose document came first, by length and depth."""

  lengths: tuple[int, ...]
  depths: tuple[float, ...]
  hits: np.ndarray  # [lengths,depths] queries
  asked: np.ndarray  # [lengths,depths] queries
  cut: tuple[float, ...]  # share of the documents that the model did not read whole

  @property
  def scores(self) -> dict[str, float]:
    """Accuracy at each length, and their mean."""
    each = self.hits.sum(1) / self.asked.sum(1)
    return {f'accuracy@{n}': float(x) for n, x in zip(self.lengths, each)} | {
        'mean': float(each.mean())}

  def table(self) -> str:
    """Rows of lengths, columns of depths, in percent."""
    head = ['tokens', *(f'{d:.0%}' for d in self.depths), 'all', 'cut']
    rows = [[str(n), *(f'{100 * h / a:.0f}' for h, a in zip(hits, asked)),
             f'{100 * hits.sum() / asked.sum():.0f}', f'{cut:.0%}']
            for n, hits, asked, cut in zip(self.lengths, self.hits, self.asked,
                                           self.cut)]
    return '\n'.join(''.join(f'{cell:>7}' for cell in row) for row in (head, *rows))

  def picture(self, path: str | os.PathLike, title: str = '') -> None:
    """Draws the table as a picture, lengths by depths."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(1.5 + 0.9 * len(self.lengths), 4), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow((self.hits / self.asked).T, vmin=0, vmax=1, cmap='RdYlGn',
                        aspect='auto')
    axes.set(xlabel='tokens of the document', ylabel='depth of the sentence',
             title=title)
    axes.set_xticks(range(len(self.lengths)), list(map(str, self.lengths)))
    axes.set_yticks(range(len(self.depths)), [f'{d:.0%}' for d in self.depths])
    figure.colorbar(image, label='ranked first')
    figure.savefig(path, dpi=120)


def probes(task: str, filler: str, lengths: Sequence[int], count: Callable[[str], int],
           *, frame: int = 2, documents: int = 100, queries: int = 50, depths: int = 10,
           seed: int = 0) -> list[Probe]:
  """Documents that are filler but for one sentence, a set for each length.

  Args:
    task: passkey (a number of a person) or needle (what to do in a city).
    filler: a text, whose sentences are taken from another place for each document,
      again from its beginning where it ends.
    lengths: tokens that a document may have; it has as many as whole sentences allow.
    count: tokens of a text.
    frame: special tokens of a document beside them.
    documents, queries: of each length; LongEmbed has 100 and 50.
    depths: places of the sentence, evenly from the first to the last.

  Raises:
    ValueError: an unknown task, no filler, or lengths that hold no sentence.
  """
  _check(task, documents, queries, depths)
  sentences = _sentences(filler)
  if not sentences:
    raise ValueError('the filler has no sentence; give a text of a few pages')
  costs = [count(s) for s in sentences]
  rng = random.Random(f'{task} {seed}')
  return [_probe(task, sentences, costs, length, count, frame, documents, queries,
                 depths, rng) for length in lengths]


def _sentences(filler: str) -> list[str]:
  """Sentences, of at most _WORDS words, without those that are blank."""
  found = []
  for sentence in re.split(r'(?<=[.!?])\s+|\n+', filler):
    words = sentence.split()
    found += [' '.join(words[i:i + _WORDS]) for i in range(0, len(words), _WORDS)]
  return found


def _check(task: str, documents: int, queries: int, depths: int) -> None:
  if task not in TASKS:
    raise ValueError(f'task {task!r} is unknown; choose one of {", ".join(TASKS)}')
  most = len(_people() if task == 'passkey' else _CITIES.split())
  if not 2 <= documents <= most:
    raise ValueError(f'{documents} documents of {task}; give 2 to {most}')
  if not 1 <= queries <= documents:
    raise ValueError(f'{queries} queries for {documents} documents; give 1 to that')
  if not 1 <= depths <= queries:
    raise ValueError(f'{depths} depths of {queries} queries; give 1 to that')


def _probe(task, sentences, costs, length, count, frame, documents, queries, depths,
           rng: random.Random) -> Probe:
  facts = _FACTS[task](rng, documents)
  places = [i % depths / max(depths - 1, 1) for i in range(documents)]
  texts = []
  for (fact, _), depth in zip(facts, places):
    room = length - frame - count(fact)
    if room < 0:
      raise ValueError(f'length {length} has no room for {fact!r}; give more tokens')
    at, chosen = rng.randrange(len(sentences)), []
    while costs[at] <= room:
      chosen.append(sentences[at])
      room -= costs[at]
      at = (at + 1) % len(sentences)
    chosen.insert(round(depth * len(chosen)), fact)
    texts.append(' '.join(chosen))
  return Probe(length, tuple(texts), tuple(q for _, q in facts[:queries]),
               tuple(places[:queries]))


def _passkeys(rng: random.Random, number: int) -> list[tuple[str, str]]:
  """(sentence, query) of so many people."""
  return [(f'The pass key of {name} is {key}. Remember it: {key} is the pass key of '
           f'{name}.', f'What is the pass key of {name}?')
          for name in rng.sample(_people(), number)
          for key in [rng.randrange(10000, 100000)]]


def _people() -> list[str]:
  return [f'{first} {last}' for first in _FIRST.split() for last in _LAST.split()]


def _needles(rng: random.Random, number: int) -> list[tuple[str, str]]:
  return [(f'The best thing to do in {city} is to {rng.choice(_PLEASURES)}.',
           f'What is the best thing to do in {city}?')
          for city in rng.sample(_CITIES.split(), number)]


_FACTS = {'passkey': _passkeys, 'needle': _needles}


def evaluate(embedder: Embedder, task: str, filler: str, *,
             lengths: Sequence[int] = LENGTHS, documents: int = 100, queries: int = 50,
             depths: int = 10, seed: int = 0, batch_size: int = 32,
             show_progress_bar: bool | None = None) -> Grid:
  """Accuracy at rank 1 of `probes`, in tokens of the embedder's own tokenizer.

  A query counts where its document is more similar than all others of its length.
  Texts longer than the embedder reads are cut, or read as its long_texts says.

  Raises:
    ValueError: as `probes`.
  """
  tokenizer = embedder.tokenizer
  frame = sum(tokenizer.frame) + tokenizer.count(embedder.prompts.get('document') or '')
  found = probes(task, filler, lengths, tokenizer.count, frame=frame,
                 documents=documents, queries=queries, depths=depths, seed=seed)
  places = tuple(sorted(set(found[0].depths)))
  hits, asked, cut = [], [], []
  for probe in found:
    best, share = _first(embedder, probe, batch_size, show_progress_bar)
    right = best == np.arange(len(probe.queries))
    at = np.array([places.index(d) for d in probe.depths])
    hits.append(np.bincount(at[right], minlength=len(places)))
    asked.append(np.bincount(at, minlength=len(places)))
    cut.append(share)
  return Grid(tuple(lengths), places, np.array(hits), np.array(asked), tuple(cut))


def _first(embedder: Embedder, probe: Probe, batch_size: int, bar
           ) -> tuple[np.ndarray, float]:
  """(the document ranked first, -1 where two are equal; share of documents cut)."""
  options: Any = {'batch_size': batch_size, 'show_progress_bar': bar}
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.* texts are longer')  # the table tells it
    documents = embedder.encode_document(list(probe.documents), **options)
    share = embedder.report.truncated / len(probe.documents)
    asked = embedder.encode_query(list(probe.queries), **options)
  scores, rows = search.top_k(asked, documents, 2, mesh=embedder.mesh,
                              similarity=embedder.similarity_fn_name)
  scores, rows = np.asarray(scores), np.asarray(rows)
  return np.where(scores[:, 0] > scores[:, 1], rows[:, 0], -1), share


def evaluate_real(embedder: Embedder, folder: str | os.PathLike, *, split: str = 'test',
                  batch_size: int = 32, **options: Any) -> dict[str, float]:
  """nDCG@10 of those of LongEmbed's real tasks that `folder` has, and their mean.

  Each is a folder in BEIR's form, called as in REAL. A warning names those that are
  not there, whose mean is not the published one. Other options: retrieval.evaluate.

  Raises:
    FileNotFoundError: none is there.
  """
  folder = place.fetched(folder)
  here = [name for name in REAL if (folder / name).is_dir()]
  if not here:
    raise FileNotFoundError(f'{folder} has none of the folders {", ".join(REAL)}, each '
                            "in BEIR's form")
  if missing := [name for name in REAL if name not in here]:
    warnings.warn(f'{folder} lacks {", ".join(missing)}; the mean is of the others',
                  stacklevel=2)
  scores = {}
  for name in here:
    data = beir.load(folder / name, split)
    scores[f'{name} ndcg@10'] = retrieval.evaluate(
        embedder, data.corpus, data.queries, data.qrels, cutoffs=(10,),
        batch_size=batch_size, **options)['ndcg@10']
  return scores | {'mean ndcg@10': float(np.mean(list(scores.values())))}
