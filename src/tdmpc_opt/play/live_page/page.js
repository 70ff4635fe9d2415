// The page of `tdmpc-opt play --tasks`: shows what the server streams, and sends what a user asks for.

const SHOWN = 200; // rewards in the chart
const at = (id) => document.getElementById(id);
let rewards = [];
let paused = false;

function show(state) {
  fill(at("task"), state.tasks, state.task);
  fill(at("agent"), state.agents, state.agent);
  if (state.steps <= state.rewards.length) rewards = []; // a new episode
  rewards = rewards.concat(state.rewards).slice(-SHOWN);
  paused = state.paused;
  at("picture").src = `data:image/jpeg;base64,${state.picture}`;
  at("reward").textContent = rewards.length ? rewards.at(-1).toFixed(3) : "–";
  at("return").textContent = state.return.toFixed(1);
  at("step").textContent = `${state.steps} of at most ${state.most_steps}`;
  at("latency").textContent = state.latency_ms === null ? "–" : `${state.latency_ms.toFixed(2)} ms`;
  const rate = state.rate === null ? "–" : state.rate.toFixed(1);
  at("rate").textContent = `${rate} of ${+state.wanted_rate.toFixed(1)}`;
  const last = state.last;
  at("last").textContent = last
    ? `${last.return.toFixed(1)} in ${last.steps} steps, ${last.why}`
    : "–";
  at("pause").textContent = paused ? "Go on" : "Pause";
  at("pause").setAttribute("aria-pressed", paused);
  at("noise-value").textContent = state.noise;
  if (document.activeElement !== at("noise")) at("noise").value = state.noise;
  at("push").disabled = !state.pushable;
  document.title = `${state.task} · tdmpc-opt play`;
  draw();
}

function fill(select, names, chosen) {
  if (!select.options.length) select.append(...names.map((name) => new Option(name, name)));
  if (document.activeElement !== select) select.value = chosen;
}

function draw() {
  const canvas = at("chart");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  at("range").textContent = "";
  if (rewards.length < 2) return;
  const low = Math.min(0, ...rewards);
  const high = Math.max(...rewards, low + 1e-9);
  at("range").textContent = `${rewards.length} rewards, axis ${low.toPrecision(3)} to ${high.toPrecision(3)}`;
  context.strokeStyle = getComputedStyle(canvas).color;
  context.lineWidth = 3;
  context.beginPath();
  for (const [index, reward] of rewards.entries()) {
    const x = (index / (SHOWN - 1)) * canvas.width;
    context.lineTo(x, 2 + (1 - (reward - low) / (high - low)) * (canvas.height - 4));
  }
  context.stroke();
}

function say(text, fault = false) {
  at("message").textContent = text;
  at("message").classList.toggle("fault", fault);
}

async function ask(wish) {
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch("control", { method: "POST", headers, body: JSON.stringify(wish) });
    say(answer.ok ? "" : `The server refused this (status ${answer.status}).`, !answer.ok);
  } catch {
    say("The server did not answer.", true);
  }
}

const events = new EventSource("events");
events.onopen = () => say("");
events.onmessage = ({ data }) => show(JSON.parse(data));
events.onerror = () => {
  say(
    events.readyState === EventSource.CLOSED
      ? "The server serves no more pages at a time: close another one and reload this one."
      : "No connection to tdmpc-opt play: see the terminal in which it runs.",
    true,
  );
};

at("task").onchange = (event) => ask({ task: event.target.value });
at("agent").onchange = (event) => ask({ agent: event.target.value });
at("noise").oninput = (event) => ask({ noise: Number(event.target.value) });
at("pause").onclick = () => ask({ paused: !paused });
at("restart").onclick = () => ask({ restart: true });
for (const button of document.querySelectorAll("[data-push]")) {
  button.onclick = () => ask({ push: JSON.parse(button.dataset.push) });
}
