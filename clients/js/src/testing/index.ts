/**
 * A chatd in memory, for tests of applications and of the client itself: `FakeChatd`, its faults, and a clock that is
 * moved by hand.
 */
export type * as frames from '../generated/frames.js';
export { TestClock, type TestingClock } from './clock.js';
export type { Cursors, Log } from './conversation.js';
export type { AnyFrame } from './fields.js';
export { FakeChatd, type FakeOptions, type FakeWebSocketClass, type Fault } from './server.js';
export type { Session } from './session.js';
export type { FakeSettings } from './settings.js';
export type { ClosedEvent, FakeWebSocket } from './socket.js';
