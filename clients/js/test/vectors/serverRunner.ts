/**
 * Runs the vectors of chatd/conformance/vectors/server against the fake server: plays the clients, over its sockets and its clock.
 * chatd/conformance/server_vectors.py does the same against a real one.
 */
import { FakeChatd, type FakeOptions, TestClock } from '../../src/testing/index.js';
import { type Fields, type Json, Mismatch, spread, Values } from './values.js';

/** For what must come. */
const WAIT_MS = 20_000;
/** Bytes of a vector that a class like WebSocket cannot send. */
const BEYOND_A_SOCKET = ['hex', 'fragments'];

/** Settings of the real server, by its names. */
const NAMES: Readonly<Record<string, keyof FakeOptions>> = {
  rate_messages: 'rateMessages',
  rate_per_ms: 'ratePerMs',
  rate_penalties_max: 'ratePenaltiesMax',
  frames_per_s: 'framesPerS',
  frames_burst: 'framesBurst',
  new_conversations_per_hour: 'newConversationsPerHour',
  edit_window_ms: 'editWindowMs',
  resync_entries_max: 'resyncEntriesMax',
  devices_max: 'devicesMax',
  hello_ms: 'helloMs',
  unknown_recipients: 'unknownRecipients',
};

/** One connection of a vector. */
class Link {
  readonly arrived: Fields[] = [];
  readonly pushes: Fields[] = [];
  readonly replies = new Map<Json, Fields[]>();
  closedBy: number | undefined;
  lastId = 0;
  readonly ws: InstanceType<FakeChatd['WebSocket']>;

  constructor(chatd: FakeChatd, url: string, protocols: string[]) {
    this.ws = new chatd.WebSocket(url, protocols);
    this.ws.onmessage = ({ data }) => {
      const frame: Fields = JSON.parse(data);
      this.arrived.push(frame);
      (this.replies.get(frame.id ?? 0) ?? this.pushes).push(frame);
    };
    this.ws.onclose = ({ code }) => {
      this.closedBy = code;
    };
  }
}

/** Runs one vector. */
export class ServerRunner {
  readonly frames: Fields[] = [];
  readonly #clock = new TestClock();
  readonly #chatd: FakeChatd;
  readonly #links = new Map<string, Link>();
  readonly #sent = new Map<string, number>();
  readonly #values: Values;

  constructor(settings: Fields) {
    const known = Object.entries(settings).filter(([name]) => name in NAMES);
    const options = Object.fromEntries(known.map(([name, value]) => [NAMES[name], value]));
    if ('token_ttl_max_s' in settings) options.tokenTtlMaxMs = settings.token_ttl_max_s * 1000;
    this.#chatd = new FakeChatd({ ...options, clock: this.#clock });
    this.#values = new Values((user, { ttl_s = 3600, none, wrong_key }) =>
      this.#chatd.token(user, { ttlMs: ttl_s * 1000, ...(none || wrong_key ? { key: 'another' } : {}) }),
    );
  }

  /** Throws Mismatch with the number of the step. */
  async run(steps: Fields[]): Promise<void> {
    for (const [n, step] of steps.entries()) {
      try {
        await this.#step(step);
      } catch (error) {
        throw new Mismatch(`step ${n + 1}, ${JSON.stringify(step).slice(0, 300)}: ${error}`, { cause: error });
      }
    }
    for (const link of this.#links.values()) this.frames.push(...link.arrived);
  }

  async #step(step: Fields): Promise<void> {
    if ('open' in step) await this.#open(step);
    else if ('hello' in step) await this.#hello(step);
    else if ('wait_ms' in step) await this.#clock.pass(step.wait_ms);
    else if ('server' in step) this.#chatd.drain(2000, 100);
    else await this.#on(this.#link(step.on), step);
  }

  #link(name: string): Link {
    const link = this.#links.get(name);
    if (link === undefined) throw new Mismatch(`no connection ${name}`);
    return link;
  }

  async #on(link: Link, step: Fields): Promise<void> {
    if ('ask' in step) {
      const [id = 0] = await this.#post(link, [step.ask]);
      if ('as' in step) this.#sent.set(step.as, id);
      else this.#values.match(step.reply, await this.#reply(link, id));
    } else if ('reply_to' in step) {
      this.#values.match(step.reply, await this.#reply(link, this.#sent.get(step.reply_to) ?? 0));
    } else if ('burst' in step) {
      const ids = await this.#post(link, spread(step.burst));
      for (const [n, pattern] of spread(step.replies).entries())
        this.#values.match(pattern, await this.#reply(link, ids[n] ?? 0));
    } else if ('expect' in step) this.#values.match(step.expect, await this.#push(link, step.expect.t));
    else if ('quiet' in step) await this.#quiet(link, step.quiet);
    else if ('arrived' in step) this.#inOrder(step.arrived, link.arrived);
    else if ('closed' in step) await this.#closed(link, step.closed);
    else if ('close' in step) {
      link.ws.close();
      await this.#clock.pass(0);
    } else await this.#raw(link, step);
  }

  async #open(step: Fields): Promise<void> {
    if ('origin' in step) throw new Mismatch('a page cannot choose its origin');
    const protocols = step.subprotocols ?? ['chatd.v1'];
    const url = new URL(step.path ?? '/ws', this.#chatd.url).href;
    const link = new Link(this.#chatd, url, protocols);
    this.#links.set(step.open, link);
    await this.#clock.pass(0);
    if ('http' in step) {
      this.#values.match([step.http], this.#chatd.refusals);
      this.#values.match(1006, link.closedBy);
      return;
    }
    if (link.ws.readyState !== 1) throw new Mismatch('the handshake failed');
    this.#values.match(protocols.includes('chatd.v1') ? 'chatd.v1' : '', link.ws.protocol);
  }

  async #hello(step: Fields): Promise<void> {
    if (!this.#links.has(step.hello)) await this.#open({ open: step.hello });
    const link = this.#link(step.hello);
    const token = { $token: { user: step.user } };
    const [id = 0] = await this.#post(link, [{ t: 'hello', v: 1, device: 'd1', token, ...step.with }]);
    let page = await this.#reply(link, id);
    let welcome = page;
    while (page.more) {
      page = await this.#reply(link, id);
      welcome = { ...welcome, ...page, conversations: [...welcome.conversations, ...page.conversations] };
    }
    this.#values.match({ t: 'welcome', ...step.welcome }, welcome);
  }

  async #post(link: Link, requests: Fields[]): Promise<number[]> {
    const frames = requests.map((request) => {
      const value = this.#values.value(request);
      const frame = { id: value.id ?? link.lastId + 1, ...value };
      link.lastId = Math.max(link.lastId, frame.id);
      if (!link.replies.has(frame.id)) link.replies.set(frame.id, []);
      return frame;
    });
    for (const frame of frames) link.ws.send(JSON.stringify(frame));
    await this.#clock.pass(0);
    return frames.map(({ id }) => id);
  }

  async #reply(link: Link, id: number): Promise<Fields> {
    const replies = link.replies.get(id) ?? [];
    await this.#clock.until(() => replies.length > 0, `a reply to ${id}`, WAIT_MS);
    return replies.shift() ?? {};
  }

  async #push(link: Link, t: string): Promise<Fields> {
    const find = (): number => link.pushes.findIndex((frame) => frame.t === t);
    await this.#clock.until(() => find() >= 0, `a push of ${t}`, WAIT_MS);
    return link.pushes.splice(find(), 1)[0] ?? {};
  }

  async #quiet(link: Link, types: true | string[]): Promise<void> {
    const [id = 0] = await this.#post(link, [{ t: 'ping' }]);
    await this.#reply(link, id);
    const left = link.pushes.filter(({ t }) => types === true || types.includes(t));
    if (left.length > 0) throw new Mismatch(`unexpected: ${JSON.stringify(left)}`);
  }

  async #closed(link: Link, code: number): Promise<void> {
    await this.#clock.until(() => link.closedBy !== undefined, 'a close', WAIT_MS);
    this.#values.match(code, link.closedBy);
  }

  async #raw(link: Link, step: Fields): Promise<void> {
    const beyond = BEYOND_A_SOCKET.find((kind) => kind in step);
    if (beyond !== undefined) throw new Mismatch(`a socket sends no ${beyond}`);
    link.ws.send('binary' in step ? Uint8Array.from(Buffer.from(step.binary, 'hex')) : this.#values.value(step.raw));
    await this.#clock.pass(0);
  }

  #inOrder(patterns: Fields[], frames: Fields[]): void {
    let at = 0;
    for (const pattern of patterns) {
      const found = frames.slice(at).findIndex((frame) => this.#values.matches(pattern, frame));
      if (found < 0)
        throw new Mismatch(`${JSON.stringify(pattern)} did not come in its place: ${JSON.stringify(frames)}`);
      at += found + 1;
    }
  }
}
