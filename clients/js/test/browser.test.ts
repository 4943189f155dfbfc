/** What a browser tells: visibility, online, the cache of pages, freeze, sleep, and whether anybody is there. */

import assert from 'node:assert/strict';
import { afterEach, beforeEach, test, vi } from 'vitest';
import { browser } from '../src/browser.js';
import { sleepWatch } from '../src/sleep.js';

class FakeDocument extends EventTarget {
  hidden = false;
}

let page = new FakeDocument();
let frame = new EventTarget();
const told: unknown[] = [];
const hooks = {
  wake: () => told.push('wake'),
  away: (is: boolean) => told.push(is ? 'away' : 'here'),
  save: () => told.push('save'),
  freeze: (is: boolean) => told.push(is ? 'freeze' : 'run'),
};
let leave = (): void => {};

beforeEach(() => {
  vi.useFakeTimers();
  page = new FakeDocument();
  frame = new EventTarget();
  Object.assign(globalThis, { document: page, window: frame });
  told.length = 0;
  leave = browser()(hooks as never);
});

afterEach(() => {
  leave();
  vi.useRealTimers();
});

function show(isShown: boolean): void {
  page.hidden = !isShown;
  page.dispatchEvent(new Event('visibilitychange'));
}

test('a short look elsewhere is no absence; a long one is, and what is to be stored is stored', () => {
  show(false);
  vi.advanceTimersByTime(19999);
  assert.deepEqual(told, ['save']);
  vi.advanceTimersByTime(1);
  assert.deepEqual(told, ['save', 'away']);
  show(true);
  assert.deepEqual(told, ['save', 'away', 'here', 'wake']);
});

test('who touches nothing for long is away, and back at the next key', () => {
  vi.advanceTimersByTime(200_000);
  frame.dispatchEvent(new Event('keydown'));
  vi.advanceTimersByTime(299_999);
  assert.deepEqual(told, []);
  vi.advanceTimersByTime(1);
  frame.dispatchEvent(new Event('pointermove'));
  assert.deepEqual(told, ['away', 'here']);
});

test('online, shown from the cache of pages, frozen and running again', () => {
  frame.dispatchEvent(new Event('online'));
  frame.dispatchEvent(new Event('pagehide'));
  frame.dispatchEvent(new Event('pageshow'));
  page.dispatchEvent(new Event('freeze'));
  page.dispatchEvent(new Event('resume'));
  assert.deepEqual(told, ['wake', 'save', 'freeze', 'run', 'wake', 'save', 'freeze', 'run', 'wake']);
});

test('nothing is heard once it ended', () => {
  leave();
  show(false);
  frame.dispatchEvent(new Event('online'));
  vi.advanceTimersByTime(1_000_000);
  assert.deepEqual(told, []);
});

test('a device that slept is awake again: a timer ran long after its time', () => {
  leave();
  let woken = 0;
  const end = sleepWatch()({
    ...hooks,
    wake: () => {
      woken += 1;
    },
  } as never);
  vi.advanceTimersByTime(60_000);
  assert.equal(woken, 0);
  vi.setSystemTime(Date.now() + 600_000);
  vi.advanceTimersByTime(15_000);
  assert.equal(woken, 1);
  end();
});
