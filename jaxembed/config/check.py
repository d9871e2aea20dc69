"""Checks shared by the configuration classes, and by what follows them."""


def one_of(cfg, name: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError unless the field `name` of `cfg` is one of `allowed`."""
  value = getattr(cfg, name)
  if value not in allowed:
    raise ValueError(f'{type(cfg).__name__}.{name} is {value!r}; '
                     f'choose one of {", ".join(allowed)}')


def divides(what: str, total: int, shards: int) -> None:
  """Raises ValueError unless `total` rows split evenly over `shards` devices."""
  if total % shards:
    low = total // shards * shards
    raise ValueError(f'{what} is not a multiple of {shards} devices (data x fsdp); use '
                     f'{low or shards} or {low + shards}')
