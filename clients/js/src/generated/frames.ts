/** The frames of chatd.v1. Written by scripts/frames.mjs from docs/schema: change those, then `npm run frames`. */

/** Number of a request and of its reply. */
export type Id = number;

/** Conversation; opaque. */
export type C = string;

/** User id; a new one is also visible and in NFC (docs/protocol.md section 2), which a schema cannot say. */
export type User = string;

/** `device` in a frame. */
export type Device = string;

/** Place in the log of a conversation. */
export type Seq = number;

/** How far somebody got; 0 = nowhere. */
export type Cursor = number;

/** Milliseconds; as a time since 1970 UTC. */
export type Ms = number;

/** `cid` in a frame. */
export type Cid = string;

/** Text; at most 2,048 bytes of UTF-8, which a schema cannot say. */
export type Body = string;

/** A JWT. */
export type Token = string;

/** `limit` in a frame. */
export type Limit = number;

/** `users` in a frame. */
export type Users = Array<User>;

/** `state` in a frame. */
export type State = "online" | "away";

/** A request names its conversation by exactly one of `c` and `to`; null counts as absent. */
export type Where = {
  c?: C | null;
  to?: User | null;
} & ({
  c: string;
  to?: null;
} | {
  to: string;
  c?: null;
});

/** Presence of a user, as seen by the receiver. */
export type Status = {
  user: User;
  state: "online" | "away" | "offline" | "hidden";
  v: number;
  seen?: Ms;
};

/** An item of `welcome` and of the answer to `conversations`. */
export type Conversation = {
  c: C;
  peer: User;
  head: Cursor;
  floor: Seq;
  ts: Ms;
  delivered: Cursor;
  read: Cursor;
  peer_delivered: Cursor;
  peer_read: Cursor;
  unread: Cursor;
  /** Both have sent: before that the peer's cursors are 0. */
  open: boolean;
  /** Too much was missed: fetch it by `history`. */
  page?: true;
  /** The cursor was beyond the head: drop what you hold. */
  reset?: true;
};

/** What pushed entries and items of history share. */
export type Entry = {
  seq: Seq;
  ts: Ms;
  from: User;
  to: User;
  cid?: Cid;
  kind: "message" | "edit" | "delete";
  ref?: Seq;
  body?: Body | null;
  rev?: Seq;
  edited?: Ms;
  deleted?: Ms;
};

/** An item of history. */
export type Item = Entry;

/** `status_item` in a frame. */
export type StatusItem = Status;

/** chatd.v1 request: ack. */
export type AckRequest = {
  t: "ack";
  id: Id;
  seq: Seq;
} & Where;

/** chatd.v1 request: conversations. */
export type ConversationsRequest = {
  t: "conversations";
  id: Id;
  limit?: Limit;
  cursor?: string | null;
};

/** chatd.v1 request: delete. */
export type DeleteRequest = {
  t: "delete";
  id: Id;
  cid: Cid;
  ref?: Seq | null;
  refcid?: Cid | null;
  retry?: boolean;
} & Where & ({
  ref: number;
} | {
  refcid: string;
});

/** chatd.v1 request: edit. */
export type EditRequest = {
  t: "edit";
  id: Id;
  cid: Cid;
  ref?: Seq | null;
  refcid?: Cid | null;
  body: Body;
  retry?: boolean;
} & Where & ({
  ref: number;
} | {
  refcid: string;
});

/** chatd.v1 request: hello. */
export type HelloRequest = {
  t: "hello";
  id: Id;
  v: 1;
  token: Token;
  device: Device;
  epoch?: string | null;
  /** Conversation -> highest seq held without holes. */
  cursors?: { [key: string]: Cursor };
  since?: string | null;
  watch?: Users | null;
  state?: State;
  features?: Array<string>;
};

/** chatd.v1 request: history. */
export type HistoryRequest = {
  t: "history";
  id: Id;
  before?: Seq | null;
  after?: Cursor | null;
  limit?: Limit;
} & Where;

/** chatd.v1 request: ping. */
export type PingRequest = {
  t: "ping";
  id: Id;
};

/** chatd.v1 request: presence. */
export type PresenceRequest = {
  t: "presence";
  id: Id;
  state?: State;
};

/** chatd.v1 request: read. */
export type ReadRequest = {
  t: "read";
  id: Id;
  seq: Seq;
} & Where;

/** chatd.v1 request: refresh. */
export type RefreshRequest = {
  t: "refresh";
  id: Id;
  token: Token;
};

/** chatd.v1 request: send. */
export type SendRequest = {
  t: "send";
  id: Id;
  cid: Cid;
  body: Body;
  retry?: boolean;
} & Where;

/** chatd.v1 request: skip. */
export type SkipRequest = {
  t: "skip";
  id: Id;
  cid: Cid;
} & Where;

/** chatd.v1 request: typing. */
export type TypingRequest = {
  t: "typing";
  id: Id;
} & Where;

/** chatd.v1 request: watch. */
export type WatchRequest = {
  t: "watch";
  id: Id;
  users: Users;
};

/** Whatever a client sends. */
export type Request =
  | AckRequest
  | ConversationsRequest
  | DeleteRequest
  | EditRequest
  | HelloRequest
  | HistoryRequest
  | PingRequest
  | PresenceRequest
  | ReadRequest
  | RefreshRequest
  | SendRequest
  | SkipRequest
  | TypingRequest
  | WatchRequest;

/** chatd.v1 push: an entry. */
export type EntryFrame = {
  t: "entry";
  c: C;
} & Entry;

/** chatd.v1 reply: a request failed. */
export type ErrFrame = {
  t: "err";
  /** Of the request; 0 for an unreadable frame. */
  id: number;
  code: string;
  msg: string;
  retry_ms?: number;
  field?: string;
  cid?: Cid;
};

/** chatd.v1 push: about this server. */
export type NoticeFrame = {
  t: "notice";
  kind: string;
  retry_ms?: Ms;
};

/** chatd.v1 reply: ok to typing, presence, skip. */
export type Ok = {
  t: "ok";
  id: Id;
};

/** chatd.v1 reply: ok to ack, read. */
export type OkAck = {
  t: "ok";
  id: Id;
  c: C;
  delivered: Cursor;
  read: Cursor;
};

/** chatd.v1 reply: ok to conversations. */
export type OkConversations = {
  t: "ok";
  id: Id;
  conversations: Array<Conversation>;
  cursor?: string;
};

/** chatd.v1 reply: ok to history. */
export type OkHistory = {
  t: "ok";
  id: Id;
  c: C;
  entries: Array<Item>;
  more: boolean;
  head: Cursor;
  floor: Seq;
};

/** chatd.v1 reply: ok to refresh. */
export type OkRefresh = {
  t: "ok";
  id: Id;
  exp: Ms;
};

/** chatd.v1 reply: ok to send, edit, delete. */
export type OkSend = {
  t: "ok";
  id: Id;
  c: C;
  seq: Seq;
  ts: Ms;
  dup?: true;
};

/** chatd.v1 reply: ok to watch. */
export type OkWatch = {
  t: "ok";
  id: Id;
  presence: Array<StatusItem>;
};

/** chatd.v1 reply to ping. */
export type PongFrame = {
  t: "pong";
  id: Id;
  ts: Ms;
};

/** chatd.v1 push: somebody's presence. */
export type PresenceFrame = {
  t: "presence";
} & Status;

/** chatd.v1 push: somebody's cursors. */
export type ReceiptFrame = {
  t: "receipt";
  c: C;
  from: User;
  to: User;
  delivered: Cursor;
  read: Cursor;
};

/** chatd.v1 push: somebody types. */
export type TypingFrame = {
  t: "typing";
  c: C;
  from: User;
  to: User;
};

/** chatd.v1 reply to hello; the first page has all keys, later ones only the listing. */
export type WelcomeFrame = {
  t: "welcome";
  id: Id;
  user?: User;
  device?: Device;
  v?: 1;
  features?: Array<string>;
  epoch?: string;
  ts?: Ms;
  heartbeat_ms?: Ms;
  exp?: Ms;
  limits?: {
    frame_bytes: Ms;
    body_bytes: Ms;
    messages: Ms;
    per_ms: Ms;
    watch: Ms;
    history: Ms;
    edit_ms: Ms;
    resync: Ms;
  };
  presence?: Array<StatusItem>;
  conversations: Array<Conversation>;
  more: boolean;
  /** The mark, on the last page alone. */
  since?: string;
};

/** Whatever a server of chatd.v1 sends; a later one may send more. */
export type ServerFrame =
  | EntryFrame
  | ErrFrame
  | NoticeFrame
  | Ok
  | OkAck
  | OkConversations
  | OkHistory
  | OkRefresh
  | OkSend
  | OkWatch
  | PongFrame
  | PresenceFrame
  | ReceiptFrame
  | TypingFrame
  | WelcomeFrame;
