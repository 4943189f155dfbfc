/**
 * All that the fake server knows: conversations, sessions, statuses, rates. What happens to one of them is told here to
 * whom it concerns, in the order of docs/protocol.md: the entry before the receipts that it opens.
 */
import type { Entry, Status } from '../generated/frames.js';
import type { TestingClock } from './clock.js';
import { Log } from './conversation.js';
import { Refused } from './fields.js';
import { isNewName } from './names.js';
import { Rate } from './rates.js';
import type { Session } from './session.js';
import type { FakeSettings } from './settings.js';
import { Statuses } from './statuses.js';

const HOUR_MS = 3_600_000;

/** The state of the fake server. */
export class World {
  readonly settings: FakeSettings;
  readonly clock: TestingClock;
  /** By name, in the order they were begun. */
  readonly logs = new Map<string, Log>();
  /** That said `hello`. */
  readonly sessions = new Set<Session>();
  /** Who ever said `hello`. */
  readonly people = new Set<string>();
  /** Moves with each change; it is the mark `since`. */
  changes = 0;
  readonly #statuses = new Statuses();
  readonly #rates = new Map<string, Rate>();
  readonly #begun = new Map<string, number[]>();

  /** Of a server with these settings. */
  constructor(settings: FakeSettings, clock: TestingClock) {
    this.settings = settings;
    this.clock = clock;
  }

  // ---- conversations ------------------------------------------------------------------------------------------------

  /** Between these two, if they have one. */
  find(one: string, two: string): Log | undefined {
    return [...this.logs.values()].find((log) => log.users.includes(one) && log.peer(one) === two);
  }

  /** Begins it. */
  begin(one: string, two: string): Log {
    const log = new Log(String(this.logs.size + 12), [one, two]);
    this.logs.set(log.c, log);
    return log;
  }

  /** All of a user's that have entries. */
  logsOf(user: string): Log[] {
    return [...this.logs.values()].filter((log) => log.users.includes(user) && log.head > 0);
  }

  /** Whether the name is older than the rule for names. */
  isKnown(user: string): boolean {
    return this.people.has(user) || [...this.logs.values()].some(({ users }) => users.includes(user));
  }

  /** Refuses who cannot be written to for the first time. */
  checkNewPeer(from: string, to: string): void {
    if (!this.isKnown(to) && !isNewName(to)) throw new Refused('bad_field', { field: 'to' });
    if (this.settings.unknownRecipients === 'refuse' && !this.people.has(to)) throw new Refused('no_user');
    const now = this.clock.now();
    const begun = (this.#begun.get(from) ?? []).filter((at) => at > now - HOUR_MS);
    const [oldest] = begun;
    if (oldest !== undefined && begun.length >= this.settings.newConversationsPerHour)
      throw new Refused('too_many_conversations', { retry_ms: oldest + HOUR_MS - now });
    this.#begun.set(from, [...begun, now]);
  }

  /** The rate of a user. */
  rate(user: string): Rate {
    const { rateMessages, ratePerMs, ratePenaltiesMax } = this.settings;
    const rate = this.#rates.get(user) ?? new Rate(rateMessages, ratePerMs, ratePenaltiesMax);
    this.#rates.set(user, rate);
    return rate;
  }

  /**
   * Stores an entry and tells all sessions but the one that made it, which is answered by `answer`: between what the
   * others get and what follows from it.
   */
  store(log: Log, made: Omit<Entry, 'seq' | 'ts'>, by?: Session, answer?: (entry: Entry) => void): Entry {
    const wasOpen = log.open;
    const entry = log.add(made, this.clock.now());
    this.changes += 1;
    log.changed = this.changes;
    for (const session of this.#of(log.users)) {
      if (session !== by) session.push({ t: 'entry', c: log.c, ...log.fresh(entry, session.user) });
    }
    answer?.(entry);
    if (log.open && !wasOpen) this.#opened(log);
    return entry;
  }

  /** Each side learns of the other's cursors and status. */
  #opened(log: Log): void {
    for (const session of this.#of(log.users)) {
      const peer = log.peer(session.user);
      const receipt = log.receipt(peer);
      if (receipt !== undefined) session.push(receipt);
      if (session.watched.includes(peer)) session.push({ t: 'presence', ...this.status(peer, session.user) });
    }
  }

  /** A cursor moved: the user's other devices are told, and the peer where both have sent. */
  moved(log: Log, by: Session): void {
    this.changes += 1;
    log.moved.set(by.user, this.changes);
    if (log.open) log.changed = this.changes;
    const receipt = log.receipt(by.user);
    for (const session of this.#of(log.open ? log.users : [by.user])) {
      if (session !== by && receipt !== undefined) session.push(receipt);
    }
  }

  /** Somebody types. */
  types(log: Log, from: string): void {
    const to = log.peer(from);
    for (const session of this.#of(from === to ? [] : [to])) session.push({ t: 'typing', c: log.c, from, to });
  }

  #of(users: readonly string[]): Session[] {
    return [...this.sessions].filter(({ user }) => users.includes(user));
  }

  // ---- presence -----------------------------------------------------------------------------------------------------

  /** As `viewer` sees it. */
  status(user: string, viewer: string): Status {
    return this.find(user, viewer)?.open === true ? this.#statuses.of(user) : Statuses.hidden(user);
  }

  /** The devices of a user changed: those who watch them are told where it shows. */
  devicesChanged(user: string, seen = this.clock.now()): void {
    const devices = this.#of([user]).map(({ state }) => state);
    if (!this.#statuses.update(user, devices, seen)) return;
    for (const session of this.sessions) {
      if (!session.watched.includes(user) || session.user === user) continue;
      const status = this.status(user, session.user);
      if (status.state !== 'hidden') session.push({ t: 'presence', ...status });
    }
  }
}
