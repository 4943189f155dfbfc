/** What outlives a reload. */

import { expect, test } from 'vitest';
import { Keep } from '../src/state/keep';

class Area {
  readonly map = new Map<string, string>();
  isFull = false;
  getItem(key: string) {
    return this.map.get(key) ?? null;
  }
  setItem(key: string, value: string) {
    if (this.isFull) throw new DOMException('full', 'QuotaExceededError');
    this.map.set(key, value);
  }
  removeItem(key: string) {
    this.map.delete(key);
  }
}

function keep() {
  const area = new Area();
  return { area, it: new Keep(area as unknown as Storage) };
}

test('drafts: kept by user, the empty ones not, the last fifty', () => {
  const { it, area } = keep();
  it.keepDrafts(
    'alice',
    new Map([
      ['bob', 'half a'],
      ['carol', ''],
    ]),
  );
  expect([[...it.drafts('alice')], [...it.drafts('bob')]]).toEqual([[['bob', 'half a']], []]);
  it.keepDrafts('alice', new Map(Array.from({ length: 60 }, (_, i) => [`u${i}`, 'x'])));
  expect([...it.drafts('alice').keys()].slice(0, 2)).toEqual(['u10', 'u11']);
  it.keepDrafts('alice', new Map());
  expect(area.map.size).toBe(0);
});

test('storage with nonsense in it, full or forbidden storage: the page goes on', () => {
  const { it, area } = keep();
  for (const bad of ['{', 'null', '3', '{"bob":"hi"}']) {
    area.map.set('chatd.drafts/alice', bad);
    expect([...it.drafts('alice')], bad).toEqual([]);
  }
  area.map.set('chatd.drafts/alice', '[1,["bob","hi"],["x"],["","nobody"],["y",1]]');
  expect([...it.drafts('alice')]).toEqual([['bob', 'hi']]);
  area.isFull = true;
  it.set('name', 'alice');
  expect(it.get('name')).toBeNull();
  const none = new Keep(null);
  none.set('name', 'x');
  none.keepDrafts('x', new Map([['bob', 'hi']]));
  expect([none.get('name'), none.drafts('x').size]).toEqual([null, 0]);
});
