/** NumPy's legacy `RandomState`, so that a seed means the same start here and in Python. */

const LENGTH = 624;
const SHIFT = 397;

/** The Mersenne Twister with NumPy's ways to draw uniform and normal numbers. */
export class RandomState {
  private readonly state = new Uint32Array(LENGTH);
  private used = LENGTH;
  private spare: number | undefined;

  /** @param seed Integer from 0 to 2^32 - 1. */
  constructor(seed: number) {
    this.state[0] = seed >>> 0;
    for (let i = 1; i < LENGTH; i++) {
      const last = this.at(i - 1) ^ (this.at(i - 1) >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
  }

  /** Return a number in [low, high). */
  uniform(low = 0, high = 1): number {
    const upper = this.next() >>> 5;
    const lower = this.next() >>> 6;
    return low + ((high - low) * (upper * 67108864 + lower)) / 9007199254740992;
  }

  /** Return a standard normal number, by the polar method. */
  normal(): number {
    if (this.spare !== undefined) {
      const kept = this.spare;
      this.spare = undefined;
      return kept;
    }
    for (;;) {
      const x = this.uniform(-1, 1);
      const y = this.uniform(-1, 1);
      const square = x * x + y * y;
      if (square > 0 && square < 1) {
        const scale = Math.sqrt((-2 * Math.log(square)) / square);
        this.spare = scale * x;
        return scale * y;
      }
    }
  }

  private at(index: number): number {
    return this.state[index] as number;
  }

  private next(): number {
    if (this.used === LENGTH) this.refill();
    let y = this.at(this.used++);
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private refill(): void {
    for (let i = 0; i < LENGTH; i++) {
      const y = (this.at(i) & 0x80000000) | (this.at((i + 1) % LENGTH) & 0x7fffffff);
      this.state[i] = this.at((i + SHIFT) % LENGTH) ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.used = 0;
  }
}
