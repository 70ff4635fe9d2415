/** dm_control's `utils.rewards.tolerance`, in the shapes that MT30 uses. */

/** How a reward falls off outside its interval. */
export type Falloff = "gaussian" | "linear" | "quadratic";

/** Settings of a tolerance; without a margin it is 0 outside. */
export interface Margin {
  margin?: number;
  atMargin?: number;
  falloff?: Falloff;
}

/**
 * Return 1 inside [low, high] and less outside.
 *
 * @param options `atMargin` is the value at the distance `margin` from the interval.
 */
export function tolerance(
  value: number,
  low: number,
  high: number,
  options: Margin = {},
): number {
  const { margin = 0, atMargin = 0.1, falloff = "gaussian" } = options;
  if (low <= value && value <= high) return 1;
  if (margin === 0) return 0;
  const distance = (value < low ? low - value : value - high) / margin;
  if (falloff === "gaussian") {
    const scale = Math.sqrt(-2 * Math.log(atMargin));
    return Math.exp(-0.5 * (distance * scale) ** 2);
  }
  const scaled = distance * (falloff === "linear" ? 1 - atMargin : Math.sqrt(1 - atMargin));
  if (Math.abs(scaled) >= 1) return 0;
  return 1 - (falloff === "linear" ? scaled : scaled ** 2);
}

/** Return 1 from `bound` up and, by a straight line, `atMargin` at `margin` below it. */
export function atLeast(
  value: number,
  bound: number,
  margin: number,
  atMargin: number,
): number {
  return tolerance(value, bound, Infinity, { margin, atMargin, falloff: "linear" });
}

/** Return 1 from `bound` up, with a soft edge of half the bound below. */
export function above(value: number, bound: number): number {
  return tolerance(value, bound, Infinity, { margin: bound / 2 });
}
