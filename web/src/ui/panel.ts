/** The controls: which task, who acts, and what disturbs them. */

import type { AgentEntry, AgentFile } from "../agents/manifest";
import { TASKS } from "../tasks";
import type { Actor } from "../world";
import { part } from "./dom";
import { ABOUT, DOMAINS, titleOf } from "./labels";

const HELPERS = [
  ["random", "Random actions"],
  ["none", "Nobody (motors off)"],
] as const;

/** What the page does when the visitor chooses. */
export interface Choices {
  task(name: string): void;
  actor(actor: Actor): void;
}

/** Menus and sliders, and what they say at this moment. */
export class Panel {
  private readonly task = part("task", HTMLSelectElement);
  private readonly agent = part("agent", HTMLSelectElement);
  private readonly mode = part("mode", HTMLFieldSetElement);
  private readonly precision = part("precision", HTMLFieldSetElement);
  private readonly gravitySlider = part("gravity", HTMLInputElement);
  private readonly noiseSlider = part("noise", HTMLInputElement);
  private readonly speedSlider = part("speed", HTMLInputElement);

  constructor(
    private readonly agents: AgentEntry[],
    private readonly choices: Choices,
  ) {
    this.listTasks();
    this.listAgents();
    this.agent.addEventListener("change", () => this.agentChanged());
    this.task.addEventListener("change", () => this.taskChanged());
    for (const group of [this.mode, this.precision]) {
      group.addEventListener("change", () => this.fileChanged());
    }
    const percent = (value: number) => `${Math.round(100 * value)}%`;
    output(this.gravitySlider, percent);
    output(this.noiseSlider, (value) => (value === 0 ? "none" : `±${value.toFixed(2)}`));
    output(this.speedSlider, (value) => `${value}×`);
  }

  get gravity(): number {
    return this.gravitySlider.disabled ? 1 : Number(this.gravitySlider.value);
  }

  get noise(): number {
    return Number(this.noiseSlider.value);
  }

  get speed(): number {
    return Number(this.speedSlider.value);
  }

  get taskName(): string {
    return this.task.value;
  }

  /** Who acts by the present choice. */
  get actor(): Actor {
    const entry = this.entry;
    if (!entry) return this.agent.value as "random" | "none";
    const mode = checked(this.mode);
    const precision = checked(this.precision);
    const files = entry.files.filter((file) => file.mode === mode);
    const file = files.find((candidate) => candidate.precision === precision) ?? files[0];
    return { entry, file: file as AgentFile };
  }

  /**
   * Choose what the address asks for, or the first agent's first task.
   *
   * @returns What it asks for and is not there.
   */
  begin(task: string | null, agent: string | null): string[] {
    const unknown: string[] = [];
    if (agent !== null && [...this.agent.options].some((option) => option.value === agent)) {
      this.agent.value = agent;
    } else if (agent !== null) unknown.push(`the agent ${agent}`);
    this.followAgent();
    if (task !== null && TASKS.has(task)) this.task.value = task;
    else if (task !== null) unknown.push(`the task ${task}`);
    this.followTask();
    return unknown;
  }

  /** Allow changing gravity where there is any. */
  allowGravity(there: boolean): void {
    this.gravitySlider.disabled = !there;
    part("gravity-note", HTMLElement).hidden = there;
  }

  /** Go to the next task that the agent knows. */
  nextTask(): void {
    const options = [...this.task.options].filter((option) => !option.disabled);
    const at = options.findIndex((option) => option.value === this.task.value);
    this.task.value = (options[(at + 1) % options.length] as HTMLOptionElement).value;
    this.taskChanged();
  }

  private get entry(): AgentEntry | undefined {
    return this.agents.find((entry) => entry.name === this.agent.value);
  }

  private listTasks(): void {
    for (const [domain, label] of Object.entries(DOMAINS)) {
      const group = document.createElement("optgroup");
      group.label = label;
      for (const name of TASKS.keys()) {
        if (name.startsWith(`${domain}-`))
          group.append(new Option(`${label}: ${titleOf(name)}`, name));
      }
      this.task.append(group);
    }
  }

  private listAgents(): void {
    for (const entry of this.agents) {
      const count = entry.tasks.length === 1 ? "1 task" : `${entry.tasks.length} tasks`;
      this.agent.append(new Option(`${entry.name} (${count})`, entry.name));
    }
    const others = document.createElement("optgroup");
    others.label = "Without an agent, all 30 tasks";
    others.append(...HELPERS.map(([value, label]) => new Option(label, value)));
    this.agent.append(others);
  }

  private agentChanged(): void {
    const before = this.task.value;
    this.followAgent();
    this.choices.actor(this.actor);
    if (this.task.value !== before) this.taskChanged();
  }

  private taskChanged(): void {
    this.followTask();
    this.choices.task(this.task.value);
  }

  private fileChanged(): void {
    this.followFiles();
    this.choices.actor(this.actor);
  }

  private followTask(): void {
    part("about", HTMLElement).textContent = ABOUT[this.task.value] ?? "";
    document.title = `${this.task.value} · tdmpc-opt play`;
  }

  /** Offer the agent's tasks and files, and leave a task that it has not learned. */
  private followAgent(): void {
    const { entry } = this;
    for (const option of this.task.options) {
      option.disabled = entry !== undefined && !entry.tasks.includes(option.value);
    }
    if (this.task.selectedOptions[0]?.disabled) {
      const known = entry?.tasks.find((name) => TASKS.has(name));
      if (known) this.task.value = known;
    }
    this.followFiles();
  }

  private followFiles(): void {
    const files = this.entry?.files ?? [];
    offer(
      this.mode,
      files.map((file) => file.mode),
    );
    const mode = checked(this.mode);
    offer(
      this.precision,
      files.filter((file) => file.mode === mode).map((file) => file.precision),
    );
  }
}

/** Enable the buttons of a group that have one of these values, and leave one of them checked. */
function offer(group: HTMLFieldSetElement, values: string[]): void {
  const buttons = [...group.querySelectorAll("input")];
  for (const button of buttons) button.disabled = !values.includes(button.value);
  const chosen = buttons.find((button) => button.checked && !button.disabled);
  const first = chosen ?? buttons.find((button) => !button.disabled);
  if (first) first.checked = true;
  group.disabled = values.length === 0;
}

function checked(group: HTMLFieldSetElement): string {
  return group.querySelector<HTMLInputElement>("input:checked")?.value ?? "";
}

/** Show a slider's value beside it. */
function output(slider: HTMLInputElement, text: (value: number) => string): void {
  const shown = part(`${slider.id}-value`, HTMLOutputElement);
  const show = () => {
    shown.value = text(Number(slider.value));
    slider.setAttribute("aria-valuetext", shown.value);
  };
  slider.addEventListener("input", show);
  show();
}
