"""Store an agent in fp16: whole, its policy, and its policy of one task."""

from dataclasses import replace
from pathlib import Path

from tdmpc_opt.compression.quantize import quantize
from tdmpc_opt.configs.deploy import QuantizeConfig

OUTPUT = Path("example-output")

whole = QuantizeConfig(checkpoint="demo-teacher", output=OUTPUT / "agent.safetensors")
policy = replace(whole, output=OUTPUT / "policy.safetensors", policy_only=True)
task = replace(policy, output=OUTPUT / "cup-catch.safetensors", task="cup-catch")
for config in (whole, policy, task):
    report = quantize(config)
    print(f"{report.output}: {report.parameters:,} parameters, {report.output_bytes:,} bytes")
