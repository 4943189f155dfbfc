/**
 * Who is online in the fake server (section 7 of docs/protocol.md): all devices of a user make one status, which is
 * shown to who watches them and has a conversation with them that both have sent in. Pushes are not coalesced.
 */
import type { Status } from '../generated/frames.js';

/** Where somebody is. */
export type Place = 'online' | 'away' | 'offline';

interface Told {
  state: Place;
  v: number;
  seen: number | undefined;
}

/** The statuses of all users. */
export class Statuses {
  readonly #told = new Map<string, Told>();
  #v = 0;

  /** By the states of a user's devices; whether that changed anything. `seen`: when the last of them went. */
  update(user: string, devices: ReadonlyArray<'online' | 'away'>, seen: number): boolean {
    const state: Place = devices.includes('online') ? 'online' : devices.length > 0 ? 'away' : 'offline';
    const before = this.#told.get(user)?.state ?? 'offline';
    if (state === before) return false;
    this.#v += 1;
    this.#told.set(user, { state, v: this.#v, seen: state === 'offline' ? seen : undefined });
    return true;
  }

  /** As somebody sees it who may. */
  of(user: string): Status {
    const { state, v, seen } = this.#told.get(user) ?? { state: 'offline', v: 1, seen: undefined };
    return { user, state, v, ...(seen === undefined ? {} : { seen }) };
  }

  /** As somebody sees it who may not. */
  static hidden(user: string): Status {
    return { user, state: 'hidden', v: 0 };
  }
}
