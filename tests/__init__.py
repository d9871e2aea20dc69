"""The tests of jaxembed; `tests.helpers` is what they share."""
