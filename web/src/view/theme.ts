/** Colours of the drawing; the page's own are in its style sheet. */

/** Colours of one look. */
export interface Theme {
  ground: number;
  line: number;
  sun: number;
  fill: number;
}

export const DARK: Theme = {
  ground: 0x182031,
  line: 0x2c3a55,
  sun: 2.6,
  fill: 1.1,
};
export const LIGHT: Theme = {
  ground: 0xe3e9f1,
  line: 0xc6d1df,
  sun: 2.4,
  fill: 1.7,
};

/** Colours of the models' materials, by dm_control's own; others stay as they are. */
export const MATERIALS: Record<string, number> = {
  "0.7,0.5,0.3": 0xf0a04b, // self
  "0.7,0.4,0.2": 0xe4572e, // effector
  "0.3,0.5,0.7": 0x5b7ea8, // decoration
  "0.6,0.3,0.3": 0x2fbf9b, // target
};
