"""The command `jaxembed`, which is `python -m jaxembed` as well."""

import importlib
import pathlib
import sys


def launchers() -> str:
  """Package of the launchers: `jaxembed.launch` in an installation; `launch` in a
  checkout, where it stands beside this package."""
  root = pathlib.Path(__file__).parents[1]
  if not ((root / 'pyproject.toml').is_file() and (root / 'launch').is_dir()):
    return 'jaxembed.launch'
  if str(root) not in sys.path:
    sys.path.insert(0, str(root))
  return 'launch'


def main() -> None:
  """Runs the launcher that the first argument names; alone, lists them all."""
  importlib.import_module(f'{launchers()}.commands').main()


if __name__ == '__main__':
  main()
