"""The configuration of a run: sections, rules, files and overrides."""

from llm_forgetting.config.sections import (
    SEEDS,
    CurvatureConfig,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    ExperimentConfig,
    InterventionsConfig,
    LandscapeConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    ScanConfig,
    TrainingConfig,
    leaves,
    refuse_impossible,
    to_dict,
)

__all__ = [
    "SEEDS",
    "CurvatureConfig",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "InterventionsConfig",
    "LandscapeConfig",
    "LoraConfig",
    "ModelConfig",
    "OutputConfig",
    "ScanConfig",
    "TrainingConfig",
    "leaves",
    "refuse_impossible",
    "to_dict",
]
