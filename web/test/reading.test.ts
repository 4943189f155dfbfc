/** Where the line above the new messages stands. */

import { expect, test } from 'vitest';
import { Divider } from '../src/pure/reading';

test('where nobody saw it come; it stays while that is read, and moves when there is something new', () => {
  const it = new Divider();
  const move = (unread: number, read: number, isWatched: boolean, missedTo = 0) => {
    it.move({ unread, read, missedTo }, isWatched);
    return it.after;
  };
  expect(move(0, 11, true)).toBeNull();
  expect(move(1, 11, true), 'seen as it comes').toBeNull();
  expect(move(3, 11, false)).toBe(11);
  expect(move(2, 12, true), 'reading on does not move it').toBe(11);
  expect(move(9, 12, false)).toBe(11);
  expect(move(0, 20, true), 'nor does the end').toBe(11);
  expect(move(1, 20, false)).toBe(20);
  it.remove();
  expect(move(2, 30, true, 32), 'missed, though somebody looks now').toBe(30);
});
