import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config as jaxtyping_config
from public_layouts import layout_a

from tdmpc_opt.checkpoints.checkpoint import from_model
from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native
from tdmpc_opt.configs.data import CollectConfig
from tdmpc_opt.model.world_model import WorldModel
from tdmpc_opt.schema import MT30, ModelConfig, PlannerBudget, Task, TaskTable

settings.register_profile(
    "quick",
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "fuzz",
    settings.get_profile("quick"),
    max_examples=10_000,
    derandomize=False,
    print_blob=True,
)
settings.load_profile("quick")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for commands, which else take free cores


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_fixed_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep traced planners out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def public_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled student as TD-MPC-Opt's release stores one: layout A, fp16, target Qs."""
    tensors = read_checkpoint("mt30-1m").tensors
    targets = {f"target_{k}": v.clone() for k, v in tensors.items() if k.startswith("q_ens")}
    path = tmp_path_factory.mktemp("public") / "mt30_1M_fp16.pt"
    torch.save({"model": layout_a(tensors | targets)}, path)
    return path


@pytest.fixture
def two_experts(tmp_path: Path) -> Path:
    """A folder with the repository's experts of two tasks and no other."""
    folder = tmp_path / "two-experts"
    folder.mkdir()
    for task in ("cartpole-balance", "cup-catch"):
        shutil.copy(Path(__file__).parents[1] / "experts" / f"{task}.safetensors", folder)
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the annotation checks off: for wrong types, or where whole episodes would crawl."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., WorldModel]:
    """Builds tiny models in eval mode whose reward and Q heads are not zero as at the start."""

    def make(tasks: TaskTable | None = None, seed: int = 0, **widths: int) -> WorldModel:
        tasks = tasks or TaskTable((Task("one", 5, 3), Task("two", 4, 2)))
        sizes = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_enc_layers": 2}
        config = ModelConfig(
            obs_dim=tasks.obs_dim,
            action_dim=tasks.action_dim,
            num_tasks=len(tasks),
            **{**sizes, "num_q": 2, "task_dim": 4, **widths},
        )
        source = torch.Generator().manual_seed(seed)
        model = WorldModel(config, tasks, source)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=source), alpha=0.2)
        model.renormalize_task_embedding()
        return model.eval()

    return make


@pytest.fixture
def model(make_model) -> WorldModel:
    """Two tasks of different widths: one has 5 observations and 3 actions, two has 4 and 2."""
    return make_model()


@pytest.fixture(scope="session")
def small_budget() -> PlannerBudget:
    return PlannerBudget(iterations=2, samples=24, policy_samples=4, elites=6)


@pytest.fixture(scope="session")
def checkpoint_file(make_model, tmp_path_factory) -> Path:
    """A tiny agent of pendulum-swingup and cartpole-balance. Read it, do not change it."""
    tasks = MT30.subset(["pendulum-swingup", "cartpole-balance"])
    path = tmp_path_factory.mktemp("agent") / "tiny.safetensors"
    write_native(path, from_model(make_model(tasks)))
    return path


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory) -> Path:
    """Two random episodes of each of two tasks. Read it, do not change it."""
    from tdmpc_opt.agents.collect import collect  # needs the simulator

    path = tmp_path_factory.mktemp("data") / "random"
    collect(
        CollectConfig(
            policy="random",
            tasks="pendulum-swingup,cartpole-balance",
            episodes=2,
            output=path,
            device="cpu",
            workers=1,
        )
    )
    return path
