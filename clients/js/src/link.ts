/**
 * One WebSocket connection: numbered requests and their replies, and the question whether anybody is still there.
 *
 * A Link lives once: it ends by `leave`, by a close, or by silence, and after that its owner hears nothing more of it.
 * Every request is answered exactly once; with code `disconnected` if the connection ends first. A browser shows no
 * WebSocket pings, so silence is broken by the JSON `ping` (section 8), and leaving does not wait for a close handshake
 * that a dead line would never finish. Each `pong` tells the server's time.
 */

import { type Frame, isCount, parseFrame } from './frames.js';
import { SUBPROTOCOL } from './wire.js';

/** A `ping` without any frame after it for so long means that the line is dead. */
export const PROBE_MS_MAX = 5000;
/** After this much silence a ping goes out; with the probe it stays below the server's `heartbeat_ms` (20,000). */
export const SILENCE_MS = 12000;
export const ANSWER_MS_MAX = 30000;
const TIMER_MS_MAX = 2 ** 31 - 1;

/** Time for durations: monotonic, in ms. */
export interface Clock {
  now(): number;
  set(fn: () => void, ms: number): unknown;
  clear(handle: unknown): void;
}

/** The part of a WebSocket that is used. `never`: each class has events of its own, and these are assigned here alone. */
export interface Socket {
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** Makes one: `WebSocket` itself, or another of the same kind. */
export type SocketClass = new (url: string, protocol: string) => Socket;

/** Named timers, at most one of each name. */
export class Timers {
  readonly #clock: Clock;
  readonly #running = new Map<string, unknown>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Replaces the one of that name. */
  set(name: string, ms: number, fn: () => void): void {
    this.clear(name);
    const handle = this.#clock.set(
      () => {
        this.#running.delete(name);
        fn();
      },
      Math.min(ms, TIMER_MS_MAX),
    );
    this.#running.set(name, handle);
  }

  has(name: string): boolean {
    return this.#running.has(name);
  }

  clear(name: string): void {
    if (this.has(name)) this.#clock.clear(this.#running.get(name));
    this.#running.delete(name);
  }

  clearAll(): void {
    for (const name of [...this.#running.keys()]) this.clear(name);
  }
}

export interface LinkParts {
  url: string;
  WebSocket: SocketClass;
  clock: Clock;
  onOpen(): void;
  /** What is no reply. */
  onFrame(frame: Frame): void;
  /** After this, or `onSilent`, the owner calls `leave`. */
  onClose(code: number): void;
  onSilent(): void;
  /** The server's time, as a pong told it. */
  onTime(ts: number): void;
}

const DISCONNECTED: Frame = { t: 'err', code: 'disconnected' };

export class Link {
  readonly #parts: LinkParts;
  readonly #timers: Timers;
  readonly #pending = new Map<number, { answer: (frame: Frame) => void; at: number }>();
  readonly #socket: Socket;
  #lastId = 0;
  #heardAt: number;
  #isOpen = true;

  constructor(parts: LinkParts) {
    this.#parts = parts;
    this.#timers = new Timers(parts.clock);
    this.#heardAt = parts.clock.now();
    const socket = new parts.WebSocket(parts.url, SUBPROTOCOL);
    this.#socket = socket;
    socket.onopen = () => this.#isOpen && parts.onOpen();
    socket.onmessage = ({ data }: { data: unknown }) => this.#isOpen && this.#heard(data);
    socket.onclose = ({ code }: { code: number }) => this.#isOpen && parts.onClose(code);
    socket.onerror = () => {}; // a close follows; without this some WebSockets throw
  }

  /** `frame` has no `id`; `answer` is called once. */
  request(frame: Frame, answer: (frame: Frame) => void): void {
    if (!this.#isOpen) {
      answer(DISCONNECTED);
      return;
    }
    const id = ++this.#lastId;
    this.#pending.set(id, { answer, at: this.#parts.clock.now() });
    try {
      this.#socket.send(JSON.stringify({ ...frame, id }));
    } catch {
      // Not open any more: its close comes, and answers this.
    }
  }

  /** The reply came in another form (`welcome`). */
  answered(id: unknown): void {
    this.#pending.delete(id as number);
  }

  /** Idempotent. What waits for an answer gets `disconnected`. */
  leave(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#timers.clearAll();
    this.#socket.close(1000);
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { answer } of pending) answer(DISCONNECTED);
  }

  /** Asks for a sign of life; any frame within the deadline will do, so a pong behind a long resync is no alarm. */
  probe(): void {
    if (this.#timers.has('probe')) return;
    this.#timers.set('probe', PROBE_MS_MAX, this.#parts.onSilent);
    this.request({ t: 'ping' }, ({ ts }) => isCount(ts) && this.#parts.onTime(ts));
  }

  /** Probes whenever the line falls silent, from now on. */
  watchSilence(): void {
    const left = this.#heardAt + SILENCE_MS - this.#parts.clock.now();
    this.#timers.set('silence', left > 0 ? left : SILENCE_MS, () => {
      const now = this.#parts.clock.now();
      const [oldest] = this.#pending.values();
      if (oldest && now - oldest.at > ANSWER_MS_MAX) {
        this.#parts.onSilent();
        return;
      }
      if (now - this.#heardAt >= SILENCE_MS) this.probe();
      this.watchSilence();
    });
  }

  #heard(data: unknown): void {
    this.#heardAt = this.#parts.clock.now();
    this.#timers.clear('probe');
    const frame = parseFrame(data);
    if (frame === null) return;
    if (frame.t !== 'ok' && frame.t !== 'err' && frame.t !== 'pong') {
      this.#parts.onFrame(frame);
      return;
    }
    const waiting = this.#pending.get(frame.id as number);
    this.#pending.delete(frame.id as number);
    waiting?.answer(frame);
  }
}
