/**
 * What the types promise, held by `tsc` (`npm run types`): the assertions do nothing at run time. Generated frames and
 * the client's own must agree, and what applications pass must fit.
 */
import { expectTypeOf, test } from 'vitest';
import type WebSocketOfWs from 'ws';
import type * as chatd from '../src/index.js';
import type { FakeWebSocketClass, frames } from '../src/testing/index.js';

test('every WebSocket class fits', () => {
  expectTypeOf<typeof WebSocket>().toExtend<chatd.SocketClass>();
  expectTypeOf<typeof WebSocketOfWs>().toExtend<chatd.SocketClass>();
  expectTypeOf<FakeWebSocketClass>().toExtend<chatd.SocketClass>();
  expectTypeOf<new (url: string) => EventTarget>().not.toExtend<chatd.SocketClass>();
});

test('the frames of the schemas are those that the client takes', () => {
  expectTypeOf<frames.Conversation>().toExtend<chatd.Item>();
  expectTypeOf<frames.Item & { c: string }>().toExtend<chatd.Entry>();
  expectTypeOf<NonNullable<frames.WelcomeFrame['limits']>>().toExtend<chatd.Limits>();
});

test('a request names its conversation by one key', () => {
  expectTypeOf<{ t: 'typing'; id: 1; c: '12' }>().toExtend<frames.TypingRequest>();
  expectTypeOf<{ t: 'typing'; id: 1; to: 'bob' }>().toExtend<frames.TypingRequest>();
  expectTypeOf<{ t: 'typing'; id: 1 }>().not.toExtend<frames.TypingRequest>();
  expectTypeOf<{ t: 'typing'; id: 1; c: '12'; to: 'bob' }>().not.toExtend<frames.TypingRequest>();
  expectTypeOf<{ t: 'delete'; id: 1; c: '12'; cid: 'x' }>().not.toExtend<frames.DeleteRequest>();
});

test('a send is a promise with a handle', () => {
  type Client = chatd.ChatClient;
  expectTypeOf<ReturnType<Client['send']>>().toExtend<Promise<chatd.Sent>>();
  expectTypeOf<ReturnType<Client['send']>['cid']>().toEqualTypeOf<string>();
  expectTypeOf<ReturnType<Client['entries']>>().toExtend<AsyncIterable<chatd.LiveEntry>>();
  expectTypeOf<ReturnType<Client['on']>>().toEqualTypeOf<() => void>();
  expectTypeOf<chatd.UserId>().toEqualTypeOf<string>();
});
