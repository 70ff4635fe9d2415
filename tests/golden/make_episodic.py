"""Compute the golden numbers of terminations with the public code of TD-MPC2.

    git clone https://github.com/nicklashansen/tdmpc2 && git -C tdmpc2 checkout e9f5932
    python tests/golden/make_episodic.py tdmpc2

It writes `episodic.npz` and `public_episodic.pt` beside itself, of an agent with one task: the
public termination head knows no others.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from make_world_model import CONFIG, FOLDER, ROWS, SEED, public_code, weights
from torch import Tensor

SAMPLES = 64
ONE = SimpleNamespace(
    **{
        **vars(CONFIG),
        "multitask": False,
        "task_dim": 0,
        "episodic": True,
        "episode_length": 500,
        "termination_coef": 1,
        "num_q": 2,
        "num_samples": SAMPLES,
    }
)


def make_weights_uneven(model: torch.nn.Module) -> None:
    """Move the weights off their start, and the head to ends in about a third of states."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_Qs" not in name or name.startswith("_Qs"):
                size = 0.2 if name.startswith("_pi") else 0.6
                parameter.add_(torch.randn(parameter.shape, generator=source), alpha=size)
        for name, tensor in model._target_Qs_params.items(True, True):
            tensor.copy_(model._Qs.params[name].data)
            tensor.add_(torch.randn(tensor.shape, generator=source), alpha=0.1)
        z = model.encode(torch.randn(999, 5, generator=source), None)
        z = model.next(z, torch.rand(999, 3, generator=source) * 2 - 1, None)
        logits = model.termination(z, None, unnormalized=True)
        model._termination[-1].bias.sub_(logits.sort(0).values[666])


def inputs() -> dict[str, Tensor]:
    """Draw slices, some of which end in a terminated state, and sequences to plan with."""
    source = torch.Generator().manual_seed(1)
    terminated = torch.zeros(3, ROWS, 1)
    terminated[-1, ::3] = 1
    return {
        "obs": torch.randn(4, ROWS, 5, generator=source),
        "action": torch.rand(3, ROWS, 3, generator=source) * 2 - 1,
        "reward": torch.rand(3, ROWS, 1, generator=source) * 2,
        "terminated": terminated,
        "sequences": torch.rand(3, SAMPLES, 3, generator=source) * 2 - 1,
        "last_noise": torch.randn(SAMPLES, 3, generator=source),
    }


def main() -> None:
    """Write both files."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with public_code(Path(sys.argv[1])):
        from tdmpc2 import TDMPC2

        agent = TDMPC2(ONE)
        model = agent.model
        make_weights_uneven(model)
        torch.save({"model": weights(model)}, FOLDER / "public_episodic.pt")
        d = inputs()
        found = dict(d)
        with torch.no_grad():
            next_z = model.encode(d["obs"][1:], None)
            found["termination_logits"] = model.termination(next_z, None, unnormalized=True)
            torch.manual_seed(SEED)
            found["td_target"] = agent._td_target(next_z, d["reward"], d["terminated"], None)
            z = model.encode(d["obs"][0, :1], None).repeat(SAMPLES, 1)
            with mock.patch("torch.randn_like", return_value=d["last_noise"]):
                found["values"] = agent._estimate_value(z, d["sequences"], None)
        torch.manual_seed(SEED)
        terms = agent._update(d["obs"], d["action"], d["reward"], d["terminated"])
        names = ("consistency", "reward", "value", "termination", "total")
        found |= {name + "_loss": terms[name + "_loss"] for name in names}
    arrays = {name: value.detach().numpy() for name, value in found.items()}
    np.savez_compressed(FOLDER / "episodic.npz", **arrays)


if __name__ == "__main__":
    main()
