"""Launchers: one command each, `jaxembed NAME` or `python -m launch.NAME`."""
