/** Tokens of the fake server: legible, dated, and signed by the name of a key. */
import { Refused } from './fields.js';
import { isNewName } from './names.js';

/** What a token says. */
export interface Claims {
  user: string;
  /** When it ends, and how long it was made for. */
  exp: number;
  ttlMs: number;
}

const SHAPE = /^fake\.([^.]+)\.(\d+)\.(-?\d+)\.(\w+)$/;
/** The key that the fake server goes by. */
export const KEY = 'key1';

/** A token of `user` for `ttlMs` from `now`, signed by `key`. */
export function makeToken(user: string, now: number, ttlMs: number, key: string): string {
  return `fake.${encodeURIComponent(user).replaceAll('.', '%2E')}.${now + ttlMs}.${ttlMs}.${key}`;
}

/** What it says; throws what a server answers to one that it does not take. `isKnown`: that user was here before. */
export function checkToken(token: string, now: number, ttlMaxMs: number, isKnown: (user: string) => boolean): Claims {
  const parts = SHAPE.exec(token);
  const [, name = '', exp, ttlMs, key] = parts ?? [];
  if (parts === null || key !== KEY || Number(ttlMs) > ttlMaxMs) throw new Refused('unauthorized');
  const user = decoded(name);
  if (!isKnown(user) && !isNewName(user)) throw new Refused('unauthorized');
  if (Number(exp) <= now) throw new Refused('token_expired');
  return { user, exp: Number(exp), ttlMs: Number(ttlMs) };
}

function decoded(name: string): string {
  try {
    return decodeURIComponent(name);
  } catch {
    return '';
  }
}
