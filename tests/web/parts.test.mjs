/** The small parts around the model: storage, sign-in, history pages, attention, the words of the banner. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Attention, HIDDEN_AWAY_MS, IDLE_AWAY_MS } from '../../chatd/web/attention.js';
import { RequestError } from '../../chatd/web/client.js';
import { History } from '../../chatd/web/history.js';
import { Model } from '../../chatd/web/model.js';
import { SignIn } from '../../chatd/web/signin.js';
import { Store } from '../../chatd/web/store.js';
import { bannerOf } from '../../chatd/web/view.js';
import { FakeClock, WELCOME, item, settle, uuid } from './fakes.mjs';

// --- store ----------------------------------------------------------------------------------------------------------

class FakeArea {
  constructor(from = new Map()) {
    this.map = new Map(from);
    this.isFull = false;
  }

  get length() {
    return this.map.size;
  }

  key(i) {
    return [...this.map.keys()][i] ?? null;
  }

  getItem(key) {
    return this.map.get(key) ?? null;
  }

  setItem(key, value) {
    if (this.isFull) throw new DOMException('full', 'QuotaExceededError');
    this.map.set(key, value);
  }

  removeItem(key) {
    this.map.delete(key);
  }
}

/** Web locks of one browser, over all its tabs. */
class FakeLocks {
  constructor() {
    this.names = new Set();
  }

  async request(name, { ifAvailable }, held) {
    assert.equal(ifAvailable, true);
    if (this.names.has(name)) return held(null);
    this.names.add(name);
    return held({ name });
  }

  async query() {
    return { held: [...this.names].map((name) => ({ name })) };
  }
}

const browser = () => ({ local: new FakeArea(), locks: new FakeLocks() });
async function tab({ local, locks }, session = new FakeArea()) {
  const store = new Store({ session, local, locks, uuid });
  await store.claimDevice();
  return Object.assign(store, { close: () => locks.names.delete(`chatd.device/${store.device}`) });
}
const unsent = (cid, facts = {}) => ({
  peer: 'bob', cid, kind: 'message', body: 'hi', ref: null, at: 1, tried: true, failed: false, code: null, msg: null, ...facts,
});

test('two tabs are two devices; a reload is the same one; a duplicated tab is a new one', async () => {
  const here = browser();
  const [a, b] = [await tab(here), await tab(here)];
  assert.notEqual(a.device, b.device);
  assert.match(a.device, /^[A-Za-z0-9._:-]{1,64}$/);
  const copy = await tab(here, new FakeArea(a.session.map));
  assert.notEqual(copy.device, a.device);
  a.close();
  assert.equal((await tab(here, a.session)).device, a.device);
});

test('without web locks a tab still has a device of its own', async () => {
  const session = new FakeArea();
  const first = new Store({ session, local: new FakeArea(), locks: null, uuid });
  const device = await first.claimDevice();
  assert.equal(await new Store({ session, local: null, locks: null, uuid }).claimDevice(), device);
});

test('what a closed tab had left to say is taken over once, a living tab keeps its own, another user sees nothing of it', async () => {
  const here = browser();
  const [gone, alive] = [await tab(here), await tab(here)];
  gone.keepOutbox('alice/x', 'e1', [unsent('1'), unsent('2', { failed: true })]);
  alive.keepOutbox('alice/x', 'e1', [unsent('3')]);
  gone.close();
  const next = await tab(here);
  await next.lookAround();
  assert.deepEqual(next.takeOutbox('x').items, []);
  const { epoch, items } = next.takeOutbox('alice/x');
  assert.deepEqual([epoch, items.map(({ cid }) => cid)], ['e1', ['1', '2']]);
  const third = await tab(here);
  await third.lookAround();
  assert.deepEqual(third.takeOutbox('alice/x').items, []);
  await next.lookAround();
  assert.deepEqual(next.takeOutbox('alice/x').items.map(({ cid }) => cid), ['1', '2'], 'kept under the new name');
});

test('an empty outbox leaves nothing behind; one from two epochs has none', async () => {
  const here = browser();
  const [a, b] = [await tab(here), await tab(here)];
  a.keepOutbox('alice', 'e1', [unsent('1')]);
  a.keepOutbox('alice', 'e1', []);
  assert.equal(here.local.length, 0);
  a.keepOutbox('alice', 'e1', [unsent('1')]);
  b.keepOutbox('alice', 'e2', [unsent('2')]);
  a.close();
  b.close();
  const next = await tab(here);
  await next.lookAround();
  assert.deepEqual([next.takeOutbox('alice').epoch, here.local.length], ['', 1]);
});

test('storage with nonsense in it, full or forbidden storage: the page goes on', async () => {
  const here = browser();
  const it = await tab(here);
  const key = `chatd.outbox/${it.device}/alice`;
  for (const bad of ['{', 'null', '[]', '{"items":3}', '{"epoch":"e","items":[null,3,{"peer":"bob"},{"cid":"1","peer":"bob","kind":"send"}]}']) {
    here.local.map.set(key, bad);
    assert.deepEqual(it.takeOutbox('alice').items, [], bad);
  }
  it.session.map.set('chatd.drafts/alice', '[1,["bob","hi"],["x"]]');
  assert.deepEqual([...it.drafts('alice')], [['bob', 'hi']]);
  here.local.isFull = true;
  it.keepOutbox('alice', 'e1', [unsent('1')]);
  assert.equal(it.isKeeping, false);
  const none = new Store({ session: null, local: null, locks: null, uuid });
  await none.claimDevice();
  none.set('name', 'x');
  assert.deepEqual([none.get('name'), none.takeOutbox('alice').items], [null, []]);
});

test('nothing to nobody: neither kept nor taken up', async () => {
  const here = browser();
  const it = await tab(here);
  const key = `chatd.outbox/${it.device}/alice`;
  it.keepOutbox('alice', 'e1', [unsent('1', { peer: '' })]);
  assert.equal(here.local.getItem(key), null);
  here.local.map.set(key, JSON.stringify({ epoch: 'e1', items: [unsent('1', { peer: '' }), unsent('2')] }));
  assert.deepEqual(it.takeOutbox('alice').items.map(({ cid }) => cid), ['2']);
  here.local.map.set(key, JSON.stringify({ epoch: 'e1', items: [unsent('1', { peer: '' })] }));
  assert.deepEqual([it.takeOutbox('alice').items, here.local.getItem(key)], [[], null], 'it does not come back');
  it.session.map.set('chatd.drafts/alice', '[["","hi"],["bob","ho"]]');
  assert.deepEqual([...it.drafts('alice')], [['bob', 'ho']]);
});

test('drafts: kept by user, the empty ones not', async () => {
  const it = await tab(browser());
  it.keepDrafts('alice', new Map([['bob', 'half a'], ['carol', '']]));
  assert.deepEqual([[...it.drafts('alice')], [...it.drafts('bob')]], [[['bob', 'half a']], []]);
});

// --- sign-in --------------------------------------------------------------------------------------------------------

function signIn(answer) {
  const asked = [];
  return { asked, it: new SignIn({ fetch: async (url, init) => {
    asked.push([url, init.headers['X-Chatd-Dev']]);
    const { status = 200, body = {} } = answer(url);
    return { status, json: async () => { if (body === null) throw new SyntaxError('no JSON'); return body; } };
  } }) };
}

test('a name gets a token from a development server; the first is used once it is there, a renewal asks anew', async () => {
  let n = 0;
  const { it, asked } = signIn(() => ({ body: { token: `t${n += 1}`, user: 'a&b' } }));
  assert.equal(await it.mode(), 'name');
  assert.deepEqual(await it.enter({ name: 'a&b' }), { fault: null, mode: 'name' });
  assert.deepEqual([await it.token(null), await it.token(null), await it.token('token_expired'), await it.token(null)], ['t2', 't2', 't3', 't3']);
  assert.deepEqual(asked.at(-1), ['/dev/token?user=a%26b', '1']);
});

test('404: a token is asked for, used, and not used again once it was refused', async () => {
  const { it } = signIn(() => ({ status: 404, body: null }));
  assert.equal(await it.mode(), 'token');
  assert.equal((await it.enter({ name: 'alice' })).mode, 'token');
  await it.enter({ token: 'mine' });
  assert.deepEqual([await it.token(null), await it.token('refresh')], ['mine', null]);
  await it.enter({ token: 'newer' });
  assert.deepEqual([await it.token('token_expired'), await it.token('token_expired')], ['newer', null]);
});

test('a refused name is said; a server that is away is no refusal of the token', async () => {
  const { it } = signIn((url) => (url.includes('bad') ? { status: 400, body: { error: 'no such' } } : { body: { token: 't', user: 'u' } }));
  assert.equal((await it.enter({ name: 'bad' })).fault, 'no such');
  const away = new SignIn({ fetch: async () => { throw new TypeError('network'); } });
  assert.ok((await away.enter({ name: 'x' })).fault);
  away.name = 'x';
  await assert.rejects(away.token('refresh'));
  const broken = signIn(() => ({ status: 500, body: null })).it;
  broken.name = 'x';
  await assert.rejects(broken.token('refresh'));
});

// --- history --------------------------------------------------------------------------------------------------------

function history(items, { state = 'live' } = {}) {
  const clock = new FakeClock();
  const asked = [];
  const acked = [];
  const model = new Model({ now: () => clock.now(), changed: () => {}, pending: () => [] });
  const client = {
    history: (peer, range) => new Promise((resolve, reject) => asked.push({ peer, range, resolve, reject })), ack: (...args) => acked.push(args),
  };
  model.status({ state, reason: '', retryAt: 0 });
  model.welcome(WELCOME);
  for (const one of items) model.item(one, false);
  return { clock, asked, acked, model, it: new History({ client, model, clock }) };
}
const page = (first, last, more = true) => ({
  entries: Array.from({ length: last - first + 1 }, (_, i) => ({ seq: first + i, ts: 1, from: 'bob', to: 'alice', kind: 'message', body: 'x' })),
  more, head: last, floor: 1,
});
const bobs = { c: '1', peer: 'bob', head: 90 };

test('the newest page, then the one before, one at a time, until there is no more', async () => {
  const { it, asked, acked, model } = history([item({ ...bobs, delivered: 80, unread: 60 })]);
  it.older('bob');
  it.older('bob');
  assert.deepEqual(asked.map(({ range }) => range), [{ limit: 65 }]);
  asked[0].resolve(page(30, 90));
  await settle();
  assert.deepEqual(acked, [['bob', 90]], 'what waited is delivered now');
  it.older('bob');
  assert.deepEqual(asked[1].range, { limit: 50, before: 30 });
  asked[1].resolve(page(1, 29, false));
  await settle();
  it.older('bob');
  assert.equal(asked.length, 2);
  assert.equal(model.conversations.get('bob').log.messages().length, 90);
});

test('a place far off: its page replaces what is held, and pages lead on to the end; the end replaces it at once', async () => {
  const { it, asked, model } = history([item({ ...bobs, head: 900, read: 300, unread: 600 })]);
  const log = () => model.conversations.get('bob').log;
  const range = () => asked.at(-1).range;
  const answer = async (...args) => {
    asked.at(-1).resolve({ ...page(...args), head: 900 });
    await settle();
  };
  it.older('bob');
  assert.deepEqual(range(), { limit: 100 });
  await answer(801, 900);
  it.from('bob', 300);
  it.older('bob');
  assert.deepEqual([range(), log().lo], [{ limit: 100, after: 300 }, 801], 'what is held stays until the other is there');
  await answer(301, 400);
  assert.deepEqual([log().lo, log().hi, log().apart, log().last.seq], [301, 400, true, 900]);
  it.newer('bob');
  it.newer('bob');
  assert.deepEqual([range(), asked.length], [{ limit: 100, after: 400 }, 3]);
  await answer(401, 500);
  it.latest('bob');
  assert.deepEqual(range(), { limit: 50 });
  await answer(851, 900);
  assert.deepEqual([log().lo, log().hi, log().apart], [851, 900, false]);
  it.newer('bob');
  it.latest('bob');
  assert.equal(asked.length, 4);
});

test('who wanted to go to the end when the line was lost is not taken there later', async () => {
  const { it, asked, model } = history([item({ ...bobs, head: 900 }), ...[1, 2, 3].map((i) => item({ c: `c${i}`, peer: `u${i}`, head: 3 }))]);
  model.page('bob', { ...page(1, 9), head: 900 });
  model.conversations.get('bob').log.isApart = true;
  it.previews(['u1', 'u2', 'u3']);
  it.latest('bob');
  model.status({ state: 'waiting', reason: 'lost', retryAt: 0 });
  it.previews([]);
  model.status({ state: 'live', reason: '', retryAt: 0 });
  for (const one of asked) one.reject(new RequestError({ code: 'disconnected' }));
  await settle();
  it.previews([]);
  assert.equal(asked.filter(({ peer }) => peer === 'bob').length, 0);
});

test('previews: a few at a time, only of what is in sight and blank; the one on the screen goes first', async () => {
  const names = Array.from({ length: 9 }, (_, i) => `u${i}`);
  const items = names.map((peer, i) => item({ c: `c${i}`, peer, head: 3 }));
  const { it, asked } = history([...items, item({ c: 'e', peer: 'empty', head: 0 }), item(bobs)]);
  it.previews(['empty', ...names]);
  assert.deepEqual(asked.map(({ peer }) => peer), ['u0', 'u1', 'u2']);
  it.older('bob');
  it.previews(['u7', 'u8']);
  asked[0].resolve(page(1, 3, false));
  await settle();
  assert.equal(asked[3].peer, 'bob');
  for (let i = 1; i < asked.length; i += 1) {
    asked[i].resolve(page(1, 3, false));
    await settle();
  }
  assert.deepEqual(asked.slice(4).map(({ peer }) => peer), ['u7', 'u8']);
});

test('refused for now: asked again after its time; for good: not again; disconnected: by whoever wants it then', async () => {
  const { it, asked, clock } = history([item(bobs)]);
  it.older('bob');
  asked[0].reject(new RequestError({ code: 'overloaded', retry_ms: 2000 }));
  await clock.pass(1999);
  assert.equal(asked.length, 1);
  await clock.pass(1);
  assert.equal(asked.length, 2);
  asked[1].reject(new RequestError({ code: 'disconnected' }));
  await settle();
  assert.equal(asked.length, 2);
  it.older('bob');
  asked[2].reject(new RequestError({ code: 'no_conversation' }));
  await settle();
  it.older('bob');
  assert.equal(asked.length, 3);
});

test('an answer to the last user\'s question is not taken', async () => {
  const { it, asked, model } = history([item(bobs)]);
  it.older('bob');
  it.forget();
  model.forget();
  asked[0].resolve(page(1, 3));
  await settle();
  assert.equal(model.conversations.size, 0);
});

// --- attention ------------------------------------------------------------------------------------------------------

function attention() {
  const clock = new FakeClock();
  const said = [];
  const it = new Attention({
    clock, visible: true, focused: true, onAway: (away) => said.push(away), onWake: () => said.push('wake'), onLook: () => said.push('look'),
  });
  return { clock, said, it };
}

test('away: hidden for a while, or idle for long; back by a look or a move', async () => {
  const { clock, said, it } = attention();
  await clock.pass(IDLE_AWAY_MS - 1);
  it.stir();
  await clock.pass(IDLE_AWAY_MS - 1);
  assert.deepEqual(said, []);
  await clock.pass(1);
  it.stir();
  it.see(false);
  await clock.pass(HIDDEN_AWAY_MS - 1);
  it.see(true);
  it.see(false);
  it.stir();
  await clock.pass(HIDDEN_AWAY_MS);
  it.see(true);
  assert.deepEqual(said, [true, false, 'look', 'look', 'wake', true, false, 'look', 'wake']);
});

test('present: visible, with the focus, not idle; nobody is there once one of them is not', async () => {
  const { clock, said, it } = attention();
  assert.equal(it.isPresent, true);
  it.focus(false);
  assert.equal(it.isPresent, false);
  it.stir();
  assert.equal(it.isPresent, false, 'a mouse that passes over the window');
  it.stir(true);
  assert.equal(it.isPresent, true, 'a key');
  it.focus(false);
  it.focus(true);
  assert.equal(it.isPresent, true);
  it.see(false);
  it.focus(true);
  assert.equal(it.isPresent, false);
  it.see(true);
  assert.equal(it.isPresent, true);
  await clock.pass(IDLE_AWAY_MS);
  assert.deepEqual([it.isPresent, it.away], [false, true]);
  said.length = 0;
  it.stir();
  assert.deepEqual([it.isPresent, said], [true, [false, 'look']]);
});

test('a device that slept: nobody is there before its timers have run; a clock that was set back keeps nobody away', () => {
  const { clock, said, it } = attention();
  it.stir();
  clock.at += IDLE_AWAY_MS;
  assert.deepEqual([it.isPresent, it.away, said], [false, false, []]);
  it.stir();
  assert.deepEqual([it.isPresent, said], [true, ['look']]);
  clock.at -= 60 * 60000;
  it.away = true;
  it.stir();
  assert.equal(it.isPresent, true);
});

// --- the banner -----------------------------------------------------------------------------------------------------

test('the banner: silent while all is well, says what is the matter and what can be done', () => {
  const say = (state, reason = '', retryAt = 0) => bannerOf({ state, reason, retryAt }, 1000);
  for (const state of ['live', 'idle', 'token']) assert.equal(say(state), null);
  assert.match(say('waiting', 'lost', 6000).text, /again in 5 s/);
  assert.equal(say('waiting', 'lost', 6000).action, 'again');
  assert.equal(say('waiting', 'lost', 1500).action, null);
  assert.match(say('draining', 'restart', 3000).text, /restart/);
  assert.match(say('stopped', 'replaced').text, /another window/);
  assert.equal(say('stopped', 'protocol').action, 'reload');
  assert.equal(say('stopped', 'something new').kind, 'bad');
  assert.equal(say('connecting').kind, 'busy');
});
