/** The client of chatd. Exports what an application needs; importing it does nothing. */
export { ChatClient } from './client.js';
export type { SendOptions, Target } from './composer.js';
export type { Line, TokenProvider } from './dial.js';
export { ChatError, type Refusal } from './errors.js';
export type { EngineEvent, ResetReason, Sent } from './events.js';
export type { Entry, Frame, HistoryPage, Item, Status } from './frames.js';
export type { Clock, Socket, SocketClass } from './link.js';
export type { Way } from './loads.js';
export type {
  ChatClientOptions,
  ChatEvents,
  CoreOptions,
  CustomData,
  LiveEntry,
  Platform,
  PlatformHooks,
  Register,
  UserId,
} from './options.js';
export type { Kind, OutboxItem } from './outbox.js';
export type { Paged } from './paged.js';
export type { Keeping, Named, Together } from './parts.js';
export type { ConversationsPage, Range } from './reader.js';
export type { Sending } from './sending.js';
export { sleepWatch } from './sleep.js';
export type { Persistence, Records, Store } from './store.js';
export type { Readable } from './topic.js';
export type { ConversationView, Message, MessageState, MessagesView, PresenceView, Stores, Waiting } from './views.js';
export { bodyBytes, cleanBody, cleanName, cleanUser, type Limits } from './wire.js';
