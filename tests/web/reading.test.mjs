/** What is read, and what a question is about. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Asking, standing, targetOf } from '../../chatd/web/asking.js';
import { Model } from '../../chatd/web/model.js';
import { Divider, lastInView } from '../../chatd/web/reading.js';
import { WELCOME, item, seeds, withSeed } from './fakes.mjs';

// --- the last message in view ---------------------------------------------------------------------------------------

const seen = (lines, bottom) => lastInView(lines, bottom, ({ end }) => end, ({ seq = null }) => seq);

test('a message is in view once its end is; days, the line and what waits are no messages', () => {
  const lines = [{ end: 20 }, { end: 60, seq: 4 }, { end: 80 }, { end: 900, seq: 5 }, { end: 940, seq: 7 }, { end: 980 }];
  assert.deepEqual([0, 59, 60, 899, 900, 980, 2000].map((bottom) => seen(lines, bottom)), [null, null, 4, 4, 5, 7, 7]);
  assert.equal(seen([], 100), null);
});

test('the last in view, as a look at each line says', async () => {
  for (const seed of seeds(100)) {
    await withSeed(seed, (d) => {
      let end = 0;
      const lines = Array.from({ length: d.below(30) }, (_, i) => ({ end: end += d.below(50), seq: d.chance(0.6) ? i : null }));
      const bottom = d.below(end + 50);
      assert.equal(seen(lines, bottom), lines.filter((line) => line.end <= bottom && line.seq !== null).at(-1)?.seq ?? null);
    });
  }
});

// --- the line above what is new -------------------------------------------------------------------------------------

test('the line: where nobody saw it come; it stays while that is read, and moves when there is something new', () => {
  const it = new Divider();
  const move = (unread, read, isWatched, missedTo = 0) => {
    it.move({ unread, read, missedTo }, isWatched);
    return it.after;
  };
  assert.equal(move(0, 11, true), null);
  assert.equal(move(1, 11, true), null, 'seen as it comes');
  assert.equal(move(3, 11, false), 11);
  assert.equal(move(2, 12, true), 11, 'reading on does not move it');
  assert.equal(move(9, 12, false), 11);
  assert.equal(move(0, 20, true), 11, 'nor does the end');
  assert.equal(move(1, 20, false), 20);
  it.remove();
  assert.equal(move(2, 30, true, 32), 30, 'missed, though somebody looks now');
});

// --- what a question is about ---------------------------------------------------------------------------------------

function chats() {
  const model = new Model({ now: () => WELCOME.ts, changed: () => {}, pending: () => [] });
  model.status({ state: 'live', reason: '', retryAt: 0 });
  model.welcome(WELCOME);
  for (const [c, peer] of [['1', 'ann'], ['2', 'bob']]) {
    model.item(item({ c, peer }), false);
    for (const seq of [1, 2]) {
      const from = seq === 1 ? 'alice' : peer;
      model.entry({ c, seq, ts: WELCOME.ts + seq, from, to: from === peer ? 'alice' : peer, kind: 'message', body: 'x', cid: seq === 1 ? `${peer}1` : undefined }, 'live');
    }
  }
  const line = (peer, seq) => model.conversations.get(peer).log.messages().find((message) => message.seq === seq);
  return { model, line };
}

test('what is asked about stands while it is on the screen, held, one\'s own and not deleted', () => {
  const { model, line } = chats();
  model.show('bob');
  const target = targetOf(model, 'bob', line('bob', 1));
  assert.equal(targetOf(model, null, line('bob', 1)), null);
  assert.equal(targetOf(model, 'bob', { seq: null, ts: 1, cid: 'w' }), null, 'not stored yet');
  assert.equal(standing(model, target).cid, 'bob1');
  assert.equal(standing(model, targetOf(model, 'bob', line('bob', 2))), null, 'not the author');
  model.show('ann');
  assert.equal(standing(model, target), null);
  model.show(null);
  assert.equal(standing(model, target), null);
  model.show('bob');
  assert.equal(standing(model, target).seq, 1);
  model.entry({ c: '2', seq: 3, ts: WELCOME.ts + 3, from: 'alice', to: 'bob', kind: 'delete', ref: 1 }, 'live');
  assert.equal(standing(model, target), null);
});

test('after a restore its cid names it still, a seq alone does not', () => {
  const { model, line } = chats();
  model.show('bob');
  const byCid = targetOf(model, 'bob', line('bob', 1));
  const bySeq = targetOf(model, 'bob', { ...line('bob', 1), cid: null });
  assert.equal(standing(model, bySeq).seq, 1);
  model.reset();
  assert.equal(standing(model, byCid), null);
  for (const [seq, cid] of [[1, 'other'], [2, 'bob1']]) {
    model.entry({ c: '9', seq, ts: WELCOME.ts + 50 + seq, from: 'alice', to: 'bob', kind: 'message', body: 'y', cid }, 'live');
  }
  assert.deepEqual([standing(model, byCid).seq, standing(model, bySeq)], [2, null]);
  model.welcome({ ...WELCOME, user: 'mallory' });
  assert.equal(standing(model, byCid), null);
});

function asking() {
  const { model, line } = chats();
  const done = [];
  let question = null;
  let editing = null;
  const it = new Asking({
    model, isShown: () => true, taken: (item) => item !== null,
    client: { delete: (...args) => done.push(['delete', ...args]), edit: (...args) => done.push(['edit', ...args]) },
    view: { ask: (asked) => { question = asked; }, notice: () => {}, review: () => { if (!question?.stands()) question = null; } },
    composer: { edit: (target) => { editing = target; }, review: (stands) => { if (editing && !stands(editing)) editing = null; return false; } },
  });
  return { it, model, line, done, question: () => question, editing: () => editing };
}

test('a deletion is of what was asked about, whoever is on the screen when it is confirmed', () => {
  const { it, model, line, done, question } = asking();
  model.show('bob');
  it.delete('bob', line('bob', 1));
  const asked = question();
  model.show('ann');
  asked.confirmed();
  assert.deepEqual(done, [], 'nothing of ann, who is there now');
  it.review();
  assert.equal(question(), null);
  model.show('bob');
  it.delete('bob', line('bob', 1));
  it.review();
  question().confirmed();
  assert.deepEqual(done, [['delete', 'bob', 1, 'bob1']]);
});

test('an edit ends when its conversation leaves the screen, and changes nothing of another one', () => {
  const { it, model, line, done, editing } = asking();
  model.show('bob');
  it.editLast('bob');
  const target = editing();
  assert.equal(target.cid, 'bob1');
  assert.equal(it.save(target, 'new'), true);
  model.show('ann');
  assert.equal(it.save(target, 'newer'), false);
  assert.deepEqual([done, editing()], [[['edit', 'bob', 1, 'new', 'bob1']], null]);
  it.edit(null, line('ann', 1));
  assert.equal(editing(), null);
});
