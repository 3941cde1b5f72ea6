"""Options: every section with its help and its ranges, recipes, and what settles them when a run is built."""

from sppo.config.options import (
    AlgorithmConfig,
    CheckpointConfig,
    Config,
    CriticConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SelectionConfig,
    SftConfig,
    SftPhase,
    flatten,
    to_dict,
)

__all__ = [
    "AlgorithmConfig", "CheckpointConfig", "Config", "CriticConfig", "DataConfig", "EngineConfig", "EvaluationConfig",
    "LoggingConfig", "ModelConfig", "OptimizerConfig", "SamplingConfig", "SelectionConfig", "SftConfig", "SftPhase",
    "flatten", "to_dict",
]  # fmt: skip
