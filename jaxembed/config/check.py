"""Checks shared by the configuration classes."""


def one_of(cfg, name: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError unless the field `name` of `cfg` is one of `allowed`."""
  value = getattr(cfg, name)
  if value not in allowed:
    raise ValueError(f'{type(cfg).__name__}.{name} is {value!r}; '
                     f'choose one of {", ".join(allowed)}')
