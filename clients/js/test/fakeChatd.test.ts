/** What the chatd in memory does to lines at a test's word. What it answers is held by the vectors. */
import assert from 'node:assert/strict';
import { test } from 'vitest';
import { FakeChatd } from '../src/testing/index.js';
import { settle, TestClock } from './fakes.js';

test('cut and close take along the lines that have yet to say hello', async () => {
  const clock = new TestClock(1000);
  for (const [end, code] of [
    [(chatd: FakeChatd) => chatd.cut(), 1006],
    [(chatd: FakeChatd) => chatd.close(1012), 1012],
  ] as const) {
    const chatd = new FakeChatd({ clock });
    const socket = new chatd.WebSocket(chatd.url, 'chatd.v1');
    const codes: number[] = [];
    socket.onclose = ({ code }) => codes.push(code);
    await settle();
    assert.deepEqual([socket.readyState, chatd.sessions], [1, []]);
    end(chatd);
    await clock.pass(1);
    assert.deepEqual(codes, [code]);
  }
});
