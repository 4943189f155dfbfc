/**
 * The fake server's answer to `hello` (section 3 of docs/protocol.md): the pages of `welcome`, and behind them what the
 * device missed.
 */
import type { Conversation as Item } from '../generated/frames.js';
import type { Log } from './conversation.js';
import type { Hello } from './fields.js';
import type { Session } from './session.js';
import type { World } from './world.js';

/** Says welcome to a session that is not among `world.sessions` yet. */
export function welcome(world: World, session: Session, id: number, said: Hello): void {
  const isSameLog = said.epoch === world.settings.epoch;
  const cursors = isSameLog ? said.cursors : new Map<string, number>();
  const since = isSameLog && said.since !== undefined ? Number(said.since) : undefined;
  const listed = world.logsOf(session.user).filter((log) => hasChanged(log, session.user, since) || cursors.has(log.c));
  const items = listed.map((log) => withHint(log, session.user, cursors.get(log.c), world.settings.resyncEntriesMax));
  const size = world.settings.welcomeItems;
  const pages = Array.from({ length: Math.max(1, Math.ceil(items.length / size)) }, (_, n) =>
    items.slice(n * size, (n + 1) * size),
  );
  pages.forEach((conversations, n) => {
    const more = n + 1 < pages.length;
    const first = n === 0 ? facts(world, session) : {};
    const mark = more ? {} : { since: String(world.changes) };
    session.push({ t: 'welcome', id, ...first, conversations, more, ...mark });
  });
  for (const log of listed) resync(log, session, cursors.get(log.c), world.settings.resyncEntriesMax);
}

const hasChanged = (log: Log, user: string, since: number | undefined): boolean =>
  since === undefined || Math.max(log.changed, log.moved.get(user) ?? 0) > since;

/** An item, with what the cursor calls for. */
function withHint(log: Log, user: string, cursor: number | undefined, most: number): Item {
  const item = log.item(user);
  if (cursor === undefined) return item;
  if (cursor > log.head) return { ...item, reset: true };
  return log.head - Math.max(cursor, log.floor - 1) > most ? { ...item, page: true } : item;
}

/** What was missed, where it is not too much. */
function resync(log: Log, session: Session, cursor: number | undefined, most: number): void {
  if (cursor === undefined || cursor > log.head || log.head - Math.max(cursor, log.floor - 1) > most) return;
  for (const entry of log.entries) {
    if (entry.seq > cursor) session.push({ t: 'entry', c: log.c, ...log.standing(entry, session.user) });
  }
}

/** What the first page alone says. */
function facts(world: World, session: Session): object {
  const { settings, clock } = world;
  return {
    user: session.user,
    device: session.device,
    v: 1,
    features: [],
    epoch: settings.epoch,
    ts: clock.now(),
    heartbeat_ms: settings.heartbeatMs,
    exp: session.exp,
    limits: {
      frame_bytes: settings.frameBytesMax,
      body_bytes: settings.bodyBytesMax,
      messages: settings.rateMessages,
      per_ms: settings.ratePerMs,
      watch: settings.watchMax,
      history: settings.historyMax,
      edit_ms: settings.editWindowMs,
      resync: settings.resyncEntriesMax,
    },
    presence: session.watched.map((user) => world.status(user, session.user)),
  };
}
