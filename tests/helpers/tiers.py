"""Which cases `make test` runs, and which only `make test-all` does."""

import pytest


def thorough(*args):
  """A case of `pytest.mark.parametrize` that proves an earlier one once more."""
  return pytest.param(*args, marks=pytest.mark.thorough)


def after(count: int, cases) -> list:
  """All cases, those after the first `count` for `make test-all` alone."""
  return [case if i < count else thorough(*case if isinstance(case, tuple) else (case,))
          for i, case in enumerate(cases)]
