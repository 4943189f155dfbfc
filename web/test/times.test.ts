/** Times in words. */

import { expect, test } from 'vitest';
import { dayName, dayOf, lastSeen, seconds, shortTime } from '../src/pure/times';
import { DAY, MINUTE, NOON } from './made';

test('times in words', () => {
  expect(dayOf(NOON)).toBe(dayOf(NOON + 60 * MINUTE));
  expect([dayName(NOON, NOON), dayName(NOON - DAY, NOON), dayName(NOON + 10 * MINUTE, NOON)]).toEqual([
    'Today',
    'Yesterday',
    'Today',
  ]);
  expect(dayName(NOON - 3 * DAY, NOON)).not.toBe('');
  expect(dayName(NOON - 400 * DAY, NOON)).toContain('2025');
  expect(shortTime(NOON - DAY, NOON)).toBe('Yesterday');
  expect(lastSeen(null, NOON)).toBe('offline');
  expect(lastSeen(NOON + 5000, NOON)).toBe('last seen just now');
  expect(lastSeen(NOON - 5 * MINUTE, NOON)).toBe('last seen 5 min ago');
  expect(lastSeen(NOON - 3 * 60 * MINUTE, NOON)).toMatch(/^last seen today at /);
  expect(lastSeen(NOON - DAY, NOON)).toMatch(/^last seen yesterday at /);
  expect([seconds(1), seconds(1001)]).toEqual(['1 s', '2 s']);
});

test('every midnight of a year makes one new day, also where the clock changes', () => {
  for (let day = 0; day < 366; day += 1) {
    const before = new Date(2026, 0, 1 + day, 23, 59).getTime();
    const after = new Date(2026, 0, 2 + day, 0, 1).getTime();
    expect(dayOf(before)).not.toBe(dayOf(after));
    expect(dayName(before, after)).toBe('Yesterday');
  }
});
