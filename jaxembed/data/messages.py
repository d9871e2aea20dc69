"""Rows of ms-swift: texts as messages of a chat."""

from collections.abc import Mapping
from typing import Any

from jaxembed.data import fields
from jaxembed.data.fields import BadRow

_MEDIA = ('images', 'videos', 'audios')


def is_chat(row: Mapping[str, Any]) -> bool:
  """Whether a row's query is a list of messages."""
  return 'messages' in row


def to_columns(row: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The row with columns query, positive and negative in the place of messages.

  The system's message of the query is the row's instruction; that of a passage stands
  in front of it, with a space between, as ms-swift puts it.

  Raises:
    BadRow: no list of messages, one that is not a text, several of the user, or an
      answer of the assistant.
  """
  for name in row:
    if name.endswith(_MEDIA) and row[name]:
      raise BadRow(f'{where}: field {name!r} is not empty, and texts alone are read; '
                   'leave such rows out')
  system, query = _texts(row['messages'], 'messages', where)
  found = {k: v for k, v in row.items() if not k.endswith('messages')}
  found['query'] = query
  if system:
    found.setdefault('instruction', system)
  for column in ('positive', 'negative'):
    name = f'{column}_messages'
    chats = row.get(name)
    if chats is None:
      continue
    if not isinstance(chats, list | tuple):
      raise BadRow(f'{where}: field {name!r} is {fields.kind(chats)}; a list of lists '
                   'of messages is expected')
    if chats and isinstance(chats[0], Mapping):
      chats = [chats]  # one passage, without the list around it
    found[column] = [' '.join(filter(None, _texts(chat, f'{name}[{i}]', where)))
                     for i, chat in enumerate(chats)]
  return found


def _texts(chat: Any, name: str, where: str) -> tuple[str, str]:
  """(the system's text, the user's) of a list of messages."""
  if not isinstance(chat, list | tuple) or not chat:
    raise BadRow(f'{where}: field {name!r} is {fields.kind(chat)}; a list of messages '
                 'is expected')
  said = {'system': '', 'user': ''}
  for i, message in enumerate(chat):
    here = f'{name}[{i}]'
    if not isinstance(message, Mapping) or not {'role', 'content'} <= message.keys():
      raise BadRow(f'{where}: field {here!r} is {fields.kind(message)}; an object with '
                   "'role' and 'content' is expected")
    role = message['role']
    if role not in said or said[role]:
      raise BadRow(f"{where}: field '{here}.role' is {fields.short(role)}; one message "
                   'of the user is read, and one of the system in front of it')
    said[role] = fields.text(_content(message['content']), f'{here}.content', where)
  if not said['user']:
    raise BadRow(f'{where}: field {name!r} has no message of the user')
  return said['system'], said['user']


def _content(value: Any) -> Any:
  """A message's text, also where it is a list with one part of type text."""
  if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
    return value[0].get('text', value)
  return value
