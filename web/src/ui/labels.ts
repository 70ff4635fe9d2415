/** What the tasks are, in a line each. */

/** Groups of tasks by domain, in the order of the list. */
export const DOMAINS: Record<string, string> = {
  walker: "Walker",
  cheetah: "Cheetah",
  hopper: "Hopper",
  cartpole: "Cart-pole",
  pendulum: "Pendulum",
  acrobot: "Acrobot",
  cup: "Ball in cup",
  reacher: "Reacher",
  finger: "Finger",
  fish: "Fish",
};

/** What earns reward in each task. */
export const ABOUT: Record<string, string> = {
  "walker-stand": "Stand tall, with the torso upright.",
  "walker-walk": "Walk forward at 1 m/s or faster.",
  "walker-run": "Run forward at 8 m/s.",
  "walker-walk-backwards": "Walk backwards at 1 m/s or faster.",
  "walker-run-backwards": "Run backwards at 8 m/s.",
  "cheetah-run": "Run forward at 10 m/s.",
  "cheetah-run-backwards": "Run backwards at 8 m/s.",
  "cheetah-run-front": "Run on the front leg, with the hind foot in the air.",
  "cheetah-run-back": "Run on the hind leg, with the front foot in the air.",
  "cheetah-jump": "Jump high on the spot.",
  "hopper-stand": "Stand on the one leg, with little force.",
  "hopper-hop": "Hop forward at 2 m/s or faster.",
  "hopper-hop-backwards": "Hop backwards at 1 m/s or faster.",
  "cartpole-balance": "Keep the pole upright and the cart in the middle.",
  "cartpole-balance-sparse": "Balance the pole; reward only inside narrow bounds.",
  "cartpole-swingup": "Swing the hanging pole up and hold it.",
  "cartpole-swingup-sparse": "Swing the pole up; reward only inside narrow bounds.",
  "pendulum-swingup": "Swing up with a motor too weak to lift, and hold.",
  "pendulum-spin": "Spin fast, either way.",
  "acrobot-swingup": "Bring the tip to the target by moving the elbow alone.",
  "cup-catch": "Swing the ball into the cup.",
  "cup-spin": "Swing the ball around the cup, fast and far out.",
  "reacher-easy": "Bring the finger to the big target.",
  "reacher-hard": "Bring the finger to the small target.",
  "reacher-three-easy": "Reach the big target with three links.",
  "reacher-three-hard": "Reach the small target with three links.",
  "finger-spin": "Flick the body so that it keeps spinning.",
  "finger-turn-easy": "Turn the tip of the body onto the big target.",
  "finger-turn-hard": "Turn the tip of the body onto the small target.",
  "fish-swim": "Swim to the target.",
};

/** Return a task's name as the list shows it, such as `Run backwards`. */
export function titleOf(task: string): string {
  const words = task.slice(task.indexOf("-") + 1).replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
