/**
 * A chatd in memory: the contract of docs/protocol.md behind a class that stands for `WebSocket`, and faults on demand.
 *
 *     const chatd = new FakeChatd();
 *     const client = new ChatClient({ url: chatd.url, token: async () => chatd.token('alice'), webSocket: chatd.WebSocket });
 *     chatd.say('bob', 'alice', 'hello');
 *
 * It shares no line with the client, and is held to the vectors of the real server (test/fakeVectors.test.ts).
 */
import type { TestingClock } from './clock.js';
import { realClock } from './clock.js';
import type { Log } from './conversation.js';
import * as fields from './fields.js';
import { type AnyFrame, Refused } from './fields.js';
import { welcome } from './hello.js';
import { FrameRate } from './rates.js';
import { type Asked, block, checkOrder, HANDLERS } from './requests.js';
import { Session } from './session.js';
import { type FakeSettings, SETTINGS } from './settings.js';
import { FakeWebSocket, type Line, type Network, type ServerEnd } from './socket.js';
import { checkToken, KEY, makeToken } from './tokens.js';
import { World } from './world.js';

/**
 * What befalls one request instead of its answer:
 *  - `cut`            the line is cut before anything is done
 *  - `cut after`      it is done, and the line is cut before the answer
 *  - `swallow`        nothing is done, nothing is answered
 *  - `swallow after`  it is done, nothing is answered
 *  - `{ code, retry_ms? }`  it is refused so
 *  - `{ delayMs }`    it is done later
 */
export type Fault =
  | 'cut'
  | 'cut after'
  | 'swallow'
  | 'swallow after'
  | { code: string; retry_ms?: number; [key: string]: unknown }
  | { delayMs: number };

/** Settings of the real server, and those of the fake world. */
export interface FakeOptions extends Partial<FakeSettings> {
  /** The machine's time, if there is none. */
  clock?: TestingClock;
  /** Milliseconds that a message takes, asked for each; 0 if there is none. Each way stays first in, first out. */
  latency?: () => number;
}

/** Makes sockets that reach a fake server. */
export type FakeWebSocketClass = new (url: string | URL, protocols?: string | string[]) => FakeWebSocket;

const UNREADABLE_MAX = 20;
const PROTOCOL = 'chatd.v1';
const ENTRIES: ReadonlySet<unknown> = new Set(['send', 'edit', 'delete']);
/** Codes of a refused `hello` that close the connection, and how. */
const CLOSES: Readonly<Record<string, number>> = {
  bad_version: 1000,
  unauthorized: 4001,
  token_expired: 4002,
  unavailable: 4009,
  overloaded: 4009,
  internal: 1011,
};

/** A chatd in memory. */
export class FakeChatd {
  /** For a client: any host will do, the path is `/ws`. */
  readonly url = 'ws://chatd.invalid/ws';
  /** For a client: sockets that reach this server. */
  readonly WebSocket: FakeWebSocketClass;
  /** Asked before each request; gives what befalls it. */
  fault: (session: Session, frame: AnyFrame) => Fault | undefined = () => undefined;
  /** No connection is accepted: they fail as they do where no server is. */
  isDown = false;
  /** HTTP statuses of refused handshakes. */
  readonly refusals: number[] = [];
  /** Repeats of an entry that did not say `retry`: a client may not. */
  readonly unsaidRepeats: AnyFrame[] = [];
  /** @internal */
  readonly world: World;
  readonly #clock: TestingClock;
  /** All lines that were accepted, before their hello too. */
  readonly #lines = new Set<Session>();
  readonly #once: Array<{ t: string; fault: Fault }> = [];
  #heardCount = 0;
  #isDraining = false;

  /** Ready at once; nothing runs until a client comes. */
  constructor({ clock = realClock, latency = () => 0, ...settings }: FakeOptions = {}) {
    this.#clock = clock;
    this.world = new World({ ...SETTINGS, ...settings }, clock);
    const network: Network = { accept: (line, url, protocols) => this.#accept(line, url, protocols), clock, latency };
    this.WebSocket = class extends FakeWebSocket {
      constructor(url: string | URL, protocols?: string | string[]) {
        super(network, url, protocols);
      }
    };
  }

  // ---- what tests do to it ------------------------------------------------------------------------------------------

  /** What it goes by; may be changed at any time. */
  get settings(): FakeSettings {
    return this.world.settings;
  }

  /** Who is connected. */
  get sessions(): Session[] {
    return [...this.world.sessions];
  }

  /** The sessions of one user. */
  sessionsOf(user: string): Session[] {
    return this.sessions.filter((session) => session.user === user);
  }

  /** A token that it takes. `key`: signed by another one, so that it does not. */
  token(user: string, { ttlMs = 3_600_000, key = KEY }: { ttlMs?: number; key?: string } = {}): string {
    return makeToken(user, this.#clock.now(), ttlMs, key);
  }

  /** The conversation of these two; it is begun if need be. */
  log(one: string, two: string): Log {
    return this.world.find(one, two) ?? this.world.begin(one, two);
  }

  /** Somebody else's client sends these. */
  say(from: string, to: string, ...bodies: string[]): Log {
    const log = this.log(from, to);
    for (const body of bodies) this.world.store(log, { from, to, kind: 'message', cid: crypto.randomUUID(), body });
    return log;
  }

  /** The texts of a conversation as they stand now. */
  texts(one: string, two: string): Array<string | null> {
    const log = this.log(one, two);
    const messages = log.entries.filter(({ kind }) => kind === 'message');
    return messages.map((entry) => log.standing(entry, one).body ?? null);
  }

  /** The next request of this type meets this fault; those named earlier come first. */
  failNext(t: string, fault: Fault): void {
    this.#once.push({ t, fault });
  }

  /** Cuts all lines, or those of one user. */
  cut(user?: string): void {
    for (const session of this.#linesOf(user)) session.cut();
  }

  /** Closes all connections with this code, or those of one user. */
  close(code: number, user?: string): void {
    for (const session of this.#linesOf(user)) session.close(code);
  }

  #linesOf(user: string | undefined): Session[] {
    return user === undefined ? [...this.#lines] : this.sessionsOf(user);
  }

  /** Says that it goes away, refuses sends, closes with 1012 after `graceMs`, and is back at once. */
  drain(retryMs = 50, graceMs = 0): void {
    this.#isDraining = true;
    for (const session of this.sessions) session.push({ t: 'notice', kind: 'drain', retry_ms: retryMs });
    const end = (): void => {
      this.close(1012);
      this.#isDraining = false;
    };
    if (graceMs === 0) end();
    else this.#clock.set(end, graceMs);
  }

  /** The log moves to another epoch, as after a restore: what lies above `keep` of each conversation is lost. */
  restore(epoch: string, keep = 0): void {
    this.world.settings.epoch = epoch;
    for (const log of this.world.logs.values()) log.truncate(keep);
    this.close(1012);
  }

  // ---- connections --------------------------------------------------------------------------------------------------

  #accept(line: Line, url: URL, protocols: string[]): ServerEnd | number {
    const status = this.#statusOf(url, protocols);
    if (status !== 101) {
      this.refusals.push(status);
      return status;
    }
    const now = this.#clock.now();
    const session = new Session(line, (one) => this.#gone(one));
    const { framesPerS, framesBurst, helloMs } = this.settings;
    this.#lines.add(session);
    session.rate = new FrameRate(framesPerS, framesBurst, now);
    session.timer = this.#clock.set(() => session.close(4003, 'hello_timeout'), helloMs);
    return { heard: (text) => this.#heard(session, text), closed: () => session.ended() };
  }

  #statusOf(url: URL, protocols: string[]): number {
    if (this.isDown) return 503;
    if (url.pathname !== '/ws') return 404;
    return protocols.length === 0 || protocols.includes(PROTOCOL) ? 101 : 400;
  }

  #gone(session: Session): void {
    this.#clock.clear(session.timer);
    this.#lines.delete(session);
    if (!this.world.sessions.delete(session)) return;
    const seen = this.#clock.now();
    this.#clock.set(() => this.world.devicesChanged(session.user, seen), this.settings.offlineGraceMs);
  }

  #heard(session: Session, text: string | undefined): void {
    if (!session.isOpen) return;
    this.#heardCount += 1;
    session.heardAt = this.#heardCount;
    if (text === undefined) return session.close(1003, 'binary');
    if (fields.bytes(text) > this.settings.frameBytesMax) return session.close(1009, 'too big');
    const frame = readable(text);
    if (frame === undefined) {
      session.unreadable += 1;
      session.push({ t: 'err', id: 0, code: 'bad_frame', msg: 'not a frame' });
      if (session.unreadable > UNREADABLE_MAX) session.close(4000, 'bad_frames');
      return;
    }
    session.requests.push(frame);
    this.#meet(session, frame);
  }

  /** Handles a request, unless something befalls it. */
  #meet(session: Session, frame: AnyFrame): void {
    const id = frame.id as number;
    if (id <= session.lastId) return session.push({ ...new Refused('bad_id').frame, id });
    session.lastId = id; // before a delay, which changes nothing of the order
    const fault = this.#faultOf(session, frame);
    if (fault === 'swallow') return;
    if (fault === 'cut') return session.cut();
    if (typeof fault === 'object' && 'delayMs' in fault) {
      this.#clock.set(() => session.isOpen && this.#handle(session, frame), fault.delayMs as number);
      return;
    }
    session.isMuted = fault === 'cut after' || fault === 'swallow after';
    this.#handle(session, frame, typeof fault === 'object' ? new Refused(fault.code, fault) : undefined);
    session.isMuted = false;
    if (fault === 'cut after') session.cut();
  }

  #faultOf(session: Session, frame: AnyFrame): Fault | undefined {
    const n = this.#once.findIndex(({ t }) => t === frame.t);
    return n < 0 ? this.fault(session, frame) : this.#once.splice(n, 1)[0]?.fault;
  }

  #handle(session: Session, frame: AnyFrame, refused?: Refused): void {
    const reply = (keys: AnyFrame = {}): void => session.push({ t: 'ok', id: frame.id, ...keys });
    const asked: Asked = { world: this.world, session, frame, reply, unsaid: (one) => this.unsaidRepeats.push(one) };
    try {
      this.#check(asked, refused);
      if (frame.t === 'hello') this.#hello(asked);
      else HANDLERS.get(frame.t)?.(asked);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      session.push({ ...error.frame, id: frame.id });
      const isEntry = ENTRIES.has(frame.t);
      if (isEntry && 'retry_ms' in error.frame && session.user !== '') tryTo(() => block(asked));
      const code = frame.t === 'hello' && session.user === '' ? CLOSES[String(error.frame.code)] : undefined;
      if (code !== undefined) session.close(code, String(error.frame.code));
    }
  }

  /** What holds for every request, in the server's order. */
  #check(asked: Asked, refused: Refused | undefined): void {
    const { session, frame } = asked;
    const names = frame.t === 'watch' && Array.isArray(frame.users) ? frame.users.length : 0;
    const retryMs = session.rate?.take(1 + Math.floor(names / 10), this.#clock.now()) ?? 0;
    if (retryMs > 0) throw new Refused('rate_limited', { retry_ms: retryMs });
    if (frame.t !== 'hello' && !HANDLERS.has(frame.t)) throw new Refused('unknown_type');
    if ((frame.t === 'hello') !== (session.user === '')) throw new Refused('bad_state');
    const isEntry = ENTRIES.has(frame.t);
    if (refused !== undefined || (isEntry && this.#isDraining)) {
      if (isEntry) checkOrder(asked);
      throw refused ?? new Refused('unavailable', { retry_ms: 50 });
    }
  }

  #hello({ world, session, frame }: Asked): void {
    const said = fields.hello(frame, this.settings.watchMax);
    const known = (user: string): boolean => world.isKnown(user);
    const { user, exp } = checkToken(said.token, this.#clock.now(), this.settings.tokenTtlMaxMs, known);
    Object.assign(session, { user, exp, device: said.device, hello: frame, state: said.state, watched: said.watch });
    this.#clock.clear(session.timer);
    for (const older of this.sessionsOf(user)) if (older.device === said.device) older.close(4004, 'replaced');
    const [idle] = this.sessionsOf(user).sort((a, b) => a.heardAt - b.heardAt);
    if (this.sessionsOf(user).length >= this.settings.devicesMax) idle?.close(4005, 'too_many_devices');
    world.people.add(user);
    welcome(world, session, Number(frame.id), said);
    world.sessions.add(session);
    world.devicesChanged(user);
    this.#endWithToken(session);
  }

  /** The session ends with its token, unless that was refreshed. */
  #endWithToken(session: Session): void {
    const left = session.exp - this.#clock.now();
    if (left <= 0) session.close(4002, 'token_expired');
    else session.timer = this.#clock.set(() => this.#endWithToken(session), Math.min(left, 2 ** 31 - 1));
  }
}

/** A frame with a type and a usable id, or nothing. */
function readable(text: string): AnyFrame | undefined {
  let frame: unknown;
  try {
    frame = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof frame !== 'object' || frame === null || Array.isArray(frame)) return undefined;
  const { t, id } = frame as AnyFrame;
  if (typeof t !== 'string' || !Number.isSafeInteger(id) || (id as number) < 1) return undefined;
  return frame as AnyFrame;
}

/** A request that names nothing blocks nothing. */
function tryTo(act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
}
