/** The list of conversations. */

import type { ConversationView } from '../views.js';
import { useChat } from './provider.js';
import { useStore } from './store.js';

const NONE: readonly ConversationView[] = [];

/**
 * All conversations, the latest first. `select` takes a part, and then only another part renders the component again:
 * `useConversations((all) => all.reduce((sum, { unread }) => sum + unread, 0))`. It has to give the same value for the
 * same list, so not a new array or object each time.
 */
export function useConversations(): readonly ConversationView[];
export function useConversations<Part>(select: (all: readonly ConversationView[]) => Part): Part;
export function useConversations<Part>(select?: (all: readonly ConversationView[]) => Part): unknown {
  return useStore(useChat().stores.conversations, NONE, select);
}

/** The one with `peer`; null where there is none. */
export function useConversation(peer: string): ConversationView | null {
  return useConversations((all) => all.find((one) => one.peer === peer) ?? null);
}
