"""JSON files that are written whole or not at all."""

import json
import pathlib
from typing import Any

from jaxembed.files import whole_file


def write(file: pathlib.Path, data: Any) -> None:
  """Writes `data` in the place of `file`, whatever happens meanwhile."""
  text = json.dumps(data, indent=2) + '\n'
  with whole_file.opened(file) as part:
    part.write(text)
