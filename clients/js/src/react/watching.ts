/**
 * Whose presence the components of a client show: their union is the client's watch list.
 *
 * Told once a microtask, so that a component that goes and one that comes in the same render are one change, and
 * StrictMode's second mount is none.
 */

import type { ChatClient } from '../client.js';
import type { UserId } from '../options.js';

interface Watched {
  /** User -> components that show them, whoever came last at the end. */
  readonly counts: Map<UserId, number>;
  told: string;
  isTelling: boolean;
}

const watchedBy = new WeakMap<ChatClient, Watched>();

/** From now on; gives what ends it. */
export function watch(client: ChatClient, user: UserId): () => void {
  const watched = watchedBy.get(client) ?? { counts: new Map(), told: '', isTelling: false };
  watchedBy.set(client, watched);
  count(client, watched, user, 1);
  return () => count(client, watched, user, -1);
}

function count(client: ChatClient, watched: Watched, user: UserId, step: 1 | -1): void {
  const { counts } = watched;
  const left = (counts.get(user) ?? 0) + step;
  if (step === 1) counts.delete(user);
  if (left > 0) counts.set(user, left);
  else counts.delete(user);
  if (watched.isTelling) return;
  watched.isTelling = true;
  queueMicrotask(() => {
    watched.isTelling = false;
    const users = [...counts.keys()].reverse(); // what was opened last matters most
    const told = [...users].sort().join('\n');
    if (told !== watched.told) client.watch(users);
    watched.told = told;
  });
}
