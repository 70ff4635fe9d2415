/** The numbers over the drawing: reward, return, latency and rates. */

import type { Chunk } from "../physics/frames";
import { EPISODE_STEPS } from "../tasks";
import { part } from "./dom";

const SHOWN_STEPS = 150;
const REFRESH_MS = 200;
const FULL_REWARD = 2; // two control steps of at most 1 each

/** Takes what happens and shows it a few times a second. */
export class Meters {
  private readonly chart = part("chart", HTMLCanvasElement);
  private rewards: number[] = [];
  private latencies: number[] = [];
  private steps: number[] = [];
  private frames: number[] = [];
  private shown = 0;
  private last: Chunk | undefined;

  /** @param target Actions per second that the task asks for. */
  begin(target: number): void {
    this.latencies = [];
    this.steps = [];
    part("hz-target", HTMLElement).textContent = `of ${Number(target.toFixed(1))} Hz`;
    this.clear();
  }

  /** Start the curve again, with an episode. */
  clear(): void {
    this.rewards = [];
    this.last = undefined;
    this.shown = 0;
  }

  /** Take in what an action led to. */
  take(chunk: Chunk, now: number): void {
    if (chunk.seconds === 0) {
      this.clear();
      return;
    }
    this.last = chunk;
    this.rewards.push(chunk.reward / FULL_REWARD);
    if (this.rewards.length > SHOWN_STEPS) this.rewards.shift();
    this.latencies.push(chunk.latencyMs);
    if (this.latencies.length > 30) this.latencies.shift();
    this.steps.push(now);
  }

  /** Count a drawn frame, and show the numbers when it is time. */
  tick(now: number): void {
    this.frames.push(now);
    if (now - this.shown < REFRESH_MS) return;
    this.shown = now;
    recent(this.frames, now);
    recent(this.steps, now);
    const { last } = this;
    say("return", (last?.return ?? 0).toFixed(last && last.return < 100 ? 1 : 0));
    say("step", `step ${last?.step ?? 0} of ${EPISODE_STEPS}`);
    say("reward", `${Math.round((100 * (last?.reward ?? 0)) / FULL_REWARD)}%`);
    const latency = [...this.latencies].sort((a, b) => a - b)[this.latencies.length >> 1];
    say("latency", latency === undefined ? "–" : latency.toFixed(latency < 10 ? 2 : 0));
    say("hz", rate(this.steps));
    say("fps", `${rate(this.frames)} frames/s`);
    this.draw();
  }

  private draw(): void {
    const ratio = Math.min(window.devicePixelRatio, 2);
    const { clientWidth: width, clientHeight: height } = this.chart;
    this.chart.width = width * ratio;
    this.chart.height = height * ratio;
    const pen = this.chart.getContext("2d");
    if (!pen || this.rewards.length < 2) return;
    const colour = getComputedStyle(this.chart).color;
    pen.scale(ratio, ratio);
    pen.beginPath();
    this.rewards.forEach((reward, i) => {
      const x = width * (1 - (this.rewards.length - 1 - i) / (SHOWN_STEPS - 1));
      pen.lineTo(x, height - 2 - reward * (height - 4));
    });
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.stroke();
    const first = width * (1 - (this.rewards.length - 1) / (SHOWN_STEPS - 1));
    pen.lineTo(width, height);
    pen.lineTo(first, height);
    pen.globalAlpha = 0.15;
    pen.fillStyle = colour;
    pen.fill();
  }
}

const WINDOW_MS = 2000;

function recent(times: number[], now: number): void {
  while (times.length > 1 && now - (times[0] as number) > WINDOW_MS) times.shift();
}

function rate(times: number[]): string {
  const [first, last] = [times[0], times.at(-1)];
  if (first === undefined || last === undefined || last <= first) return "–";
  return ((1000 * (times.length - 1)) / (last - first)).toFixed(0);
}

function say(id: string, text: string): void {
  const element = part(id, HTMLElement);
  if (element.textContent !== text) element.textContent = text;
}
