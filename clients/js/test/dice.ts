/** Randomness that can be thrown again: a failure names its seed, and `SEED=n` throws that one alone. */

/** Numbers of one seed. */
export interface Dice {
  random(): number;
  /** A whole number below `n`. */
  below(n: number): number;
  chance(p: number): boolean;
  pick<T>(list: readonly T[]): T;
}

/** mulberry32: the same seed gives the same numbers. */
export function dice(seed: number): Dice {
  let state = seed >>> 0;
  const random = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n: number): number => Math.floor(random() * n);
  return {
    random,
    below,
    chance: (p) => random() < p,
    pick: (list) => list[below(list.length)] as (typeof list)[number],
  };
}

/** Seeds to try: `SEED=n` tries that one alone, `TIMES=n` n times as many. */
export function seeds(count: number): number[] {
  const { SEED, TIMES = '1' } = process.env;
  if (SEED !== undefined) return [Number(SEED)];
  return Array.from({ length: count * Number(TIMES) }, () => Math.floor(Math.random() * 2 ** 31));
}

/** Runs with the dice of a seed; what it throws says which. */
export async function withSeed(seed: number, run: (dice: Dice) => unknown): Promise<void> {
  try {
    await run(dice(seed));
  } catch (error) {
    throw new Error(`SEED=${seed}: ${error}`, { cause: error });
  }
}
