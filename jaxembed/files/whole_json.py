"""JSON files that are written whole or not at all."""

import json
import pathlib
from typing import Any


def write(file: pathlib.Path, data: Any) -> None:
  """Writes `data` in the place of `file`, whatever happens meanwhile."""
  tmp = file.with_name(file.name + '.tmp')
  tmp.write_text(json.dumps(data, indent=2) + '\n')
  tmp.replace(file)
