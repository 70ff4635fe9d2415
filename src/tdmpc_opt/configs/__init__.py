"""Every knob of the project, as frozen dataclasses that need neither torch nor a simulator."""

from tdmpc_opt.configs.common import (
    CHOICE_SEED,
    COLLECTION_SEED,
    REPORTED_SEED,
    Device,
    EngineName,
    MatmulPrecision,
    Mode,
    device_of_work,
)
from tdmpc_opt.configs.deploy import (
    ConvertConfig,
    ExportConfig,
    ExportFormat,
    ExportTarget,
    InspectConfig,
    QuantizeConfig,
    SensitivityConfig,
    ServeConfig,
    TasksConfig,
    ZooConfig,
)
from tdmpc_opt.configs.measure import (
    AblationConfig,
    BenchConfig,
    CompareConfig,
    EvaluateConfig,
    PlayConfig,
    ReportConfig,
    TuneConfig,
    VideoConfig,
)
from tdmpc_opt.configs.training import (
    TERMS,
    CollectConfig,
    DaggerConfig,
    DataExportConfig,
    DataImportConfig,
    DataInfoConfig,
    DataVerifyConfig,
    DemoConfig,
    DistillConfig,
    DistillWeights,
    ExpertsConfig,
    FromTeacher,
    LossWeights,
    RegularizeConfig,
    Schedule,
    TrainConfig,
)
