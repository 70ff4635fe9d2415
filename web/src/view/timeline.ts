/** Plays frames at the time they belong to, however unevenly they arrive. */

import type { Chunk } from "../physics/frames";

/** A queue of chunks, and how far the playing has come. */
export class Timeline {
  private readonly queue: Chunk[] = [];
  private played = 0;
  private last: Float32Array | undefined;

  /** Seconds of frames that are still to be played. */
  get ahead(): number {
    return this.queue.reduce((sum, chunk) => sum + chunk.seconds, 0) - this.played;
  }

  /** Add a chunk; one that lasts no time is an episode's start. */
  push(chunk: Chunk): void {
    this.queue.push(chunk);
  }

  /** Forget what was not played, before another episode or task. */
  clear(): void {
    this.queue.length = 0;
    this.played = 0;
    this.last = undefined;
  }

  /**
   * Go on by this time, and no further than there are frames.
   *
   * @param begun Called with each chunk when its time begins.
   * @returns The frame to draw, or undefined before the first.
   */
  advance(seconds: number, begun: (chunk: Chunk) => void): Float32Array | undefined {
    let left = seconds;
    for (let chunk = this.queue[0]; chunk; chunk = this.queue[0]) {
      if (this.played === 0) begun(chunk);
      const used = Math.min(left, chunk.seconds - this.played);
      this.played += used;
      left -= used;
      if (this.played < chunk.seconds - 1e-9) {
        // A chunk that has begun is never exactly at its start, or it would begin again.
        this.played = Math.max(this.played, 1e-9);
        return this.between(chunk);
      }
      this.last = frameAt(chunk, chunk.times.length - 1);
      this.queue.shift();
      this.played = 0;
    }
    return this.last;
  }

  private between(chunk: Chunk): Float32Array {
    const next = chunk.times.findIndex((time) => time > this.played);
    const to = frameAt(chunk, next);
    const from = next > 0 ? frameAt(chunk, next - 1) : this.last;
    if (!from || from.length !== to.length) return to;
    const start = next > 0 ? (chunk.times[next - 1] as number) : 0;
    const share = (this.played - start) / ((chunk.times[next] as number) - start);
    return to.map((value, i) => (1 - share) * (from[i] as number) + share * value);
  }
}

function frameAt(chunk: Chunk, index: number): Float32Array {
  const length = chunk.frames.length / chunk.times.length;
  return chunk.frames.subarray(index * length, (index + 1) * length);
}
