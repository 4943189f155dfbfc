/**
 * What the fake server does on each request. A function answers by `reply`, or throws what becomes an `err`.
 */
import type { Entry } from '../generated/frames.js';
import type { Log } from './conversation.js';
import * as fields from './fields.js';
import { type AnyFrame, Refused } from './fields.js';
import type { Session } from './session.js';
import { checkToken } from './tokens.js';
import type { World } from './world.js';

/** One request in the making of its answer. */
export interface Asked {
  world: World;
  session: Session;
  frame: AnyFrame;
  /** Answers with these keys beside `id`; `ok` where they have no `t`. */
  reply(keys?: AnyFrame): void;
  /** Takes note of a repeat that does not say that it is one. */
  unsaid(frame: AnyFrame): void;
}

type Handler = (asked: Asked) => void;

/** The conversation that a request names, if it is there. */
function named({ world, session, frame }: Asked): Log | undefined {
  const place = fields.where(frame);
  if ('to' in place) return world.find(session.user, place.to);
  const log = world.logs.get(place.c);
  if (log?.users.includes(session.user) !== true) throw new Refused('no_conversation');
  return log;
}

/** The conversation that a request names; it must be there. */
function existing(asked: Asked): Log {
  const log = named(asked);
  if (log !== undefined) return log;
  checkName(asked);
  throw new Refused('no_conversation');
}

function checkName({ world, frame }: Asked): void {
  fields.users({ to: [frame.to] }, 'to', 1, (user) => world.isKnown(user));
}

/** The key of a block: who the conversation is with, for it may not be there yet. */
const blockKey = (asked: Asked): string => named(asked)?.peer(asked.session.user) ?? String(asked.frame.to);

/** A retryable refusal: what comes later in this conversation waits for this cid. */
export function block(asked: Asked): void {
  asked.session.blocked.set(blockKey(asked), fields.cid(asked.frame));
}

/** Throws `blocked` where an earlier one must come first. */
export function checkOrder(asked: Asked): void {
  const cid = fields.cid(asked.frame);
  const waiting = asked.session.blocked.get(blockKey(asked));
  if (waiting !== undefined && waiting !== cid) throw new Refused('blocked', { cid: waiting });
}

// ---- entries --------------------------------------------------------------------------------------------------------

/** What `send`, `edit` and `delete` share: order, twin, rate, and then what they do. */
function enter(asked: Asked, store: (log: Log | undefined, cid: string) => void): void {
  const { world, session, frame, reply } = asked;
  const cid = fields.cid(frame);
  const isRetry = fields.retry(frame);
  const log = frame.t === 'send' ? named(asked) : existing(asked);
  checkOrder(asked);
  const key = blockKey(asked);
  const done = log?.made(session.user, cid);
  if (log !== undefined && done !== undefined) {
    session.blocked.delete(key);
    if (!isRetry) asked.unsaid(frame);
    reply({ c: log.c, seq: done.seq, ts: done.ts, dup: true });
    return;
  }
  const now = world.clock.now();
  const verdict = world.rate(session.user).ask(session.told.isEarly(cid, now), now);
  if (verdict === 'close') return session.close(4008, 'rate_limited');
  if (verdict > 0) {
    session.told.refused(cid, now + verdict);
    throw new Refused('rate_limited', { retry_ms: verdict });
  }
  session.blocked.delete(key);
  store(log, cid);
}

const send: Handler = (asked) => {
  const { world, session, frame, reply } = asked;
  const text = fields.body(frame, world.settings.bodyBytesMax);
  enter(asked, (found, cid) => {
    const to = found?.peer(session.user) ?? String(frame.to);
    if (found === undefined) world.checkNewPeer(session.user, to);
    const log = found ?? world.begin(session.user, to);
    const made = { from: session.user, to, kind: 'message', cid, body: text } as const;
    world.store(log, made, session, ({ seq, ts }) => reply({ c: log.c, seq, ts }));
  });
};

const change: Handler = (asked) => {
  const { world, session, frame, reply } = asked;
  const kind: Entry['kind'] = frame.t === 'edit' ? 'edit' : 'delete';
  const text = kind === 'edit' ? { body: fields.body(frame, world.settings.bodyBytesMax) } : {};
  const ref = fields.optionalSeq(frame, 'ref');
  const refcid = fields.optionalCid(frame, 'refcid');
  if (ref === undefined && refcid === undefined)
    throw new Refused('bad_field', { field: 'ref', msg: '`ref` or `refcid` must name the message' });
  enter(asked, (log, cid) => {
    if (log === undefined) throw new Refused('no_conversation');
    const seq = changeable(asked, log, ref, refcid);
    const made = { from: session.user, to: log.peer(session.user), kind, cid, ref: seq, ...text } as const;
    world.store(log, made, session, (entry) => reply({ c: log.c, seq: entry.seq, ts: entry.ts }));
  });
};

/** The seq of the message that a change names, if this user may change it. */
function changeable({ world, session, frame }: Asked, log: Log, ref?: number, refcid?: string): number {
  const message = log.entries.find(
    (entry) =>
      entry.kind === 'message' &&
      (ref === undefined || entry.seq === ref) &&
      (refcid === undefined || (entry.cid === refcid && entry.from === session.user)),
  );
  if (message === undefined) throw new Refused('no_message');
  if (message.from !== session.user) throw new Refused('not_author');
  if (log.isDeleted(message.seq)) throw new Refused('deleted');
  if (frame.t === 'edit' && world.clock.now() - message.ts > world.settings.editWindowMs) throw new Refused('too_late');
  return message.seq;
}

const skip: Handler = (asked) => {
  const { world, session, frame, reply } = asked;
  const cid = fields.cid(frame);
  const key = blockKey(asked);
  if (session.blocked.get(key) === cid) session.blocked.delete(key);
  session.told.isEarly(cid, world.clock.now());
  reply();
};

// ---- cursors and reads ----------------------------------------------------------------------------------------------

const cursor: Handler = (asked) => {
  const { world, session, frame, reply } = asked;
  const seq = fields.seq(frame, 'seq');
  const log = existing(asked);
  if (seq > log.head) throw new Refused('bad_seq', { field: 'seq' });
  const hasMoved = log.move(session.user, frame.t === 'read' ? 'read' : 'ack', seq);
  reply({ c: log.c, ...log.cursors(session.user) });
  if (hasMoved) world.moved(log, session);
};

const history: Handler = (asked) => {
  const { world, session, frame, reply } = asked;
  const before = fields.optionalSeq(frame, 'before');
  const after = fields.optionalSeq(frame, 'after', 0);
  if (before !== undefined && after !== undefined) throw new Refused('bad_field', { field: 'after' });
  const limit = fields.limit(frame, world.settings.historyMax);
  const log = existing(asked);
  const from = after === undefined ? { before: before ?? log.head + 1 } : { after };
  const { entries, more } = log.run(from, limit);
  reply({ c: log.c, entries: log.page(entries, session.user), more, head: log.head, floor: log.floor });
};

const conversations: Handler = ({ world, session, frame, reply }) => {
  const limit = fields.limit(frame, world.settings.historyMax);
  const start = Number(fields.mark(frame, 'cursor', /^\d+$/) ?? 0);
  const mine = world.logsOf(session.user).sort((a, b) => b.ts - a.ts || b.changed - a.changed);
  const page = mine.slice(start, start + limit).map((log) => log.item(session.user));
  reply({ conversations: page, ...(start + limit < mine.length ? { cursor: String(start + limit) } : {}) });
};

// ---- presence and the rest ------------------------------------------------------------------------------------------

const typing: Handler = (asked) => {
  const log = existing(asked);
  if (!log.open) throw new Refused('not_open');
  asked.reply();
  asked.world.types(log, asked.session.user);
};

const watch: Handler = ({ world, session, frame, reply }) => {
  session.watched = fields.users(frame, 'users', world.settings.watchMax, (user) => world.isKnown(user));
  reply({ presence: session.watched.map((user) => world.status(user, session.user)) });
};

const presence: Handler = ({ world, session, frame, reply }) => {
  session.state = fields.state(frame);
  reply();
  world.devicesChanged(session.user);
};

const refresh: Handler = ({ world, session, frame, reply }) => {
  const known = (user: string): boolean => world.isKnown(user);
  const claims = checkToken(fields.token(frame), world.clock.now(), world.settings.tokenTtlMaxMs, known);
  if (claims.user !== session.user) throw new Refused('unauthorized');
  session.exp = claims.exp;
  reply({ exp: claims.exp });
};

const ping: Handler = ({ world, reply }) => reply({ t: 'pong', ts: world.clock.now() });

/** By type; `hello` is the server's own. */
export const HANDLERS: ReadonlyMap<unknown, Handler> = new Map(
  Object.entries({
    send,
    edit: change,
    delete: change,
    skip,
    ack: cursor,
    read: cursor,
    history,
    conversations,
    typing,
    watch,
    presence,
    refresh,
    ping,
  }),
);
