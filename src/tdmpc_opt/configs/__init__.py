"""Every knob of the project, as frozen dataclasses that need neither torch nor a simulator."""

from tdmpc_opt.configs.collection import CollectConfig, DataInfoConfig, ExpertsConfig
from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    Device,
    EngineName,
    EnginePrecision,
    Mode,
)
from tdmpc_opt.configs.dagger import DaggerConfig
from tdmpc_opt.configs.datasets import DataExportConfig, DataImportConfig, DataVerifyConfig
from tdmpc_opt.configs.distill_weights import TERMS, DistillWeights, Schedule
from tdmpc_opt.configs.evaluation import AblationConfig, CompareConfig, EvaluateConfig
from tdmpc_opt.configs.files import (
    ConvertConfig,
    InspectConfig,
    QuantizeConfig,
    TasksConfig,
    ZooConfig,
)
from tdmpc_opt.configs.model import ModelConfig, PlannerBudget, Size, model_config
from tdmpc_opt.configs.training import (
    DemoConfig,
    DistillConfig,
    LossWeights,
    Precision,
    TrainConfig,
)

__all__ = [
    "COLLECTION_SEED",
    "TERMS",
    "AblationConfig",
    "CollectConfig",
    "CompareConfig",
    "ConvertConfig",
    "DaggerConfig",
    "DataExportConfig",
    "DataImportConfig",
    "DataInfoConfig",
    "DataVerifyConfig",
    "DemoConfig",
    "Device",
    "DistillConfig",
    "DistillWeights",
    "EngineName",
    "EnginePrecision",
    "EvaluateConfig",
    "ExpertsConfig",
    "InspectConfig",
    "LossWeights",
    "Mode",
    "ModelConfig",
    "PlannerBudget",
    "Precision",
    "QuantizeConfig",
    "Schedule",
    "Size",
    "TasksConfig",
    "TrainConfig",
    "ZooConfig",
    "model_config",
]
