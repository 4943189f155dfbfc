/**
 * Which client the components below use.
 *
 * The client belongs to the application: it is made outside of React, or once in a state, and stopped by whoever made
 * it. The provider starts it, which is idempotent, so that StrictMode's second mount does nothing; it never stops it.
 */

import { createContext, createElement, type ReactElement, type ReactNode, useContext, useEffect } from 'react';
import type { ChatClient } from '../client.js';

const Chat = createContext<ChatClient | null>(null);

export interface ChatProviderProps {
  readonly client: ChatClient;
  /** False: the application calls `client.start()` itself. */
  readonly start?: boolean;
  readonly children?: ReactNode;
}

/** Gives `client` to the hooks of all components below, and starts it once mounted: never on a server. */
export function ChatProvider({ client, start = true, children }: ChatProviderProps): ReactElement {
  useEffect(() => {
    if (start) void client.start();
  }, [client, start]);
  return createElement(Chat.Provider, { value: client }, children);
}

/** The client of the nearest `ChatProvider`. */
export function useChat(): ChatClient {
  const client = useContext(Chat);
  if (!client) throw new Error('@chatd/client/react: there is no <ChatProvider> above this component');
  return client;
}
