/** Times in words, by the reader's own calendar and language. Pure: `now` is an argument. */

const MINUTE_MS = 60000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: 'full', timeStyle: 'medium' });
const WEEKDAY = new Intl.DateTimeFormat(undefined, { weekday: 'long' });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: 'short', day: 'numeric', month: 'long' });
const DAY_OF_YEAR = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'long', year: 'numeric' });
const SHORT_DAY = new Intl.DateTimeFormat(undefined, { day: '2-digit', month: '2-digit', year: '2-digit' });

/** The start of the day that `ts` falls in: the same for all times of one day. */
export function dayOf(ts: number): number {
  return new Date(ts).setHours(0, 0, 0, 0);
}

/** How many midnights lie between. Rounded, because a day of a clock change has 23 or 25 hours. */
function daysAgo(ts: number, now: number): number {
  return Math.round((dayOf(now) - dayOf(ts)) / DAY_MS);
}

export function clock(ts: number): string {
  return CLOCK.format(ts);
}

export function fullTime(ts: number): string {
  return FULL.format(ts);
}

/** Above the messages of a day. */
export function dayName(ts: number, now: number): string {
  const ago = daysAgo(ts, now);
  if (ago === 0) return 'Today';
  if (ago === 1) return 'Yesterday';
  if (ago > 1 && ago < 7) return WEEKDAY.format(ts);
  return new Date(ts).getFullYear() === new Date(now).getFullYear() ? DAY.format(ts) : DAY_OF_YEAR.format(ts);
}

/** In the list of conversations. */
export function shortTime(ts: number, now: number): string {
  const ago = daysAgo(ts, now);
  if (ago <= 0) return clock(ts);
  if (ago === 1) return 'Yesterday';
  return ago < 7 ? WEEKDAY.format(ts) : SHORT_DAY.format(ts);
}

export function lastSeen(seen: number | null, now: number): string {
  if (seen === null) return 'offline';
  const past = now - seen;
  if (past < MINUTE_MS) return 'last seen just now';
  if (past < HOUR_MS) return `last seen ${Math.floor(past / MINUTE_MS)} min ago`;
  const ago = daysAgo(seen, now);
  if (ago === 0) return `last seen today at ${clock(seen)}`;
  if (ago === 1) return `last seen yesterday at ${clock(seen)}`;
  return `last seen ${dayName(seen, now)} at ${clock(seen)}`;
}

export function seconds(ms: number): string {
  return `${Math.max(1, Math.ceil(ms / 1000))} s`;
}
