"""State dicts in the three public layouts, made from tensors under this project's names."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NETS = {
    "encoder": "_encoder.state",
    "dynamics": "_dynamics",
    "reward_head": "_reward",
    "termination_head": "_termination",
    "policy_head": "_pi",
}
SLOTS = ["weight", "bias", "norm.weight", "norm.bias"]


def layout_a(native: Mapping[str, Tensor]) -> dict[str, object]:
    """Name the tensors as functorch's ensembles did, by running numbers."""
    entries: dict[str, object] = {}
    for name, tensor in native.items():
        net, _, rest = name.partition(".")
        if net in NETS:
            entries[f"{NETS[net]}.{rest.replace('norm', 'ln')}"] = tensor
        elif net == "task_embedding":
            entries["_task_emb.weight"] = tensor
        else:
            layer, _, kind = rest.partition(".")
            public = "_Qs" if net == "q_ensemble" else "_target_Qs"
            entries[f"{public}.params.{4 * int(layer) + SLOTS.index(kind)}"] = tensor
    return entries


def layout_b(native: Mapping[str, Tensor], widths: Sequence[int] | None) -> dict[str, object]:
    """Name the tensors as tensordict's ensembles do, with what else such files hold."""
    entries = {k: v for k, v in layout_a(native).items() if "Qs" not in k}
    publics = {"q_ensemble": "_Qs.params", "target_q_ensemble": "_target_Qs_params"}
    for name, tensor in native.items():
        net, _, rest = name.partition(".")
        if net in publics:
            entries[f"{publics[net]}.{rest.replace('norm', 'ln')}"] = tensor
        if net == "q_ensemble":
            entries[f"_detach_Qs_params.{rest.replace('norm', 'ln')}"] = tensor
    for public in (*publics.values(), "_detach_Qs_params"):
        entries[f"{public}.__batch_size"] = torch.Size([4])
        entries[f"{public}.__device"] = torch.device("cpu")
    entries["log_std_min"], entries["log_std_dif"] = torch.tensor(-10.0), torch.tensor(12.0)
    if widths:
        rows = [[1.0] * width + [0.0] * (max(widths) - width) for width in widths]
        entries["_action_masks"] = torch.tensor(rows)
    return entries


def layout_c(native: Mapping[str, Tensor]) -> dict[str, object]:
    """Name the tensors as threads on the early single-task files list them."""
    entries = {k: v for k, v in layout_a(native).items() if "Qs" in k}
    layers = sum(name.startswith("encoder.") and name.count(".") == 2 for name in native) // 2
    steps = range(1, 3 * layers, 3)
    positions = {
        "encoder": (
            "_encoder.state",
            [str(step) for step in steps],
            [str(step + 1) for step in steps],
        ),
        "dynamics": ("_dynamics", ["0.0", "0.3", "0.6"], ["0.1", "0.4", "1"]),
        "reward_head": ("_reward", ["0", "3", "6"], ["1", "4"]),
        "termination_head": ("_termination", ["0", "3", "6"], ["1", "4"]),
        "policy_head": ("_pi", ["0", "3", "6"], ["1", "4"]),
    }
    for name, tensor in native.items():
        net, layer, *kind = name.split(".")
        if net in positions:
            public, linears, norms = positions[net]
            module = (norms if kind[0] == "norm" else linears)[int(layer)]
            entries[f"{public}.{module}.{kind[-1]}"] = tensor
    return entries
