/** How finely to draw, so that a slow machine draws smoothly rather than sharply. */

const LEVELS = [1, 0.75, 0.5];
const SLOW_MS = 30;
const PATIENCE = 20; // frames
const LONGEST_MS = 1500; // of patience: who draws two frames a second shall not wait ten seconds
const FEWEST = 3;
const HIDDEN_MS = 2000; // a page that was out of sight, not a slow one

/** Watches the time between frames and gives up detail while they come too slowly. */
export class Detail {
  private level: number;
  private readonly times: number[] = [];

  /** @param least Start without what a processor alone draws too slowly. */
  constructor(least = false) {
    this.level = least ? LEVELS.length : 0;
  }

  /** Share of the screen's pixels along each side. */
  get scale(): number {
    return LEVELS[Math.min(this.level, LEVELS.length - 1)] as number;
  }

  /** Whether shadows are drawn; they go last. */
  get shadows(): boolean {
    return this.level < LEVELS.length;
  }

  /** Note the time since the last frame. */
  note(milliseconds: number): void {
    if (this.level >= LEVELS.length || milliseconds > HIDDEN_MS) return;
    this.times.push(milliseconds);
    const count = this.times.length;
    const waited = this.times.reduce((sum, time) => sum + time, 0);
    if (count < PATIENCE && (count < FEWEST || waited < LONGEST_MS)) return;
    const median = [...this.times].sort((a, b) => a - b)[count >> 1] as number;
    if (median > SLOW_MS) this.level += 1;
    this.times.length = 0;
  }
}
