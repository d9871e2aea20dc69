"""A keyword's former name is its name."""

import pytest

from jaxembed import former


@former.keywords(say='log')
def _told(*, log=print):
  return log


def test_either_name_is_taken_and_not_both():
  assert _told(log=1) == _told(say=1) == 1
  assert _told() is print
  with pytest.raises(TypeError, match='got log and say, its former name'):
    _told(log=1, say=2)
