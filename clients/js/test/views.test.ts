/** What is shown: snapshots that are made from the ones before are those that are made from nothing. */

import assert from 'node:assert/strict';
import { test } from 'vitest';
import type { ChatClient } from '../src/client.js';
import type { Entry, Item } from '../src/frames.js';
import { Model } from '../src/model.js';
import { Outbox } from '../src/outbox.js';
import { Views } from '../src/views.js';
import { type Dice, seeds, withSeed } from './dice.js';

const ME = 'alice';
const PEER = 'bob';
const ITEM = { c: '12', peer: PEER, floor: 1, ts: 1, delivered: 0, read: 0, unread: 0, open: true };

/** The parts of a client that make what is shown, without a line. */
function rig() {
  const outbox = new Outbox();
  const client = {
    user: ME,
    now: () => 1,
    _engine: { outbox },
    _clock: { set: () => null },
    _loads: { isLoading: () => false },
    _emitter: { failed: (error: unknown) => assert.fail(String(error)) },
  } as unknown as ChatClient;
  const model = new Model(client);
  const made = () => new Views(client);
  const views = made();
  Object.assign(client, { _model: model, _views: views });
  model.take({ t: 'welcome', user: ME, epoch: 'e', limits: {} as never, ts: 1 });
  return { model, outbox, views, made };
}

function entryOf(d: Dice, seq: number): Entry {
  const from = d.pick([ME, PEER]);
  const made = { c: '12', seq, ts: seq, from, to: from === ME ? PEER : ME };
  const ref = 1 + d.below(Math.max(1, seq - 1));
  if (seq > 3 && d.chance(0.2)) return { ...made, kind: d.pick(['edit', 'delete']), ref, body: `e${seq}` };
  return { ...made, kind: 'message', body: `m${seq}`, cid: `c${seq}` };
}

function anyTurns(d: Dice): void {
  const { model, outbox, views, made } = rig();
  let head = d.below(5);
  const item = (): Item => ({ ...ITEM, head, peer_delivered: d.below(head + 1), peer_read: 0 }) as unknown as Item;
  model.take({ t: 'item', item: item(), isKept: false, after: null });
  for (let turn = 0; turn < 60; turn += 1) {
    const roll = d.below(8);
    if (roll < 4) {
      head += 1;
      model.take({ t: 'entry', entry: entryOf(d, head), how: 'live' });
    } else if (roll < 6) {
      const read = d.below(head + 1);
      model.take({ t: 'receipt', c: '12', peer: PEER, from: PEER, delivered: Math.min(head, read + d.below(3)), read });
    } else if (roll === 6 && d.chance(0.5)) {
      outbox.add({ peer: PEER, cid: `w${turn}`, kind: 'message', body: 'w', ref: null, refcid: null, at: 1 } as never);
      model.take({ t: 'outbox', peer: PEER, items: outbox.of(PEER) });
    } else if (roll === 6) {
      for (const { cid } of outbox.of(PEER)) outbox.settle(cid);
      model.take({ t: 'outbox', peer: PEER, items: [] });
    } else if (d.chance(0.2)) model.take({ t: 'item', item: item(), isKept: true, after: null });
    else if (d.chance(0.3)) model.chats.get(PEER)?.log.trim(1 + d.below(6));
    views.conversations.touch();
    views.messages(PEER).touch();
    assert.deepEqual(views.messages(PEER).getSnapshot(), made().messages(PEER).getSnapshot(), `turn ${turn}`);
    assert.deepEqual(views.conversations.getSnapshot(), made().conversations.getSnapshot(), `list, turn ${turn}`);
  }
}

test('messages and list, made from the ones before, are those that are made from nothing', async () => {
  for (const seed of seeds(200)) await withSeed(seed, anyTurns);
});

test('what stands as it was is the same object', () => {
  const { model, views } = rig();
  model.take({
    t: 'item',
    item: { ...ITEM, head: 0, peer_delivered: 0, peer_read: 0 } as unknown as Item,
    isKept: false,
    after: null,
  });
  const say = (seq: number, from = ME) => {
    const entry: Entry = {
      c: '12',
      seq,
      ts: seq,
      from,
      to: from === ME ? PEER : ME,
      kind: 'message',
      body: 'x',
      cid: `c${seq}`,
    };
    model.take({ t: 'entry', entry, how: 'live' });
    return views.messages(PEER).getSnapshot().messages;
  };
  say(1);
  const two = say(2, PEER);
  const three = say(3);
  assert.deepEqual([three[0] === two[0], three[1] === two[1]], [true, true]);
  model.take({ t: 'receipt', c: '12', peer: PEER, from: PEER, delivered: 1, read: 1 });
  const read = views.messages(PEER).getSnapshot().messages;
  assert.deepEqual(
    read.map((one, i) => one === three[i]),
    [false, true, true],
  );
  assert.deepEqual(
    read.map(({ state }) => state),
    ['read', 'received', 'sent'],
  );
});
