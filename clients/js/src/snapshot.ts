/**
 * The state of a client as records, and back: what outlives a reload, and what another tab begins with.
 *
 * A mark is good only with the places that belong to it, so a record that cannot be read takes the mark with it. A store
 * may be anybody's to edit: all that is read is checked.
 */

import type { ChatClient } from './client.js';
import { type Check, fits, isCount, isPeer, itemOf, type Keys, listOf } from './frames.js';
import type { SavedLog } from './log.js';
import type { Outbox, OutboxItem } from './outbox.js';
import type { Records } from './store.js';
import type { Gap } from './stream.js';

/** Messages of each conversation that are stored. */
export const MESSAGES_STORED = 50;
export const META = 'meta';
const CHAT = 'c/';
const OUTBOX = 'o/';

/** Whether a key is that of what waits for somebody. */
export function isOutbox(key: string): boolean {
  return key.startsWith(OUTBOX);
}

interface Meta {
  user: string;
  device: string;
  epoch: string | null;
  since: string | null;
}

/** The record of a key as it is now; undefined: there is none. */
export function recordOf(key: string, client: ChatClient): unknown {
  const { user, device, places, outbox } = client._engine;
  const { epoch, since } = places;
  if (key === META) return user === '' ? undefined : ({ user, device, epoch, since } satisfies Meta);
  const peer = key.slice(2);
  if (key.startsWith(OUTBOX)) {
    const items = outbox.of(peer);
    return items.length > 0 ? items : undefined;
  }
  const chat = client._model.chats.get(peer);
  const place = chat?.c == null ? undefined : places.of.get(chat.c);
  if (!chat || !place) return undefined;
  const { c, ts, delivered, read, peer_delivered, peer_read, unread, open, log } = chat;
  const listed = { c, peer, head: place.head, floor: log.floor, ts, delivered, read };
  const item = { ...listed, peer_delivered, peer_read, unread, open };
  const gaps = client._gaps().flatMap(({ c: of, after, head }) => (of === c ? { after, head } : []));
  return { item, seq: place.seq, log: log.save(MESSAGES_STORED), ...(gaps.length > 0 ? { gaps } : {}) };
}

/** All records as they are now: what another tab begins with. */
export function dump(client: ChatClient): Records {
  const peers = [...client._model.chats.keys()];
  const keys = [META, ...peers.map((peer) => CHAT + peer), ...peers.map((peer) => OUTBOX + peer)];
  return new Map(keys.map((key) => [key, recordOf(key, client)] as const).filter(([, value]) => value));
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
export function load(records: Records, client: ChatClient, resume: (gap: Gap) => void): boolean {
  const { _engine: engine, _model: model } = client;
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
    if (had !== undefined) client._gap({ peer, c, after: had, head: seq });
    places.put(c, { ...good, seq });
    engine.teller.cursors.known(c, good);
    for (const { after, head } of listOf(gaps, gapOf).list) resume({ peer, c, after, head });
    const chat = model.with(peer);
    chat.list(good);
    chat.missedTo = good.head;
    chat.c = c;
    chat.log.load(log);
    model.changed(peer);
  }
  places.since = isWhole && isPeer(meta.since) ? meta.since : null;
  return true;
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
  return fits(value, { after: isCount, head: isCount }) ? (value as { after: number; head: number }) : null;
}

const isText = (value: unknown) => typeof value === 'string';
const orNull = (check: Check) => (value: unknown) => value === null || check(value);
const MESSAGE: Keys = {
  seq: isCount,
  ts: isCount,
  from: isPeer,
  rev: isCount,
  cid: orNull(isText),
  body: orNull(isText),
  edited: orNull(isCount),
  deleted: orNull(isCount),
};

function isLog(value: unknown): value is SavedLog {
  if (!fits(value, { floor: isCount, head: isCount, messages: Array.isArray })) return false;
  const { lo, hi, messages } = value as SavedLog;
  if (lo === null && hi === null) return messages.length === 0;
  return isCount(lo) && isCount(hi) && messages.every((one) => fits(one, MESSAGE) && one.seq >= lo && one.seq <= hi);
}

const WAITING: Keys = {
  peer: isPeer,
  cid: isPeer,
  kind: (value) => ['message', 'edit', 'delete'].includes(value as string),
  at: Number.isFinite,
};

function isItem(value: unknown): value is OutboxItem {
  if (!fits(value, WAITING)) return false;
  const { kind, body, ref, refcid } = value as OutboxItem;
  return (kind === 'delete' || isText(body)) && (kind === 'message' || Number.isInteger(ref) || isText(refcid));
}
