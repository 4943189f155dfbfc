/**
 * Whole clients (client.js, model.js, history.js) against a small server that keeps to docs/protocol.md, over a network that is slow,
 * cuts lines at any instant (also between a commit and its answer) and falls silent. In the end everybody must show the log, each
 * message once, in the order its author wrote it. A failure prints its SEED.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Client } from '../../chatd/web/client.js';
import { History } from '../../chatd/web/history.js';
import { Model } from '../../chatd/web/model.js';
import { FakeClock, WELCOME, seeds, uuid, withSeed } from './fakes.mjs';

const RESYNC_MAX = 12;
const PEOPLE = ['alice', 'bob', 'carol'];

/** The network: FIFO both ways, each way with its own delays; a cut takes what is under way with it. */
function network(server, clock, d) {
  return class {
    constructor() {
      Object.assign(this, { up: 0, down: 0, isCut: false, session: { live: false, next: new Map(), blocked: new Map() } });
      this.session.push = (frame) => this.#later('down', () => this.onmessage({ data: JSON.stringify(frame) }));
      this.session.end = (code) => this.#later('down', () => this.#over(code));
      this.session.cut = (isHeard) => {
        this.isCut = true;
        server.sessions.delete(this.session);
        if (isHeard) clock.set(() => this.onclose({ code: 1006 }), d.below(200));
      };
      this.#later('down', () => {
        server.sessions.add(this.session);
        this.onopen();
      });
    }

    #later(way, act) {
      this[way] = Math.max(this[way], clock.now() + d.below(60));
      clock.set(() => this.isCut || act(), this[way] - clock.now());
    }

    #over(code) {
      this.isCut = true;
      server.sessions.delete(this.session);
      this.onclose({ code });
    }

    send(text) {
      this.#later('up', () => server.heard(this.session, JSON.parse(text)));
    }

    close() {
      this.isCut = true;
      server.sessions.delete(this.session);
    }
  };
}

class Server {
  constructor(clock, d) {
    Object.assign(this, { clock, d, sessions: new Set(), convs: new Map(), moves: 0, isRough: true });
  }

  conv(user, { c, to }) {
    if (c !== undefined) return [...this.convs.values()].find(({ id }) => id === c);
    const key = [user, to].sort().join(' ');
    if (!this.convs.has(key)) this.convs.set(key, { id: `c${this.convs.size + 1}`, users: [user, to], log: [], cursors: new Map(), moved: 0 });
    return this.convs.get(key);
  }

  other({ users }, user) {
    return users[0] === user ? users[1] : users[0];
  }

  /** As history and resync give it. */
  standing(conv, seq, user) {
    const { cid, ...made } = conv.log[seq - 1];
    const of = made.kind === 'message' ? seq : made.ref;
    const changes = conv.log.filter(({ ref }) => ref === of);
    const last = changes.at(-1);
    const entry = { ...made, ...(made.from === user ? { cid } : {}) };
    if (made.kind === 'delete' || !last) return entry;
    entry.body = last.kind === 'delete' ? null : last.body;
    if (made.kind === 'edit') return entry;
    entry.rev = last.seq;
    if (last.kind === 'delete') entry.deleted = last.ts;
    else entry.edited = last.ts;
    return entry;
  }

  item(conv, user) {
    const peer = this.other(conv, user);
    const own = conv.cursors.get(user) ?? { delivered: 0, read: 0 };
    const theirs = conv.cursors.get(peer) ?? { delivered: 0, read: 0 };
    return {
      c: conv.id, peer, head: conv.log.length, floor: 1, ts: conv.log.at(-1)?.ts ?? 0, ...own,
      peer_delivered: theirs.delivered, peer_read: theirs.read,
      unread: conv.log.filter(({ from, kind, seq }) => from === peer && kind === 'message' && seq > own.read).length, open: true,
    };
  }

  heard(session, frame) {
    const answer = (reply) => session.push({ id: frame.id, ...reply });
    if (frame.t === 'hello') this.#hello(session, frame);
    else if (['send', 'edit', 'delete'].includes(frame.t)) this.#enter(session, frame, answer);
    else if (frame.t === 'history') answer(this.#history(session, frame));
    else if (frame.t === 'ack' || frame.t === 'read') answer(this.#cursor(session, frame));
    else if (frame.t === 'skip') {
      session.blocked.delete(this.conv(session.user, frame).id);
      answer({ t: 'ok' });
    } else answer(frame.t === 'ping' ? { t: 'pong', ts: this.clock.now() } : { t: 'ok', presence: [] });
  }

  #hello(session, { token, id, cursors = {}, since }) {
    session.user = token;
    const mine = [...this.convs.values()].filter(({ users, log }) => users.includes(token) && log.length > 0);
    const listed = mine.filter(({ id: c, moved }) => since === undefined || moved >= Number(since) || c in cursors);
    const conversations = listed.map((conv) => {
      const from = cursors[conv.id];
      const isPage = from !== undefined && conv.log.length - from > RESYNC_MAX;
      session.next.set(conv.id, from === undefined || isPage ? conv.log.length + 1 : from + 1);
      return { ...this.item(conv, token), ...(isPage ? { page: true } : {}) };
    });
    for (const conv of mine) if (!session.next.has(conv.id)) session.next.set(conv.id, conv.log.length + 1);
    const mark = String(this.moves);
    const half = conversations.splice(1);
    session.push({ ...WELCOME, id, user: token, ts: this.clock.now(), conversations, more: true, since: undefined });
    session.live = true;
    for (const conv of listed) this.#fill(session, conv, true);
    session.push({ t: 'welcome', id, conversations: half, more: false, since: mark });
  }

  /** What the session has not got yet, in order. */
  #fill(session, conv, isResync) {
    for (let seq = session.next.get(conv.id) ?? 1; seq <= conv.log.length; seq += 1) {
      const { cid, ...made } = conv.log[seq - 1];
      const raw = made.from === session.user ? { ...made, cid } : made;
      session.push({ t: 'entry', c: conv.id, ...(isResync ? this.standing(conv, seq, session.user) : raw) });
    }
    session.next.set(conv.id, conv.log.length + 1);
  }

  #enter(session, frame, answer) {
    const conv = this.conv(session.user, frame);
    const done = conv.log.find(({ cid, from }) => cid === frame.cid && from === session.user);
    const blocked = session.blocked.get(conv.id);
    if (blocked !== undefined && blocked !== frame.cid) return answer({ t: 'err', code: 'blocked', cid: blocked });
    session.blocked.delete(conv.id);
    if (done) return answer({ t: 'ok', c: conv.id, seq: done.seq, ts: done.ts, dup: true });
    if (this.isRough && this.d.chance(0.1)) {
      session.blocked.set(conv.id, frame.cid);
      return answer({ t: 'err', code: this.d.pick(['rate_limited', 'overloaded']), retry_ms: 50 + this.d.below(500) });
    }
    const target = conv.log[frame.ref - 1];
    if (frame.t !== 'send' && (target?.from !== session.user || conv.log.some(({ kind, ref }) => kind === 'delete' && ref === frame.ref))) {
      return answer({ t: 'err', code: 'deleted' });
    }
    const kind = frame.t === 'send' ? 'message' : frame.t;
    const to = this.other(conv, session.user);
    const entry = { seq: conv.log.length + 1, ts: this.clock.now(), from: session.user, to, kind, cid: frame.cid };
    if (frame.body !== undefined) entry.body = frame.body;
    if (frame.ref !== undefined) entry.ref = frame.ref;
    conv.log.push(entry);
    conv.moved = this.moves += 1;
    answer({ t: 'ok', c: conv.id, seq: entry.seq, ts: entry.ts });
    session.next.set(conv.id, entry.seq + 1);
    for (const other of this.sessions) if (other.live && conv.users.includes(other.user) && other !== session) this.#fill(other, conv, false);
    return undefined;
  }

  #history(session, { before = Infinity, limit, ...where }) {
    const conv = this.conv(session.user, where);
    const entries = [];
    let at = Math.min(before - 1, conv.log.length);
    for (let messages = 0; at >= 1; at -= 1) {
      if (conv.log[at - 1].kind === 'message' && (messages += 1) > limit) break;
      entries.unshift(this.standing(conv, at, session.user));
    }
    return { t: 'ok', c: conv.id, entries, more: at >= 1, head: conv.log.length, floor: 1 };
  }

  #cursor(session, frame) {
    const conv = this.conv(session.user, frame);
    if (frame.seq > conv.log.length) return { t: 'err', code: 'bad_seq' };
    const at = conv.cursors.get(session.user) ?? { delivered: 0, read: 0 };
    at.delivered = Math.max(at.delivered, frame.seq);
    if (frame.t === 'read') at.read = Math.max(at.read, frame.seq);
    conv.cursors.set(session.user, at);
    conv.moved = this.moves += 1;
    for (const other of this.sessions) {
      if (other === session || !other.live || !conv.users.includes(other.user)) continue;
      other.push({ t: 'receipt', c: conv.id, from: session.user, to: this.other(conv, session.user), ...at });
    }
    return { t: 'ok', c: conv.id, ...at };
  }
}

/** One tab: it shows nothing and looks at everything. */
function makeTab(user, WebSocket, clock, d) {
  const model = new Model({ now: () => clock.now(), changed: () => {}, pending: (peer) => client.outbox.of(peer) });
  const client = new Client({ url: 'x', device: uuid(), sink: model, token: async () => user, WebSocket, clock, random: d.random, uuid });
  return { user, model, client, history: new History({ client, model, clock }), said: new Map() };
}

/** Something that a user does. */
function act(tab, d, n) {
  const peer = d.pick(PEOPLE);
  const it = tab.model.conversations.get(peer);
  const own = it?.log.messages().filter(({ from, body }) => from === tab.user && body !== null) ?? [];
  const roll = d.below(12);
  if (roll < 5 || !it) {
    if (!tab.client.send(peer, `${tab.user}-${n}`)) return;
    tab.said.set(peer, [...tab.said.get(peer) ?? [], `${tab.user}-${n}`]);
  } else if (roll < 7 && own.length > 0) tab.client.edit(peer, d.pick(own).seq, `${tab.user}-${n}-edited`);
  else if (roll < 8 && own.length > 0) tab.client.delete(peer, d.pick(own).seq);
  else if (roll < 10 && it.log.hi !== null) {
    tab.client.read(peer, it.log.hi);
    tab.model.see(peer, it.log.hi);
  } else if (roll < 11) tab.history.older(peer);
  else tab.client.wake();
}

async function rough(d) {
  const clock = new FakeClock();
  const server = new Server(clock, d);
  const WebSocket = network(server, clock, d);
  const tabs = ['alice', 'alice', 'bob', 'carol'].map((user) => makeTab(user, WebSocket, clock, d));
  for (const { client } of tabs) client.connect();
  for (let n = 0; n < 120; n += 1) {
    await clock.pass(d.below(300));
    act(d.pick(tabs), d, n);
    const live = [...server.sessions];
    if (live.length === 0 || !d.chance(0.12)) continue;
    const session = d.pick(live);
    if (d.chance(0.2)) session.push({ t: 'notice', kind: 'drain', retry_ms: d.below(800) });
    else if (d.chance(0.2)) session.end(d.pick([1012, 4006, 4007]));
    else session.cut(d.chance(0.7));
  }
  server.isRough = false;
  await clock.pass(120000);
  for (const tab of tabs) await check(tab, tabs, server, clock);
}

async function check({ user, model, client, history }, tabs, server, clock) {
  const where = `${user}: `;
  assert.equal(client.status.state, 'live', where);
  assert.deepEqual([...client.outbox.queues.values()].flatMap(({ items }) => items), [], `${where}outbox`);
  for (const it of model.conversations.values()) {
    for (let i = 0; it.log.more && i < 50; i += 1) {
      history.older(it.peer);
      await clock.pass(500);
    }
    const conv = server.conv(user, { to: it.peer });
    const messages = conv.log.filter(({ kind }) => kind === 'message');
    const truth = messages.map(({ seq }) => server.standing(conv, seq, user)).map(({ seq, from, body, rev = 0 }) => ({ seq, from, body, rev }));
    assert.deepEqual(it.log.messages().map(({ seq, from, body, rev }) => ({ seq, from, body, rev })), truth, `${where}${it.peer}`);
    if (it.peer === user) continue;
    const { delivered, read, peer_delivered, peer_read, unread } = server.item(conv, user);
    assert.deepEqual([it.read, it.peerDelivered, it.peerRead, it.unread], [read, peer_delivered, peer_read, unread], `${where}${it.peer} cursors`);
    assert.ok(delivered >= (messages.filter(({ from }) => from !== user).at(-1)?.seq ?? 0), `${where}delivered`);
  }
  for (const [peer, said] of tabs.filter((tab) => tab.user === user).flatMap((tab) => [...tab.said])) {
    const stored = server.conv(user, { to: peer }).log.filter(({ kind, from }) => kind === 'message' && from === user).map(({ body }) => body);
    assert.deepEqual(stored.filter((body) => said.includes(body)), said, `${where}to ${peer}: each once, in the order written`);
  }
}

test('rough nets: nothing lost, nothing twice, nothing out of order, and all agree', async () => {
  for (const seed of seeds(40)) await withSeed(seed, rough);
});
