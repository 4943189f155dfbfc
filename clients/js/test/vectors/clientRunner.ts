/**
 * Runs the vectors of chatd/conformance/vectors/client against a client: plays the server, over a line in memory and a
 * clock that it moves. chatd/conformance/client_vectors.py does the same over real sockets.
 */
import { TestClock } from '../../src/testing/index.js';
import { FakeWebSocket, type Line, type Network } from '../../src/testing/socket.js';
import { LIMITS } from '../fakes.js';
import { type Fields, type Json, Mismatch, Values } from './values.js';

const WAIT_MS = 120_000;
const T0 = 1_790_000_000_000;
const KINDS = ['message', 'edit', 'delete'];
const ITEM = {
  ts: T0,
  delivered: 0,
  read: 0,
  peer_delivered: 0,
  peer_read: 0,
  unread: 0,
  open: true,
};
const WELCOME = {
  user: 'alice',
  v: 1,
  features: [],
  epoch: 'e1',
  ts: T0,
  heartbeat_ms: 20000,
  exp: 4000000000000,
  limits: LIMITS,
  presence: [],
};

/** What the application may do, and what the value of that word is. */
const MAIN: Readonly<Record<string, string>> = {
  send: 'body',
  edit: 'body',
  delete: 'ref',
  read: 'seq',
  history: 'before',
};

/** The client under test. */
export interface Subject {
  /** Something that was sent; `result` is `{seq}` once it is stored, `{code}` once it is refused for good. */
  send(to: string, body: string): { result?: Fields };
  /** `edit`, `delete`, `read` or `history` with its keys (docs/conformance.md); the same results, and `entries`. */
  ask?(what: string, keys: Fields): { result?: Fields };
  /** All entries that the application was given, as in history, with `c`. */
  shown(): Fields[];
  /** It has given up. */
  hasEnded(): boolean;
  stop(): void;
}

/** What a client under test is made of. Tokens: `old`, and `new` when another one is needed. */
export interface Parts {
  url: string;
  clock: TestClock;
  WebSocket: new (url: string | URL, protocols?: string | string[]) => FakeWebSocket;
  token: (renew: boolean) => string;
}

/** A connection at the scripted server. */
class Peer {
  readonly arrived: Fields[] = [];
  /** Frames that were answered as they arrived; a step may ask for them. */
  readonly answered: Fields[] = [];
  isClosed = false;
  readonly line: Line;

  constructor(line: Line) {
    this.line = line;
  }
}

/** Runs one vector. */
export class ClientRunner {
  readonly #clock = new TestClock();
  readonly #values = new Values();
  readonly #coming: Peer[] = [];
  readonly #results: Array<{ result?: Fields }> = [];
  readonly #subject: Subject;
  #peer: Peer | undefined;
  #hello: Fields = {};

  constructor(make: (parts: Parts) => Subject) {
    const network: Network = {
      clock: this.#clock,
      latency: () => 0,
      accept: (line) => {
        const peer = new Peer(line);
        this.#coming.push(peer);
        return {
          heard: (text) => peer.arrived.push(JSON.parse(text ?? '{}')),
          closed: () => {
            peer.isClosed = true;
          },
        };
      },
    };
    const WebSocket = class extends FakeWebSocket {
      constructor(url: string | URL, protocols?: string | string[]) {
        super(network, url, protocols);
      }
    };
    const token = (renew: boolean): string => (renew ? 'new' : 'old');
    this.#subject = make({ url: 'ws://chatd.invalid/ws', clock: this.#clock, WebSocket, token });
  }

  /** Throws Mismatch with the number of the step. */
  async run(steps: Fields[]): Promise<void> {
    let n = 0;
    try {
      await this.#connected({});
      for (const step of steps) {
        n += 1;
        await this.#step(step);
      }
    } catch (error) {
      throw new Mismatch(`step ${n}, ${JSON.stringify(steps[n - 1]).slice(0, 300)}: ${error}`, { cause: error });
    } finally {
      this.#subject.stop();
    }
  }

  async #step(step: Fields): Promise<void> {
    if ('welcome' in step) this.#send(this.#welcome('as_asked' in step ? this.#asAsked(step.welcome) : step.welcome));
    else if ('storm' in step) await this.#storm(step);
    else if ('server' in step) this.#send(this.#filled(step.server));
    else if ('raw' in step) this.#line.send(step.raw);
    else if ('close' in step) this.#close(step.close);
    else if ('app' in step) this.#do(step.app);
    else if ('app_result' in step) await this.#result(step.app_result);
    else if ('client' in step) await this.#expect(step);
    else if ('shows' in step) await this.#shows(step);
    else if (step.does === 'reconnect') await this.#connected(step.hello ?? {});
    else if (step.does === 'give up') await this.#until(() => this.#subject.hasEnded(), 'giving up');
    else throw new Mismatch('no such step');
    await this.#clock.pass(0);
  }

  #do(app: Fields): void {
    const what = Object.keys(app).find((word) => word in MAIN) ?? '';
    const keys = { ...app, [MAIN[what] ?? what]: app[what] };
    if (what === 'send') this.#results.push(this.#subject.send(app.to, app.send));
    else if (this.#subject.ask === undefined) throw new Mismatch(`the client under test cannot ${what}`);
    else if (what === 'read') this.#subject.ask(what, keys);
    else this.#results.push(this.#subject.ask(what, keys));
  }

  get #line(): Line {
    if (this.#peer === undefined) throw new Mismatch('nobody is connected');
    return this.#peer.line;
  }

  #send(frame: Fields): void {
    this.#line.send(JSON.stringify(frame));
  }

  #close(code: number): void {
    this.#line.close(code, '');
    if (this.#peer !== undefined) this.#peer.isClosed = true;
  }

  /** Time goes on, and what may be asked at any time is answered, until it holds. */
  async #until(holds: () => boolean, what: string): Promise<void> {
    await this.#clock.until(
      () => {
        this.#courtesies();
        return holds();
      },
      what,
      WAIT_MS,
    );
  }

  async #connected(pattern: Fields): Promise<void> {
    await this.#until(() => this.#peer === undefined || this.#peer.isClosed, 'the end of the last connection');
    await this.#until(() => this.#coming.length > 0, 'a connection');
    this.#peer = this.#coming.shift();
    this.#hello = await this.#next('hello');
    this.#values.match(pattern, this.#hello);
    this.#values.stored.set('$hello', this.#hello.id);
  }

  async #result(pattern: Json): Promise<void> {
    const [sent] = this.#results.splice(0, 1);
    await this.#until(() => sent?.result !== undefined, 'the result of a send');
    this.#values.match(pattern, sent?.result);
  }

  /** With a mark only what the hello names is listed; `page` and `reset` answer a cursor alone. */
  #asAsked(given: Fields): Fields {
    const named = this.#hello.cursors ?? {};
    const items = given.conversations.filter(({ c }: Fields) => !('since' in this.#hello) || c in named);
    const conversations = items.map(({ page, reset, ...rest }: Fields) =>
      rest.c in named ? { ...rest, ...(page ? { page } : {}), ...(reset ? { reset } : {}) } : rest,
    );
    return { ...given, conversations };
  }

  /** Welcome and close at once, for a while, whoever comes; counts how often that is. */
  async #storm({ storm, for_ms, at_most }: Fields): Promise<void> {
    const end = this.#clock.now() + for_ms;
    let count = 0;
    while (this.#clock.now() < end) {
      const how = storm[count % storm.length];
      count += 1;
      this.#send(this.#welcome({}));
      if (typeof how === 'object') this.#send(how);
      this.#close(typeof how === 'object' ? 1012 : how);
      this.#peer = undefined;
      while (this.#clock.now() < end && this.#coming.length === 0) await this.#clock.pass(10);
      if (this.#coming.length > 0) await this.#connected({});
    }
    if (count > at_most) throw new Mismatch(`it came ${count} times in ${for_ms} ms`);
  }

  async #shows(step: Fields): Promise<void> {
    const known = (): Fields[] => this.#subject.shown().filter(({ kind }) => KINDS.includes(kind));
    await this.#until(() => {
      if ('meanwhile' in step) this.#answer(step.meanwhile, step.answer);
      return known().length >= step.shows.length;
    }, 'what it shows');
    this.#values.match(step.shows, known());
  }

  /** Answers each request of that kind. */
  #answer(pattern: Fields, answer: Fields): void {
    const asked = this.#peer?.arrived.findIndex(({ t }) => t === pattern.t) ?? -1;
    if (asked < 0) return;
    const [frame = {}] = this.#peer?.arrived.splice(asked, 1) ?? [];
    this.#values.match(pattern, frame);
    this.#send({ id: frame.id, ...this.#filled(answer) });
  }

  async #expect(step: Fields): Promise<void> {
    for (;;) {
      const frame = await this.#next(step.client.t);
      if (!('before' in step) || !this.#values.matches(step.before, frame))
        return this.#values.match(step.client, frame);
      this.#send({ id: frame.id, ...this.#filled(step.answer) });
    }
  }

  #welcome(given: Fields): Fields {
    const frame: Fields = {
      t: 'welcome',
      id: this.#hello.id,
      ...WELCOME,
      device: this.#hello.device,
      conversations: [],
      more: false,
      ...given,
    };
    frame.conversations = frame.conversations.map((item: Fields) => ({ ...ITEM, ...item }));
    return frame.more ? frame : { since: 's1', ...frame };
  }

  #filled(frame: Fields): Fields {
    const { stored } = this.#values;
    const filled = (value: Json): Json => (stored.has(value) ? stored.get(value) : value);
    return Object.fromEntries(Object.entries(frame).map(([key, value]) => [key, filled(value)]));
  }

  /** The client's next frame of this type. */
  async #next(t: string): Promise<Fields> {
    let found: Fields | undefined;
    await this.#until(() => {
      for (const frames of [this.#peer?.arrived ?? [], this.#peer?.answered ?? []]) {
        const at = frames.findIndex((frame) => frame.t === t);
        if (at >= 0) [found] = frames.splice(at, 1);
        if (found !== undefined) return true;
      }
      return false;
    }, `a ${t} of the client`);
    return found ?? {};
  }

  #courtesies(): void {
    const peer = this.#peer;
    if (peer === undefined || peer.isClosed) return;
    for (const frame of peer.arrived.splice(0)) {
      const answer = courtesy(frame);
      if (answer === undefined) peer.arrived.push(frame);
      else {
        this.#send({ id: frame.id, ...answer });
        peer.answered.push(frame);
      }
    }
  }
}

/** The answer to what a client may ask at any time. */
function courtesy(frame: Fields): Fields | undefined {
  switch (frame.t) {
    case 'ack':
    case 'read':
      return { t: 'ok', c: frame.c ?? '12', delivered: frame.seq, read: 0 };
    case 'watch':
      return { t: 'ok', presence: [] };
    case 'presence':
    case 'typing':
      return { t: 'ok' };
    case 'ping':
      return { t: 'pong', ts: T0 };
    default:
      return undefined;
  }
}
