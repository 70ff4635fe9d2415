"""Act with the bundled teacher in one of its tasks."""

import tdmpc_opt

agent = tdmpc_opt.load_agent("demo-teacher", mode="policy")
env = tdmpc_opt.make_env("cup-catch", seed=0)
obs, _ = env.reset()
total, done = 0.0, False
while not done:
    obs, reward, _, done, _ = env.step(agent.act(obs, "cup-catch"))
    total += reward
print(f"return {total:.0f} of 1000")
