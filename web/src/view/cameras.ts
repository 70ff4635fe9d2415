/** Where the camera stands at first, for each model. */

/** A camera that looks at a point; lengths in metres, angles in degrees. */
export interface View {
  /** What it looks at; with `follow`, relative to the body on the ground. */
  target: [number, number, number];
  distance: number;
  /** Around the vertical axis; 0 looks along +y. */
  azimuth: number;
  elevation: number;
  /** Whether it goes along with the body. */
  follow: boolean;
}

const DEFAULT: View = {
  target: [0, 0, 0.5],
  distance: 3,
  azimuth: -20,
  elevation: 15,
  follow: false,
};

const VIEWS: Record<string, Partial<View>> = {
  walker: { target: [0.2, 0, 0.85], distance: 4.2, follow: true },
  cheetah: { target: [0.2, 0, 0.55], distance: 3.6, follow: true },
  hopper: { target: [0.2, 0, 0.7], distance: 3.6, follow: true },
  fish: { target: [0, 0, 0.15], distance: 1.3, azimuth: -25, elevation: 35 },
  reacher: { target: [0, 0, 0], distance: 0.95, azimuth: 0, elevation: 70 },
  reacher_three: { target: [0, 0, 0], distance: 0.95, azimuth: 0, elevation: 70 },
  acrobot: { target: [0, 0, 2.1], distance: 6.6, elevation: 6 },
  pendulum: { target: [0, 0, 0.6], distance: 2.2, elevation: 12 },
  cartpole: { target: [0, 0, 1.15], distance: 4.4, elevation: 12 },
  ball_in_cup: { target: [0, 0, 0.42], distance: 1.25, elevation: 10 },
  finger: { target: [0, 0, 0.38], distance: 1.5, elevation: 14 },
};

/** Return the first view of a model. */
export function viewOf(model: string): View {
  return { ...DEFAULT, ...VIEWS[model] };
}
