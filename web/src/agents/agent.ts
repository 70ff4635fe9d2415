/** What acts: an exported network, random motors, or none. */

/** Chooses actions in [-1, 1] from observations. */
export interface Agent {
  /** Forget what the last episode left. */
  reset(): void;
  /**
   * @param observation Unpadded observation of the task.
   * @param task The task's name.
   * @param actions How many motors the task has.
   */
  act(observation: number[], task: string, actions: number): Promise<Float32Array>;
  /** Free what it holds. */
  dispose(): Promise<void>;
}

/** Acts without a network, for a look at every task. */
export class Motors implements Agent {
  /** @param force 1 for random forces, 0 for none. */
  constructor(private readonly force: 0 | 1) {}

  reset(): void {}

  async act(_observation: number[], _task: string, actions: number): Promise<Float32Array> {
    return Float32Array.from({ length: actions }, () => this.force * (2 * Math.random() - 1));
  }

  async dispose(): Promise<void> {}
}
