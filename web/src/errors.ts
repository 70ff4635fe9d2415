/** Errors that the page shows to the visitor. */

/** What went wrong, in one sentence that a visitor can act on. */
export class PageError extends Error {
  /**
   * @param message What the page shows.
   * @param cause What a library threw.
   */
  constructor(message: string, cause?: unknown) {
    super(cause === undefined ? message : `${message}: ${reason(cause)}`);
    this.name = "PageError";
  }
}

/** Return one line of whatever was thrown. */
export function reason(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return (text.split("\n")[0] ?? text).slice(0, 300);
}
