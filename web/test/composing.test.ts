/** What is being written: words that somebody typed are never thrown away. */

import { expect, test } from 'vitest';
import { Composing } from '../src/state/composing';
import { targetOf } from '../src/state/target';
import { ME, message, PEER } from './made';

const target = (seq: number, peer = PEER) => targetOf(ME, peer, message(seq, { from: ME }));

function composing() {
  const drafts = new Map([['ann', 'to ann']]);
  let kept = 0;
  const it = new Composing(drafts, () => {
    kept += 1;
  });
  const text = () => it.writing.get().text;
  return { it, drafts, text, kept: () => kept };
}

test('each conversation has its draft', () => {
  const { it, drafts, text, kept } = composing();
  it.open('bob');
  it.type('to bob');
  it.open('ann');
  expect([text(), drafts.get('bob'), kept()]).toEqual(['to ann', 'to bob', 1]);
  it.type('');
  expect(drafts.has('ann')).toBe(false);
  it.open(null);
  it.type('to nobody');
  expect([...drafts]).toEqual([['bob', 'to bob']]);
});

test('an edit that ends without being saved leaves its words below the draft', () => {
  const { it, text } = composing();
  it.open('bob');
  it.type('a draft');
  expect(it.edit(target(1), 'one')).toBe(false);
  it.type('one, better');
  expect(it.edit(target(1), 'one'), 'once more: nothing begins anew').toBe(false);
  expect(text()).toBe('one, better');
  expect(it.edit(target(2), 'two')).toBe(true);
  expect(text()).toBe('two');
  expect(
    it.review(() => false),
    'nothing was typed',
  ).toBe(false);
  expect(text()).toBe('a draft\none, better');
});

test('a saved edit leaves the draft as it was; one that stands goes on', () => {
  const { it, text } = composing();
  it.open('bob');
  it.type('a draft');
  it.edit(target(1), 'one');
  it.type('better');
  expect(it.review(() => true)).toBe(false);
  expect(text()).toBe('better');
  it.endEdit();
  expect(text()).toBe('a draft');
});

test('words from elsewhere come below the draft, during an edit, too', () => {
  const { it, text } = composing();
  it.open('bob');
  it.edit(target(1), 'one');
  it.take('refused words');
  expect(text()).toBe('one');
  it.endEdit();
  it.take('more');
  expect(text()).toBe('refused words\nmore');
});
