/**
 * The state of a client as records, and back: what outlives a reload, and what another tab begins with.
 *
 * A mark is good only with the places that belong to it, so a record that cannot be read takes the mark with it. A store
 * may be anybody's to edit: all that is read is checked.
 */

import { isCount, isPeer, itemOf, listOf } from './frames.js';
import type { LogMessage, SavedLog } from './log.js';
import type { Chat, Model } from './model.js';
import { isItem, type Outbox } from './outbox.js';
import type { Inside } from './parts.js';
import type { Records } from './store.js';
import type { Gap } from './stream.js';

/** Messages of each conversation that are stored. */
export const MESSAGES_STORED = 50;
export const META = 'meta';
const CHAT = 'c/';
const OUTBOX = 'o/';

interface Meta {
  user: string;
  device: string;
  epoch: string | null;
  since: string | null;
}

/** The record of a key as it is now; undefined: there is none. */
export function recordOf(key: string, { engine, model, gaps: all }: Inside): unknown {
  const { user, device, places, outbox } = engine;
  const { epoch, since } = places;
  if (key === META) return user === '' ? undefined : ({ user, device, epoch, since } satisfies Meta);
  const peer = key.slice(2);
  if (key.startsWith(OUTBOX)) {
    const items = outbox.of(peer);
    return items.length > 0 ? items : undefined;
  }
  const chat = model.chats.get(peer);
  const place = chat?.c == null ? undefined : places.of.get(chat.c);
  if (!chat || !place) return undefined;
  const { c, ts, delivered, read, peerDelivered: peer_delivered, peerRead: peer_read, unread, open, log } = chat;
  const item = {
    c,
    peer,
    head: place.head,
    floor: log.floor,
    ts,
    delivered,
    read,
    peer_delivered,
    peer_read,
    unread,
    open,
  };
  const gaps = all().flatMap(({ c: of, after, head }) => (of === c ? { after, head } : []));
  return { item, seq: place.seq, log: log.save(MESSAGES_STORED), ...(gaps.length > 0 ? { gaps } : {}) };
}

/** All records as they are now: what another tab begins with. */
export function dump(inside: Inside): Records {
  const peers = [...inside.model.chats.keys()];
  const keys = [META, ...peers.map((peer) => CHAT + peer), ...peers.map((peer) => OUTBOX + peer)];
  return new Map(keys.map((key) => [key, recordOf(key, inside)] as const).filter(([, value]) => value));
}

/** The epoch of what was stored; null if there is none. */
export function epochOf(records: Records): string | null {
  const { epoch } = (records.get(META) ?? {}) as Partial<Meta>;
  return isPeer(epoch) ? epoch : null;
}

/**
 * Takes what was stored, as far as it is further than what is here. `gap` hears where it is further than what came here
 * as entries; `resume` hears of each gap that was being filled. False: it is another user's, and nothing was taken. The
 * outbox is not taken: `restore` does that.
 */
export function load(records: Records, { engine, model, gap }: Inside, resume: (gap: Gap) => void): boolean {
  const meta = records.get(META) as Partial<Meta> | undefined;
  if (!meta || !isPeer(meta.user)) return true;
  if (engine.user !== '' && meta.user !== engine.user) return false;
  const { places } = engine;
  const epoch = epochOf(records);
  engine.user = model.user = meta.user;
  if (!engine.device && isPeer(meta.device)) engine.device = meta.device;
  if (epoch === null || (places.epoch !== null && places.epoch !== epoch)) return true;
  places.epoch = epoch;
  let isWhole = true;
  for (const [key, value] of records) {
    if (!key.startsWith(CHAT)) continue;
    const { item, seq, log, gaps } = (value ?? {}) as Record<'item' | 'seq' | 'log' | 'gaps', unknown>;
    const good = itemOf(item);
    if (!good || !isCount(seq) || !isLog(log)) {
      isWhole = false;
      continue;
    }
    const { c, peer } = good;
    const had = places.of.get(c)?.seq;
    if (had !== undefined && had >= seq) continue;
    if (had !== undefined) gap({ peer, c, after: had, head: seq });
    places.put(c, { ...good, seq });
    engine.teller.cursors.known(c, good);
    for (const { after, head } of listOf(gaps, gapOf).list) resume({ peer, c, after, head });
    const chat = model.with(peer);
    takeChat(chat, good, model);
    chat.log.load(log);
    model.changed(peer);
  }
  places.since = isWhole && isPeer(meta.since) ? meta.since : null;
  return true;
}

function takeChat(chat: Chat, item: NonNullable<ReturnType<typeof itemOf>>, model: Model): void {
  const { ts, delivered, read, peer_delivered: peerDelivered, peer_read: peerRead, unread, open, head } = item;
  Object.assign(chat, { ts, delivered, read, peerDelivered, peerRead, unread, listedOpen: open, countedTo: head });
  model.name(chat, item.c);
}

/** What waited then comes before what was written since, all of it. What was on its way has an unknown outcome. */
export function restore(outbox: Outbox, records: Records): void {
  const newer = outbox.all();
  const typed = new Set(newer.map(({ cid }) => cid));
  const saved = [...records].flatMap(([key, value]) =>
    key.startsWith(OUTBOX) && Array.isArray(value) ? value.filter(isItem).filter(({ cid }) => !typed.has(cid)) : [],
  );
  const older = new Map(saved.map((item) => [item.cid, item]));
  outbox.take(
    [...older.values(), ...newer].map((item) => ({
      ...item,
      state: item.state === 'failed' ? 'failed' : 'queued',
      refused: false,
      code: item.code ?? null,
      msg: item.msg ?? null,
    })),
  );
}

function gapOf(value: unknown): { after: number; head: number } | null {
  const { after, head } = (value ?? {}) as { after?: unknown; head?: unknown };
  return isCount(after) && isCount(head) ? { after, head } : null;
}

function isLog(value: unknown): value is SavedLog {
  const { lo, hi, floor, head, messages } = (value ?? {}) as SavedLog;
  const isEmpty = lo === null && hi === null;
  if (!isCount(floor) || !isCount(head) || !Array.isArray(messages)) return false;
  if (isEmpty) return messages.length === 0;
  return isCount(lo) && isCount(hi) && messages.every((one) => isMessage(one) && one.seq >= lo && one.seq <= hi);
}

function isMessage(value: LogMessage): boolean {
  const isText = (one: unknown) => one === null || typeof one === 'string';
  const isTime = (one: unknown) => one === null || isCount(one);
  const { seq, ts, from, cid, rev, body, edited, deleted } = value ?? {};
  return (
    isCount(seq) &&
    isCount(ts) &&
    isPeer(from) &&
    isCount(rev) &&
    isText(cid) &&
    isText(body) &&
    isTime(edited) &&
    isTime(deleted)
  );
}
