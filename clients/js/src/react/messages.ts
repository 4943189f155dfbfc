/** The messages of one conversation, and more of them on demand. */

import { useCallback, useEffect, useMemo } from 'react';
import type { ChatClient } from '../client.js';
import { ChatError } from '../errors.js';
import type { UserId } from '../options.js';
import type { MessagesView } from '../views.js';
import { useChat } from './provider.js';
import { useStore } from './store.js';

/** Where the server does not name a time. */
const RETRY_MS = 1000;

export interface MessagesHook extends MessagesView {
  /** Gets a page of older messages. Resolves when it is there; rejects while not online. */
  readonly loadOlder: () => Promise<void>;
  /** The same towards the end of the log, for a view that `hasNewer`. */
  readonly loadNewer: () => Promise<void>;
}

/** The messages with `peer`. The newest are fetched by themselves where none is held. */
export function useMessages(peer: UserId): MessagesHook {
  const client = useChat();
  const empty = useMemo(() => emptyView(peer), [peer]);
  const view = useStore(client.stores.messages(peer), empty);
  const loadOlder = useCallback(() => client.load(peer, 'older'), [client, peer]);
  const loadNewer = useCallback(() => client.load(peer, 'newer'), [client, peer]);
  const isBlank = view.hasOlder && view.messages.every(({ seq }) => seq === null);
  useEffect(() => (isBlank ? loadWhenOnline(client, loadOlder) : undefined), [client, loadOlder, isBlank]);
  return useMemo(() => ({ ...view, loadOlder, loadNewer }), [view, loadOlder, loadNewer]);
}

/** Asks as soon as the line is there, and again after a refusal that passes. Gives what ends that. */
function loadWhenOnline(client: ChatClient, load: () => Promise<void>): () => void {
  const { line } = client.stores;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const ask = () => {
    clearTimeout(timer);
    if (line.getSnapshot().state !== 'online') return;
    load().catch((error: unknown) => {
      const wait = error instanceof ChatError ? error.retryMs : null;
      if (!isOver && wait !== null) timer = setTimeout(ask, Math.max(wait, RETRY_MS));
    });
  };
  let isOver = false;
  const leave = line.subscribe(ask);
  ask();
  return () => {
    isOver = true;
    clearTimeout(timer);
    leave();
  };
}

function emptyView(peer: string): MessagesView {
  return { peer, messages: [], hasOlder: false, hasNewer: false, isLoading: false, unread: 0, read: 0, missedTo: 0 };
}
