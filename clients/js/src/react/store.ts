/**
 * A store of the client in a component.
 *
 * A server, and a page that takes over what a server made, know nothing yet: both render `empty`, so that they agree.
 * What is there already follows in the first render after that.
 */

import { useSyncExternalStore } from 'react';
import type { Readable } from '../topic.js';

/** The snapshot, or what `select` takes of it: the component renders again when that is another value. */
export function useStore<T>(store: Readable<T>, empty: T): T;
export function useStore<T, Part>(store: Readable<T>, empty: T, select: ((value: T) => Part) | undefined): T | Part;
export function useStore<T, Part>(store: Readable<T>, empty: T, select?: (value: T) => Part): T | Part {
  const of = (value: T) => (select ? select(value) : value);
  return useSyncExternalStore<T | Part>(
    store.subscribe,
    () => of(store.getSnapshot()),
    () => of(empty),
  );
}
