/** The loop: asks the worker for actions in time, plays and draws what they lead to. */

import type * as Comlink from "comlink";
import type { Chunk, SceneDescription } from "./physics/frames";
import { HandInput } from "./ui/hand";
import { Meters } from "./ui/meters";
import type { Panel } from "./ui/panel";
import { Detail } from "./view/detail";
import type { Stage } from "./view/stage";
import { Timeline } from "./view/timeline";
import type { Actor, Influence, World } from "./world";

const LONGEST_FRAME = 0.1; // seconds; a page that was hidden does not catch up
const LEAD = 0.04; // seconds kept ready, so that one late action of a fast task is not seen

/** Everything that runs while the page is open. */
export class Player {
  paused = false;
  private readonly timeline = new Timeline();
  private readonly meters = new Meters();
  private readonly detail: Detail;
  private readonly hand: HandInput;
  private scene: SceneDescription | undefined;
  private asked = false;
  private halted = false;
  private generation = 0;
  private before = performance.now();

  constructor(
    private readonly world: Comlink.Remote<World>,
    private readonly stage: Stage,
    private readonly panel: Panel,
    private readonly report: (error: unknown) => void,
    canvas: HTMLCanvasElement,
    software: boolean,
  ) {
    this.detail = new Detail(software);
    this.hand = new HandInput(canvas, stage);
    requestAnimationFrame((now) => this.frame(now));
  }

  /** Show another task. */
  async open(task: string, seed: number): Promise<void> {
    await this.anew(async () => {
      const scene = await this.world.open(task, seed);
      this.scene = scene;
      this.stage.show(scene);
      this.panel.allowGravity(scene.gravity);
      this.meters.begin(1 / scene.stepSeconds);
      this.timeline.push(await this.world.look());
    });
  }

  /** Let another one act, in an episode of its own. */
  async employ(actor: Actor): Promise<void> {
    await this.anew(async () => {
      await this.world.employ(actor);
      if (this.scene) this.meters.begin(1 / this.scene.stepSeconds);
      if (this.scene) this.timeline.push(await this.world.restart());
    });
  }

  /** Start another episode. */
  async restart(): Promise<void> {
    await this.anew(async () => this.timeline.push(await this.world.restart()));
  }

  /** Return what the chosen agent earns in simulated seconds from a seed's first start. */
  async earn(seed: number, seconds: number): Promise<number> {
    let earned = Number.NaN;
    await this.anew(async () => {
      await this.world.open(this.panel.taskName, seed);
      earned = await this.world.earn(seconds);
    });
    return earned;
  }

  private async anew(change: () => Promise<unknown>): Promise<void> {
    const mine = ++this.generation;
    this.halted = true;
    this.hand.letGo();
    this.timeline.clear();
    try {
      await change();
      if (mine === this.generation) this.halted = false;
    } catch (error) {
      this.report(error);
    }
  }

  private frame(now: number): void {
    requestAnimationFrame((next) => this.frame(next));
    const seconds = Math.min((now - this.before) / 1000, LONGEST_FRAME);
    const taken = now - this.before;
    this.before = now;
    if (!this.scene) return; // drawing nothing would only slow the loading down
    this.detail.note(taken);
    this.ask();
    const played = this.paused ? 0 : seconds * this.panel.speed;
    const frame = this.timeline.advance(played, (chunk) => this.meters.take(chunk, now));
    if (frame) this.stage.place(frame);
    this.hand.draw();
    this.stage.render(this.detail);
    this.meters.tick(now);
  }

  /** Ask for the next action when less than one, or than the lead, is left to play. */
  private ask(): void {
    if (this.asked || this.halted || this.paused || !this.scene) return;
    if (this.timeline.ahead >= Math.max(this.scene.stepSeconds, LEAD)) return;
    this.asked = true;
    const mine = this.generation;
    void this.world
      .advance(this.influence())
      .then((chunk: Chunk) => {
        if (mine === this.generation) this.timeline.push(chunk);
      })
      .catch((error: unknown) => {
        this.halted = true;
        this.report(error);
      })
      .finally(() => {
        this.asked = false;
      });
  }

  private influence(): Influence {
    const { pull, push } = this.hand;
    const influence: Influence = { gravity: this.panel.gravity, noise: this.panel.noise };
    if (pull) influence.pull = pull;
    if (push) influence.push = push;
    return influence;
  }
}
