import * as Comlink from "comlink";
import "./style.css";
import { fetchAgents } from "./agents/manifest";
import { PageError, reason } from "./errors";
import { Player } from "./player";
import { part } from "./ui/dom";
import { Panel } from "./ui/panel";
import { drawsInSoftware } from "./view/software";
import { Stage } from "./view/stage";
import { DARK, LIGHT } from "./view/theme";
import type { World } from "./world";

const base = document.baseURI;
const canvas = part("view", HTMLCanvasElement);
const keys = part("stage", HTMLDivElement);
const message = part("message", HTMLElement);

function report(error: unknown): void {
  part("message-text", HTMLElement).textContent = reason(error);
  message.hidden = false;
  document.body.classList.remove("loading");
}

function makeStage(software: boolean): Stage {
  try {
    return new Stage(canvas, software);
  } catch (error) {
    throw new PageError(
      "this browser cannot draw in 3D (WebGL); turn it on or try another",
      error,
    );
  }
}

function followTheme(stage: Stage): void {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => stage.paint(dark.matches ? DARK : LIGHT);
  dark.addEventListener("change", paint);
  paint();
}

function bindButtons(player: Player, stage: Stage, panel: Panel): void {
  const pause = part("pause", HTMLButtonElement);
  const togglePause = () => {
    player.paused = !player.paused;
    pause.textContent = player.paused ? "Play" : "Pause";
    pause.setAttribute("aria-pressed", String(player.paused));
  };
  const restart = () => void player.restart();
  pause.addEventListener("click", togglePause);
  part("restart", HTMLButtonElement).addEventListener("click", restart);
  part("reset-view", HTMLButtonElement).addEventListener("click", () => stage.resetView());
  part("dismiss", HTMLButtonElement).addEventListener("click", () => {
    message.hidden = true;
    keys.focus();
  });
  const commands: Record<string, () => void> = {
    " ": togglePause,
    r: restart,
    n: () => panel.nextTask(),
    v: () => stage.resetView(),
  };
  keys.addEventListener("keydown", (event) => {
    const act =
      event.ctrlKey || event.metaKey || event.altKey
        ? undefined
        : commands[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

async function main(): Promise<void> {
  // All that takes long starts at once: the physics, the list, and the drawing's own set-up.
  const worker = new Worker(new URL("./world.worker.ts", import.meta.url), { type: "module" });
  const Remote = Comlink.wrap<typeof World>(worker);
  const creating = new Remote(base);
  const starting = creating.then((world) => world.start());
  const listing = fetchAgents(base);
  for (const early of [starting, listing]) early.catch(() => undefined); // awaited below
  const software = drawsInSoftware();
  const stage = makeStage(software);
  followTheme(stage);
  const [world, agents] = await Promise.all([creating, listing]);
  const asked = new URLSearchParams(location.search);
  const chosen = Number.parseInt(asked.get("seed") ?? "", 10);
  const seed = chosen >= 0 ? chosen : Math.floor(Math.random() * 2 ** 31);
  let player: Player | undefined;
  const panel = new Panel(agents, {
    task: (name) => void player?.open(name, seed),
    actor: (actor) => void player?.employ(actor),
  });
  const unknown = panel.begin(asked.get("task"), asked.get("agent"));
  if (unknown.length > 0)
    report(`the address asks for ${unknown.join(" and ")}, not known here`);
  player = new Player(world, stage, panel, report, canvas, software);
  bindButtons(player, stage, panel);
  await Promise.all([starting, player.employ(panel.actor)]);
  await player.open(panel.taskName, seed);
  document.body.classList.remove("loading");
  if (document.activeElement === document.body) keys.focus({ preventScroll: true });
  // For the console and for tests: what the chosen agent earns, as fast as it can be computed.
  Object.assign(window, { tdmpcPlay: { earn: player.earn.bind(player) } });
}

main().catch(report);
