"""Which text is trained on, and the rules that hold for it."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class SourceConfig:
  """One dataset of a mixture and the rules that hold for its rows."""

  name: str
  kind: str = 'jsonl'  # jsonl | python_source | tfds
  path: str = ''  # file, glob or folder; the dataset's name for tfds
  split: str = 'train'
  weight: float = 1.0
  in_batch: bool = True
  query_prompt: str = ''
  passage_prompt: str = ''
  limit: int = 0  # 0: all rows


@dataclass(kw_only=True)
class DataConfig:
  sources: list[SourceConfig] = field(default_factory=list)
  batch_size: int = 64  # queries per step, over all devices
  num_negatives: int = 0  # hard negatives per query
  query_lengths: tuple[int, ...] = (32,)  # buckets, tokens
  passage_lengths: tuple[int, ...] = (128,)
  workers: int = 0  # grain worker processes; 0 reads in this one
