"""Configuration dataclasses of models, data, losses, optimisers and runs.

Two kinds of object live here. `ModelConfig` and its parts are frozen and
hashable: they shape parameters and are static arguments of jitted functions.
`Config` and its parts describe an experiment; a file in configs/ returns one and
the command line may replace leaves (`--config.mesh.data=8`), which is why they
can be set. `validate` checks the whole tree afterwards.

No flags, files or environment are read here.
"""

from jaxembed.config.backbone import BackboneConfig, RopeScaling
from jaxembed.config.data import DataConfig
from jaxembed.config.experiment import (
    CheckpointConfig,
    Config,
    EvalConfig,
    MeshConfig,
    ModelSpec,
    OptimConfig,
    StageConfig,
)
from jaxembed.config.length import LengthConfig, parse as parse_length
from jaxembed.config.loss import LossComputing, LossConfig, Reads
from jaxembed.config.model import (
    DenseConfig,
    LoraConfig,
    ModelConfig,
    PoolingConfig,
    PrependConfig,
    bidirectional,
)
from jaxembed.config.source import SourceConfig
from jaxembed.config.tree import field_path, from_dict, to_dict, unknown_field, validate

__all__ = [
    'BackboneConfig',
    'CheckpointConfig',
    'Config',
    'DataConfig',
    'DenseConfig',
    'EvalConfig',
    'LengthConfig',
    'LoraConfig',
    'LossComputing',
    'LossConfig',
    'MeshConfig',
    'ModelConfig',
    'ModelSpec',
    'OptimConfig',
    'PoolingConfig',
    'PrependConfig',
    'Reads',
    'RopeScaling',
    'SourceConfig',
    'StageConfig',
    'bidirectional',
    'field_path',
    'from_dict',
    'parse_length',
    'to_dict',
    'unknown_field',
    'validate',
]
