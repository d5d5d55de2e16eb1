"""The configuration of a run: sections, rules, files and overrides."""

from llm_forgetting.config.measurements import CurvatureConfig, EvaluationConfig, LandscapeConfig
from llm_forgetting.config.paths import SEEDS, leaves, to_dict
from llm_forgetting.config.rules import refuse_impossible
from llm_forgetting.config.sections import (
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    ForecastConfig,
    InterventionsConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    ScanConfig,
    TrainingConfig,
)

__all__ = [
    "SEEDS",
    "CurvatureConfig",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "ForecastConfig",
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
