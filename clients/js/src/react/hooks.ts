/** The smaller hooks: the line, sending, and who is there. */

import { useCallback, useEffect } from 'react';
import type { SendOptions } from '../composer.js';
import type { Line } from '../dial.js';
import type { UserId } from '../options.js';
import type { Sending } from '../sending.js';
import type { PresenceView } from '../views.js';
import { useChat } from './provider.js';
import { useStore } from './store.js';
import { watch } from './watching.js';

const NO_LINE: Line = { state: 'stopped', reason: '', retryAt: 0 };

/** The state of the line. */
export function useConnection(): Line {
  return useStore(useChat().stores.line, NO_LINE);
}

/** Sends to `peer`; the same function as long as that is the same. Taken at once, offline too. */
export function useSend(peer: UserId): (body: string, options?: SendOptions) => Sending {
  const client = useChat();
  return useCallback((body, options) => client.send(peer, body, options), [client, peer]);
}

/**
 * Whether somebody is there; null where that is not known. It puts the user on the client's watch list as long as a
 * component shows them: who uses this does not call `client.watch` as well.
 */
export function usePresence(user: UserId): PresenceView | null {
  const client = useChat();
  useEffect(() => watch(client, user), [client, user]);
  return useStore<PresenceView | null>(client.stores.presence(user), null);
}

/** Whether `peer` is typing, and what to call at each key of this user's. */
export function useTyping(peer: UserId): readonly [isTyping: boolean, sayTyping: () => void] {
  const client = useChat();
  const isTyping = useStore(client.stores.typing(peer), false);
  const sayTyping = useCallback(() => client.typing(peer), [client, peer]);
  return [isTyping, sayTyping];
}
