/** What a question or an edit is about. */

import { expect, test } from 'vitest';
import { isSame, standing, targetOf } from '../src/state/target';
import { ME, message, NOON, PEER } from './made';

const mine = (seq: number | null, facts = {}) => message(seq, { from: ME, ...facts });

test("what is asked about stands while it is held, one's own and not deleted", () => {
  const all = [mine(1), message(2)];
  const target = targetOf(ME, PEER, mine(1));
  expect(standing(all, target)?.seq).toBe(1);
  expect(standing(all, targetOf(ME, PEER, message(2))), 'not the author').toBeNull();
  expect(standing([message(2)], target), 'not held').toBeNull();
  expect(standing([mine(1, { body: null })], target), 'deleted').toBeNull();
  const never = mine(null, { cid: 'w' });
  expect(standing([never], targetOf(ME, PEER, never)), 'it never left').toBe(never);
});

test('after a restore its cid names it still, a seq alone does not', () => {
  const byCid = targetOf(ME, PEER, mine(1));
  const bySeq = targetOf(ME, PEER, mine(1, { cid: null }));
  const restored = [mine(1, { cid: 'other', ts: NOON + 51 }), mine(2, { cid: 'c1', ts: NOON + 52 })];
  expect([standing(restored, byCid)?.seq, standing(restored, bySeq)]).toEqual([2, null]);
  expect(standing(restored, { ...byCid, user: 'mallory' })).toBeNull();
});

test('a target is one message of one conversation of one user', () => {
  const target = targetOf(ME, PEER, mine(1));
  expect(isSame(target, targetOf(ME, PEER, mine(1)))).toBe(true);
  expect([{ user: 'eve' }, { peer: 'ann' }, { key: 'c2' }].map((one) => isSame(target, { ...target, ...one }))).toEqual(
    [false, false, false],
  );
});
