"""Upload of an exported folder to the Hugging Face hub."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
from typing import Any

from jaxembed.files.folder import first_line

# Files that a new repository begins with, and a model's own card replaces.
_EMPTY = {'.gitattributes', 'README.md'}
_REPO = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
_LONGEST = 96  # characters of a name on the hub


def check(repo: str, token: str | None = None) -> str:
  """The token to upload with, before any work is done.

  Args:
    repo: 'org/name'.
    token: None: the one that `hf auth login` stored, or HF_TOKEN.

  Raises:
    ValueError: a name that the hub does not take, or no token.
  """
  import huggingface_hub

  if (not _REPO.fullmatch(repo) or len(repo) > _LONGEST or '--' in repo
      or '..' in repo or repo.endswith(('.git', '.ipynb', '.', '-'))):
    raise ValueError(f'{repo!r:.120} is no name on the hub; give org/name, of letters, '
                     'digits, "-", "_" and "."')
  found = token or huggingface_hub.get_token()
  if not found:
    raise ValueError(f'there is no token to push to {repo} with; run `hf auth login`, '
                     'or set HF_TOKEN')
  return found


def files(folder: str | os.PathLike) -> list[tuple[str, int]]:
  """(name, bytes) of what would be uploaded, sorted."""
  folder = pathlib.Path(folder)
  return sorted((str(p.relative_to(folder)), p.stat().st_size)
                for p in folder.rglob('*') if p.is_file())


def push(folder: str | os.PathLike, repo: str, *, token: str | None = None,
         private: bool = False, overwrite: bool = False, api: Any = None) -> str:
  """Uploads `folder` as one commit; its address.

  Args:
    folder: an export.
    repo: 'org/name', made if it is not there.
    token: as of `check`.
    private: of a repository that is made.
    overwrite: go on where the repository holds files already; they stay in its
      history.
    api: what stands in for huggingface_hub.HfApi.

  Raises:
    FileExistsError: it holds files, and `overwrite` is not set.
    ValueError: as `check`. OSError: the hub cannot be reached, or refuses.
  """
  import huggingface_hub

  found = check(repo, token)
  api = api or huggingface_hub.HfApi(token=found)
  with _told(repo):
    api.create_repo(repo, private=private, exist_ok=True)
    there = set(api.list_repo_files(repo)) - _EMPTY
  if there and not overwrite:
    raise FileExistsError(f'{repo} on the hub holds {min(there)} and '
                          f'{len(there) - 1} more files; pass --overwrite to add a '
                          'commit, or choose another name')
  with _told(repo):
    api.upload_folder(repo_id=repo, folder_path=os.fspath(folder),
                      commit_message='Upload of a model exported with jaxembed')
  return f'https://huggingface.co/{repo}'


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
  """Errors of the hub and of the net, of which there are many kinds, in one line."""
  try:
    yield
  except Exception as e:
    raise OSError(f'the hub did not take {repo} ({type(e).__name__}: {first_line(e)}); '
                  f'the export is whole: `hf upload {repo} FOLDER` sends it') from e
