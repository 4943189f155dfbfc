/** What the log shows row by row, what is said beside what waits, and the preview in the list. */

import type { ConversationView } from '@chatd/client';
import { expect, test } from 'vitest';
import { faultOf, preview, type Row, rows, tickOf } from '../src/pure/rows';
import { canDelete, canEdit } from '../src/state/target';
import { DAY, ME, MINUTE, message, NOON, PEER, waiting } from './made';

const mine = (seq: number | null, facts = {}) => message(seq, { from: ME, ...facts });
const shapes = (all: readonly Row[]) => all.map(({ first, last }) => [first, last]);

test("ticks: sent, delivered, read by the peer's cursors; none on what the peer wrote or was deleted", () => {
  const all = [
    mine(1, { state: 'read' }),
    mine(2, { state: 'delivered' }),
    mine(3),
    message(4),
    mine(5, { body: null }),
  ];
  expect(all.map((one) => tickOf(one, false))).toEqual(['read', 'delivered', 'sent', 'none', 'none']);
  expect(tickOf(mine(1, { state: 'read' }), true)).toBe('sent');
});

test('what waits is sending, after a refusal waiting with its reason, else failed with both ways out', () => {
  const tick = (facts: Parameters<typeof waiting>[0]) =>
    tickOf(mine(null, { state: facts?.state ?? 'sending', waiting: waiting(facts) }), false);
  expect([tick({}), tick({ code: 'blocked' }), tick({ code: 'rate_limited' })]).toEqual([
    'sending',
    'sending',
    'waiting',
  ]);
  expect(tick({ state: 'failed', code: 'nonsense' })).toBe('failed');
  expect([faultOf(waiting()), faultOf(waiting({ code: 'blocked' }))]).toEqual([null, null]);
  expect(faultOf(waiting({ code: 'rate_limited' }))).toMatchObject({ isFailed: false, canAgain: false });
  expect(faultOf(waiting({ state: 'failed', code: 'nonsense' }))).toMatchObject({ canAgain: true, canDiscard: true });
});

test('what cannot succeed offers no second try, and its words', () => {
  const late = faultOf(waiting({ kind: 'edit', state: 'failed', code: 'too_late', body: 'typed' }));
  expect(late).toMatchObject({ isFailed: true, canAgain: false, words: 'typed' });
  expect(faultOf(waiting({ kind: 'delete', state: 'failed', code: 'no_message', body: null }))?.words).toBeNull();
});

test('keys are never given twice', () => {
  const old = mine(null, { cid: 'old', ts: NOON - DAY });
  const all = rows([message(1, { ts: NOON - DAY }), message(2), mine(3), old, mine(null, { cid: 'x' })], ME, 1);
  expect(new Set(all.map(({ key }) => key)).size).toBe(all.length);
});

test('a day above the first message of each day, the line above the first unread one of the peer', () => {
  const all = [message(1, { ts: NOON - DAY }), mine(2, { ts: NOON - MINUTE }), message(3)];
  const marks = (mark: number | null) => rows(all, ME, mark).map(({ day, isFirstNew }) => [day !== null, isFirstNew]);
  expect(marks(1)).toEqual([
    [true, false],
    [true, false],
    [false, true],
  ]);
  expect(marks(0)).toEqual([
    [true, true],
    [true, false],
    [false, false],
  ]);
  expect(marks(3)).toEqual([
    [true, false],
    [true, false],
    [false, false],
  ]);
  expect(marks(null)).toEqual(marks(3));
});

test('a message that has waited since an earlier day begins no day', () => {
  const all = rows([message(1), mine(null, { ts: NOON - DAY })], ME, null);
  expect(all.map(({ day }) => day !== null)).toEqual([true, false]);
});

test('messages of one side stand as a group while they are close', () => {
  const late = NOON + 20 * MINUTE;
  const all = [message(1), message(2, { ts: NOON + MINUTE }), message(3, { ts: late }), mine(4, { ts: late })];
  expect(shapes(rows(all, ME, null))).toEqual([
    [true, false],
    [false, true],
    [true, true],
    [true, true],
  ]);
  expect(shapes(rows(all.slice(0, 2), ME, 1))).toEqual([
    [true, true],
    [true, true],
  ]);
});

/** Numbers below n, from a seed. */
function dice(seed: number): (n: number) => number {
  let state = seed + 1;
  return (n) => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return Math.floor((state / 2147483648) * n);
  };
}

test('rows made from the rows before are those made from nothing, and what is the same is the same object', () => {
  for (let seed = 0; seed < 200; seed += 1) {
    const below = dice(seed);
    let all = Array.from({ length: 20 }, (_, i) => message(100 + i, { ts: NOON + i * below(9) * MINUTE }));
    let [low, high] = [100, 119];
    let had: readonly Row[] = [];
    for (let turn = 0; turn < 12; turn += 1) {
      const act = below(6);
      const at = below(all.length);
      const { ts } = all.at(-1) ?? message(100);
      if (act === 0) high += 1;
      if (act === 1) low -= 1;
      if (act === 0) all = [...all, message(high, { ts: ts + below(3) * 4 * MINUTE })];
      if (act === 1) all = [message(low, { ts: NOON - below(3) * DAY }), ...all];
      if (act === 2 && all.length > 2) all = all.slice(below(2) + 1);
      if (act === 3) all = all.map((one, i) => (i === at ? { ...one, body: `edited ${turn}` } : one));
      if (act === 4) all = [...all, mine(null, { cid: `w${turn}`, ts })];
      if (act === 5) all = all.filter(({ seq: one }) => one !== null);
      const mark = below(3) === 0 ? 100 + below(20) : null;
      const now = rows(all, ME, mark, had);
      expect(now, `seed ${seed}, turn ${turn}`).toEqual(rows(all, ME, mark));
      const before = new Map(had.map((row) => [row.key, row]));
      for (const row of now) {
        const known = before.get(row.key);
        if (known && JSON.stringify(known) === JSON.stringify(row) && known.message === row.message) {
          expect(row).toBe(known);
        }
      }
      expect(rows(all, ME, mark, now)).toBe(now);
      had = now;
    }
  }
});

test("editing ends with its time, deleting does not; only one's own, only what stands", () => {
  const can = (one: Parameters<typeof canDelete>[0]) => [canEdit(one, NOON, 15 * MINUTE), canDelete(one)];
  expect(can(mine(1, { ts: NOON - 16 * MINUTE }))).toEqual([false, true]);
  expect(can(mine(2, { ts: NOON - 14 * MINUTE }))).toEqual([true, true]);
  expect(can(mine(3, { body: null }))).toEqual([false, false]);
  expect(can(mine(null, { state: 'sending', waiting: waiting() }))).toEqual([true, true]);
  expect(can(mine(null, { state: 'sending', waiting: waiting({ canCancel: false }) }))).toEqual([false, false]);
  expect(can(mine(4, { waiting: waiting({ kind: 'delete' }) }))).toEqual([false, false]);
});

test('the preview: the last message, what it is, how far it has got; nothing where nothing is held', () => {
  const view = (last: ConversationView['last'], facts: Partial<ConversationView> = {}) =>
    preview({ peer: PEER, c: '12', ts: NOON, unread: 0, open: true, last, isBlank: false, ...facts }, ME);
  expect(view(mine(2, { body: 'b', state: 'delivered' }))).toMatchObject({ text: 'b', tick: 'delivered' });
  expect(view(mine(2, { body: null }))).toMatchObject({ text: 'You deleted a message', kind: 'deleted', tick: 'none' });
  expect(view(message(2, { body: null })).text).toBe('Message deleted');
  expect(view(message(2, { body: 'two\n\nlines' })).text).toBe('two lines');
  expect(view(message(2, { body: '\u2060' })).text).toBe('(nothing to be seen)');
  expect(view(null)).toMatchObject({ kind: 'none', ts: NOON });
  expect(view(null, { c: null }).ts).toBeNull();
});
