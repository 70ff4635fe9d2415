"""Compute the golden numbers of the world model with the public code of TD-MPC2.

    git clone https://github.com/nicklashansen/tdmpc2 && git -C tdmpc2 checkout 836547d
    python tests/golden/make_world_model.py tdmpc2

It writes `world_model.npz` and `public_small.pt` beside itself. Commit 836547d is the last one
before the policy's entropy term was changed; the released checkpoints were trained with that
term. It runs on the CPU: what names a GPU is replaced in a copy of the code before the import.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
ROWS = 24
SEED = 3
"""Seed of the noise of every update."""
CONFIG = SimpleNamespace(
    obs="state",
    obs_shape={"state": (5,)},
    action_dim=3,
    multitask=True,
    tasks=["one", "two", "three"],
    action_dims=[3, 2, 1],
    episode_lengths=[500, 100, 150],
    enc_dim=16,
    mlp_dim=24,
    latent_dim=16,
    task_dim=6,
    num_enc_layers=3,
    num_q=5,
    dropout=0.0,
    simnorm_dim=8,
    num_bins=101,
    vmin=-10.0,
    vmax=10.0,
    bin_size=0.2,
    log_std_min=-10.0,
    log_std_max=2.0,
    batch_size=ROWS,
    horizon=3,
    rho=0.5,
    tau=0.01,
    lr=3e-4,
    enc_lr_scale=0.3,
    grad_clip_norm=20.0,
    consistency_coef=20.0,
    reward_coef=0.1,
    value_coef=0.1,
    entropy_coef=1e-4,
    discount_denom=5,
    discount_min=0.95,
    discount_max=0.995,
    iterations=2,
    num_samples=64,
    num_pi_trajs=6,
    num_elites=12,
    min_std=0.05,
    max_std=2.0,
    temperature=0.5,
    compile=False,
)

ON_CPU = {
    "'cuda:0'": "'cpu'",
    "'cuda'": "'cpu'",
    ", capturable=True": "",
    "WorldModel(cfg).to(self.device)": "WorldModel(cfg)",
}
"""What a machine without a GPU needs replaced in the public code."""


@contextmanager
def public_code(clone: Path) -> Iterator[None]:
    """Make the public modules importable, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tdmpc2"
        shutil.copytree(clone / "tdmpc2", copy)
        for path in (copy / "tdmpc2.py", copy / "common" / "scale.py"):
            text = path.read_text()
            for found, wanted in ON_CPU.items():
                text = text.replace(found, wanted)
            path.write_text(text)
        with mock.patch.object(sys, "path", [str(copy), *sys.path]):
            yield


def inputs() -> dict[str, Tensor]:
    """Draw observations, actions and rewards, zero in the dimensions that a task lacks."""
    source = torch.Generator().manual_seed(1)
    task = torch.arange(ROWS) % 3
    mask = (torch.arange(3) < torch.tensor(CONFIG.action_dims)[task, None]).float()
    return {
        "task": task,
        "obs": torch.randn(4, ROWS, 5, generator=source),
        "action": (torch.rand(3, ROWS, 3, generator=source) * 2 - 1) * mask,
        "reward": torch.rand(3, ROWS, 1, generator=source) * 2,
        "noise": torch.randn(4, ROWS, 3, generator=source),
        "two_hot_in": torch.linspace(-12, 12, 49).sinh().unsqueeze(1),
    }


def make_weights_uneven(model: torch.nn.Module) -> None:
    """Move the weights off their start, where rewards and values are all zero."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_Qs" not in name or name.startswith("_Qs"):
                # Larger, and the policy's standard deviations would be at their limits.
                size = 0.2 if name.startswith("_pi") else 0.6
                parameter.add_(torch.randn(parameter.shape, generator=source), alpha=size)
        for name, tensor in model._target_Qs_params.items(True, True):
            tensor.copy_(model._Qs.params[name].data)
            tensor.add_(torch.randn(tensor.shape, generator=source), alpha=0.1)
        norms = torch.tensor([0.5, 0.9, 1.3]).unsqueeze(1)  # the third is longer than allowed
        embedding = model._task_emb.weight
        embedding.copy_(embedding / embedding.norm(dim=1, keepdim=True) * norms)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state dict as the versions of the code's requirements would have it.

    Later versions of tensordict add the ensembles' modules, which are empty, and their weights
    for a second time.
    """
    twice = ("_Qs.module.", "_detach_Qs", "_target_Qs.")
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(twice)
    }


def forward(model: torch.nn.Module, math: object, d: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run every network once, on the first step of the slices."""
    task, action = d["task"], d["action"][0]
    z = model.encode(d["obs"][0], task)
    with mock.patch("torch.randn_like", return_value=d["noise"][0]):
        mean, sample, log_prob, log_std = model.pi(z, task)
    rewards = model.reward(z, action, task)
    qs = model.Q(z, action, task, return_type="all")
    targets = model.Q(z, action, task, return_type="all", target=True)
    return {
        "z": z,
        "z_next": model.next(z, action, task),
        "reward_logits": rewards,
        "reward_value": math.two_hot_inv(rewards, CONFIG),
        "q_logits": qs,
        "q_value": math.two_hot_inv(qs, CONFIG),
        "target_q_value": math.two_hot_inv(targets, CONFIG),
        "pi_mean": mean,
        "pi_sample": sample,
        "pi_log_prob": log_prob,
        "pi_log_std": log_std,
        "two_hot_out": math.two_hot(d["two_hot_in"], CONFIG),
        "soft_ce": math.soft_ce(rewards, d["reward"][0], CONFIG),
    }


def updates(agent: torch.nn.Module, d: dict[str, Tensor]) -> dict[str, Tensor]:
    """Train for three updates; return the losses of each and the weights after the last.

    Before each but the first the public code still has the gradient that the policy's loss left
    in the task embedding, and adds the model's to it. It is cleared here, as equation 6 of the
    paper asks for.
    """
    found: dict[str, Tensor] = {}
    torch.manual_seed(SEED)
    with torch.no_grad():
        next_z = agent.model.encode(d["obs"][1:], d["task"])
        found["td_target"] = agent._td_target(next_z, d["reward"], d["task"])
    torch.manual_seed(SEED)
    for number in range(3):
        agent.optim.zero_grad()
        terms = agent._update(d["obs"], d["action"], d["reward"], d["task"])
        found |= {f"update{number}/{name}": value for name, value in terms.items()}
    agent.model._task_emb(torch.arange(3))  # a look-up is what shortens its rows
    after = {f"after/{name}": tensor for name, tensor in weights(agent.model).items()}
    return found | after


def plans(agent: torch.nn.Module, d: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plan twice for a row of each task; keep all random numbers and what came of them."""
    kept: dict[str, list[Tensor]] = {"normal": [], "heads": []}
    randn, randn_like, randperm = torch.randn, torch.randn_like, torch.randperm

    def keep(name: str, value: Tensor) -> Tensor:
        kept[name].append(value.clone())
        return value

    results: dict[str, list[Tensor]] = {}

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code is type(agent)._plan.__wrapped__.__code__:
            # The first of the elites is the best: its action shows their order.
            row = {
                "mean": frame.f_locals["mean"],
                "std": frame.f_locals["std"],
                "best": frame.f_locals["elite_actions"][0, 0],
                "weights": frame.f_locals["score"][:, 0],
                "values": frame.f_locals["value"].sort(0, descending=True).values[:13, 0],
            }
            for name, value in row.items():
                results.setdefault(name, []).append(value.clone())

    rows: list[dict[str, Tensor]] = []
    torch.manual_seed(SEED)
    for row in range(3):
        agent._prev_mean.zero_()
        for first in (True, False):
            kept["normal"], kept["heads"] = [], []
            with (
                mock.patch("torch.randn", lambda *a, **k: keep("normal", randn(*a, **k))),
                mock.patch("torch.randn_like", lambda x: keep("normal", randn_like(x))),
                mock.patch("torch.randperm", lambda *a, **k: keep("heads", randperm(*a, **k))),
            ):
                sys.setprofile(trace)
                agent.plan(d["obs"][0, row : row + 1], t0=first, task=d["task"][row : row + 1])
                sys.setprofile(None)
            prior, rounds = kept["normal"][:3], kept["normal"][3:-1]
            rows.append(
                {
                    "prior": torch.stack(prior),
                    "samples": torch.stack(rounds[::2]),
                    "value": torch.stack(rounds[1::2]),
                    "heads": torch.stack(kept["heads"])[:, :2],
                }
            )
    noise = {f"plan_{name}": torch.stack([row[name] for row in rows]) for name in rows[0]}
    return noise | {f"plan_{name}": torch.stack(values) for name, values in results.items()}


def main() -> None:
    """Write both files."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with public_code(Path(sys.argv[1])):
        from common import math
        from tdmpc2 import TDMPC2

        agent = TDMPC2(CONFIG)
        make_weights_uneven(agent.model)
        torch.save({"model": weights(agent.model)}, FOLDER / "public_small.pt")
        d = inputs()
        found = dict(d)
        with torch.no_grad():
            found |= forward(agent.model, math, d) | plans(agent, d)
        found |= updates(agent, d)
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    np.savez_compressed(FOLDER / "world_model.npz", **arrays)


if __name__ == "__main__":
    main()
