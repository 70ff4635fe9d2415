"""Every knob of the project, as frozen dataclasses that need neither torch nor a simulator."""

from tdmpc_opt.configs.bench import BenchConfig
from tdmpc_opt.configs.collection import CollectConfig, DataInfoConfig, ExpertsConfig
from tdmpc_opt.configs.common import (
    COLLECTION_SEED,
    Device,
    EngineName,
    Mode,
    device_of_work,
)
from tdmpc_opt.configs.compression import QuantizeConfig, SensitivityConfig
from tdmpc_opt.configs.dagger import DaggerConfig
from tdmpc_opt.configs.datasets import DataExportConfig, DataImportConfig, DataVerifyConfig
from tdmpc_opt.configs.distill_weights import TERMS, DistillWeights, Schedule
from tdmpc_opt.configs.evaluation import AblationConfig, CompareConfig, EvaluateConfig
from tdmpc_opt.configs.export import ExportConfig, ExportFormat, ExportTarget
from tdmpc_opt.configs.files import (
    ConvertConfig,
    InspectConfig,
    TasksConfig,
    ZooConfig,
)
from tdmpc_opt.configs.reports import ReportConfig, VideoConfig
from tdmpc_opt.configs.serve import ServeConfig
from tdmpc_opt.configs.show import PlayConfig
from tdmpc_opt.configs.training import (
    DemoConfig,
    DistillConfig,
    FromTeacher,
    LossWeights,
    TrainConfig,
)
from tdmpc_opt.configs.tuning import TuneConfig

__all__ = [
    "COLLECTION_SEED",
    "TERMS",
    "AblationConfig",
    "BenchConfig",
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
    "EvaluateConfig",
    "ExpertsConfig",
    "ExportConfig",
    "ExportFormat",
    "ExportTarget",
    "FromTeacher",
    "InspectConfig",
    "LossWeights",
    "Mode",
    "PlayConfig",
    "QuantizeConfig",
    "ReportConfig",
    "Schedule",
    "SensitivityConfig",
    "ServeConfig",
    "TasksConfig",
    "TrainConfig",
    "TuneConfig",
    "VideoConfig",
    "ZooConfig",
    "device_of_work",
]
