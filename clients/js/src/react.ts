/** A provider and hooks for React 18 and later. */

export { useConversation, useConversations } from './react/conversations.js';
export { useConnection, usePresence, useSend, useTyping } from './react/hooks.js';
export { type MessagesHook, useMessages } from './react/messages.js';
export { ChatProvider, type ChatProviderProps, useChat } from './react/provider.js';
