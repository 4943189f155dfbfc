/**
 * The two ends of a line in memory: a class that stands for `WebSocket`, and its wires.
 *
 * Each way is first in, first out, with a latency of its own. A cut takes what is under way with it; a line that fell
 * silent takes everything from then on and says nothing, as a dead network does.
 */
import type { TestingClock } from './clock.js';

/** One way of a line. */
class Wire {
  readonly #clock: TestingClock;
  readonly #latency: () => number;
  #queue: Array<() => void> = [];
  #at = 0;
  #isDead = false;

  constructor(clock: TestingClock, latency: () => number) {
    this.#clock = clock;
    this.#latency = latency;
  }

  /** Delivers after the latency, and never before what was sent earlier. */
  send(act: () => void): void {
    if (this.#isDead) return;
    const now = this.#clock.now();
    this.#at = Math.max(this.#at, now + this.#latency());
    this.#queue.push(act);
    const deliver = (): void => this.#queue.shift()?.();
    if (this.#at <= now) queueMicrotask(deliver);
    else this.#clock.set(deliver, this.#at - now);
  }

  /** From now on nothing arrives, also of what is under way. */
  die(): void {
    this.#isDead = true;
    this.#queue = [];
  }
}

/** What the server does with its end. */
export interface ServerEnd {
  /** The client's message arrived: text, or `undefined` for a binary one. */
  heard(text: string | undefined): void;
  /** The client closed, with this code. */
  closed(code: number): void;
}

/** How the server accepts: its end, or the HTTP status of its refusal. */
export type Accept = (line: Line, url: URL, protocols: string[]) => ServerEnd | number;

/** The server's handle on one connection. */
export class Line {
  readonly #up: Wire;
  readonly #down: Wire;
  readonly #socket: FakeWebSocket;
  /** False once the server closed it, cut it, or saw it closed. */
  isOpen = true;

  /** @internal */
  constructor(socket: FakeWebSocket, up: Wire, down: Wire) {
    this.#socket = socket;
    this.#up = up;
    this.#down = down;
  }

  /** Sends one message. */
  send(text: string): void {
    if (this.isOpen) this.#down.send(() => this.#socket._message(text));
  }

  /** Closes, after what was sent before. */
  close(code: number, reason: string): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.#up.die();
    this.#down.send(() => this.#socket._close(code, reason, true));
  }

  /** Cuts the line at once; the client hears of it, or must find out. */
  cut(isHeard: boolean): void {
    this.isOpen = false;
    this.#up.die();
    this.#down.die();
    if (isHeard) this.#socket._lost();
  }
}

/** The `close` event: Node has no such class before 23. */
export class ClosedEvent extends Event {
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;

  /** @internal */
  constructor(type: string, code: number, reason: string, wasClean: boolean) {
    super(type);
    this.code = code;
    this.reason = reason;
    this.wasClean = wasClean;
  }
}

/** What makes a socket: the server it reaches, and the way to it. */
export interface Network {
  accept: Accept;
  clock: TestingClock;
  /** Milliseconds that the next message takes, and the next hand shake. */
  latency: () => number;
}

/** A WebSocket whose network is in memory. `FakeChatd.WebSocket` is this class, bound to a server. */
export class FakeWebSocket extends EventTarget {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSING = 2;
  static readonly CLOSED = 3;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSING = 2;
  readonly CLOSED = 3;

  readonly url: string;
  readonly extensions = '';
  readonly bufferedAmount = 0;
  binaryType: 'blob' | 'arraybuffer' = 'blob';
  protocol = '';
  readyState = 0;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onerror: ((event: Event) => void) | null = null;
  onclose: ((event: ClosedEvent) => void) | null = null;

  readonly #network: Network;
  readonly #up: Wire;
  #end: ServerEnd | undefined;

  /** @internal */
  constructor(network: Network, url: string | URL, protocols: string | string[] = []) {
    super();
    this.url = String(url);
    this.#network = network;
    this.#up = new Wire(network.clock, network.latency);
    const down = new Wire(network.clock, network.latency);
    const line = new Line(this, this.#up, down);
    const offered = typeof protocols === 'string' ? [protocols] : protocols;
    this.#up.send(() => {
      if (this.readyState !== 0) return;
      const end = network.accept(line, new URL(url), offered);
      if (typeof end === 'number') down.send(() => this._close(1006, '', false));
      else this.#accepted(end, offered, down);
    });
  }

  #accepted(end: ServerEnd, offered: string[], down: Wire): void {
    this.#end = end;
    down.send(() => this._open(offered));
  }

  /** @internal */
  _open(offered: string[]): void {
    if (this.readyState !== 0) return;
    this.readyState = 1;
    this.protocol = offered.includes('chatd.v1') ? 'chatd.v1' : '';
    this.#tell('open', new Event('open'));
  }

  /** Sends one message; in vain after the end, as the standard has it. */
  send(data: string | ArrayBufferLike | ArrayBufferView | Blob): void {
    if (this.readyState === 0) throw new DOMException('still connecting', 'InvalidStateError');
    if (this.readyState !== 1) return;
    this.#up.send(() => this.#end?.heard(typeof data === 'string' ? data : undefined));
  }

  /** Begins to close; `onclose` follows when the server has answered, which a dead line never does. */
  close(code = 1005, reason = ''): void {
    if (this.readyState >= 2) return;
    const isConnecting = this.readyState === 0;
    this.readyState = 2;
    if (isConnecting) queueMicrotask(() => this._close(1006, '', false));
    this.#up.send(() => {
      this.#end?.closed(code);
      this.#network.clock.set(() => this._close(code, reason, true), this.#network.latency());
    });
  }

  /** @internal */
  _message(text: string): void {
    if (this.readyState === 1) this.#tell('message', new MessageEvent('message', { data: text }));
  }

  /** @internal */
  _close(code: number, reason: string, wasClean: boolean): void {
    if (this.readyState === 3) return;
    this.readyState = 3;
    if (!wasClean) this.#tell('error', new Event('error'));
    this.#tell('close', new ClosedEvent('close', code, reason, wasClean));
  }

  /** @internal */
  _lost(): void {
    this.#network.clock.set(() => this._close(1006, '', false), this.#network.latency());
  }

  #tell(name: 'open' | 'message' | 'error' | 'close', event: Event): void {
    (this[`on${name}`] as ((event: Event) => void) | null)?.(event);
    this.dispatchEvent(event);
  }
}
