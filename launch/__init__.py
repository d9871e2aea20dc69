"""Launchers: one command each, `jaxembed NAME` or `python -m launch.NAME`.

This file runs before jax and other libraries are imported, which read the environment
then, and keeps their chatter from the reader. A variable that is set stays as it is.
"""

import os
import pathlib
import sys

# Of XLA's and libtpu's C++: errors alone.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
if not sys.stderr.isatty():  # bars are for terminals
  os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
_VENDORS = pathlib.Path('/sys/bus/pci/devices').glob('*/vendor')
if not any(file.read_text().strip() == '0x1ae0' for file in _VENDORS):
  # No TPU here. libtpu, where it is installed, would ask a cloud which host of a pod
  # this is, and complain of the answer.
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
