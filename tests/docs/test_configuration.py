"""The configuration reference: every field is described, by what stands beside it."""

import dataclasses

import pytest

from jaxembed import config
from jaxembed.config import describe

CLASSES = [getattr(config, name) for name in config.__all__
           if dataclasses.is_dataclass(getattr(config, name))]


@pytest.mark.parametrize('cls', CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_described(cls):
  lacking = [f.name for f in describe.fields(cls) if not f.text]
  assert not lacking, (
      f'{cls.__name__}: say what {lacking} mean, in a comment behind or above the '
      "field, or as 'name: ...' in the docstring")
  assert describe.summary(cls)


def test_an_experiment_reaches_the_classes_that_it_is_made_of():
  reached = list(describe.classes())
  assert reached[0] is config.Config and len(set(reached)) == len(reached)
  assert {config.SourceConfig, config.PoolingConfig, config.LoraConfig} < set(reached)


@dataclasses.dataclass
class _Sample:
  """A sample.

  rate: how fast, of
    everything.
  """

  rate: float = 0.5  # above 0
  # Of the
  # layers.
  kind: str = 'a'  # a | b

  ## A heading, of no field
  sizes: tuple[int, ...] = ()
  parts: list[str] = dataclasses.field(default_factory=list)  # in order
  name: str = dataclasses.field(kw_only=True)


def test_a_field_is_described_where_it_stands():
  assert describe.summary(_Sample) == 'A sample.'
  assert [dataclasses.astuple(f) for f in describe.fields(_Sample)] == [
      ('rate', 'float', '0.5', 'how fast, of everything. above 0.'),
      ('kind', 'str', "'a'", 'a | b. Of the layers.'),
      ('sizes', 'tuple[int, ...]', '()', ''),
      ('parts', 'list[str]', '[]', 'in order.'),
      ('name', 'str', 'required', '')]
