/** Whether somebody is there. */

import { expect, test } from 'vitest';
import { Attention, IDLE_MS } from '../src/state/attention';

function attention() {
  const clock = { at: 1_000_000 };
  const it = new Attention(() => clock.at, true, true);
  return { clock, it };
}

test('present: visible, with the focus, not idle; nobody is there once one of them is not', () => {
  const { clock, it } = attention();
  expect(it.isHere).toBe(true);
  it.focus(false);
  expect(it.isHere).toBe(false);
  it.stir(false);
  expect(it.isHere, 'a mouse that passes over the window').toBe(false);
  it.stir(true);
  expect(it.isHere, 'a key').toBe(true);
  it.see(false);
  it.focus(true);
  expect(it.isHere).toBe(false);
  it.see(true);
  expect(it.isHere).toBe(true);
  it.away(true);
  expect(it.isPresent.get()).toBe(false);
  it.away(false);
  clock.at += IDLE_MS;
  expect(it.isHere, 'a device that slept: its timers run later').toBe(false);
  it.stir(false);
  expect(it.isPresent.get()).toBe(true);
});
