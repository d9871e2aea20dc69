"""Classification evaluation: a linear probe on a few texts per label, as in MTEB."""

from collections.abc import Hashable, Sequence

import numpy as np

from jaxembed.embedder import Embedder


def evaluate(embedder: Embedder, train_texts: Sequence[str],
             train_labels: Sequence[Hashable], test_texts: Sequence[str],
             test_labels: Sequence[Hashable], *, samples_per_label: int = 8,
             experiments: int = 10, seed: int = 42, prompt_name: str | None = None,
             prompt: str | None = None, batch_size: int = 32,
             truncate_dim: int | None = None,
             show_progress_bar: bool | None = None) -> dict[str, float]:
  """Accuracy and macro F1 of a linear probe: 'accuracy' and 'f1', means over draws.

  In each, logistic regression is fitted to `samples_per_label` training texts of
  each label and tried on the whole test set. The defaults and the draws are MTEB's.
  Training texts that no draw takes are not encoded.
  """
  if len(train_texts) != len(train_labels) or len(test_texts) != len(test_labels):
    raise ValueError(
        f'every text needs a label, got {len(train_texts)} and {len(train_labels)} '
        f'for training, {len(test_texts)} and {len(test_labels)} for the test')
  if unseen := sorted(set(map(str, test_labels)) - set(map(str, train_labels))):
    raise ValueError(f'label {unseen[0]!r} of the test set is not in the training '
                     'set; the two belong to two tasks')
  taken = draws(train_labels, samples_per_label, experiments, seed)
  used = np.unique(np.concatenate(taken))
  settings = {'batch_size': batch_size, 'truncate_dim': truncate_dim,
              'show_progress_bar': show_progress_bar}
  known = embedder.encode(
      [train_texts[int(i)] for i in used], prompt_name, prompt, **settings)
  asked = embedder.encode(list(test_texts), prompt_name, prompt, **settings)
  labels = np.asarray(train_labels)
  scores = [_probe(known[np.searchsorted(used, rows)], labels[rows], asked,
                   np.asarray(test_labels)) for rows in taken]
  accuracy, f1 = np.mean(scores, 0).tolist()
  return {'accuracy': accuracy, 'f1': f1}


def draws(labels: Sequence[Hashable], samples_per_label: int, experiments: int,
          seed: int) -> list[np.ndarray]:
  """Row numbers that each experiment fits to: the first of each label in an order.

  Every experiment shuffles the order of the one before with the same permutation,
  as MTEB, which seeds anew each time, comes to do.
  """
  permutation = np.random.RandomState(seed).permutation(len(labels))
  order = np.arange(len(labels))
  taken = []
  for _ in range(experiments):
    order = order[permutation]
    room = dict.fromkeys(labels, samples_per_label)
    rows = []
    for i in order.tolist():
      if room[labels[i]]:
        room[labels[i]] -= 1
        rows.append(i)
    taken.append(np.array(rows))
  return taken


def _probe(known: np.ndarray, labels: np.ndarray, asked: np.ndarray,
           answers: np.ndarray) -> tuple[float, float]:
  """Accuracy and macro F1 of a probe.  known [n,E], asked [m,E]."""
  from sklearn import linear_model, metrics  # of the extra 'evaluation'

  found = linear_model.LogisticRegression(max_iter=100).fit(known, labels)
  guesses = found.predict(asked)
  return (float((guesses == answers).mean()),
          float(metrics.f1_score(answers, guesses, average='macro')))
