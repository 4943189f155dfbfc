/** The messages of one conversation: a window over them, and the keys that walk through. `place.ts` says where the eye is. */

import type { ChatClient, ChatError } from '@chatd/client';
import { type MessagesHook, useChat, useConnection, useMessages, useTyping } from '@chatd/client/react';
import {
  createContext,
  type KeyboardEvent,
  memo,
  type ReactElement,
  useContext,
  useEffect,
  useLayoutEffect,
  useMemo,
  useReducer,
  useRef,
  useState,
} from 'react';
import { Virtualizer } from 'virtua';
import { type Row, rows as rowsOf } from '../pure/rows';
import { useCell } from '../state/cell';
import type { Desk } from '../state/desk';
import { MessageRow } from './message';
import { countOf, IconButton } from './parts';
import { Place } from './place';

/** The height of what stands above the messages (style.css). */
const TOP_PX = 48;
/** What is drawn beyond the window, so that a fast wheel meets no blank. */
const BUFFER_PX = 600;
/** Rows at the end of a log that stay mounted, at most: a screen and the buffer above it, of short messages. */
const KEPT_MAX = 60;
const RETRY_MS = 1000;
/** A row that comes into the window is there after this many frames. */
const FRAMES_MAX = 20;

export function Log({ desk, peer, now }: { desk: Desk; peer: string; now: number }) {
  const client = useChat();
  const view = useMessages(peer);
  const isPresent = useCell(desk.attention.isPresent);
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  const place = useMemo(() => placeOf(desk, client, peer, () => redraw()), [desk, client, peer]);
  const isWatched = place.begin(view, isPresent);
  const all = useRows(view.messages, desk.user, place.divider.after);
  const { rows, isShifted, life, isCut } = useWindowed(all);
  const [stop, setStop] = useState<string | null>(null);
  const stopAt = stop === null ? -1 : rows.findIndex(({ key }) => key === stop);
  const stopIndex = stopAt < 0 ? rows.length - 1 : stopAt;
  useLayoutEffect(() => {
    if (place.rendered(view, rows, isWatched) || isCut) redraw();
  });
  const drawn = useDrawn(desk, peer, now);
  useEvents(place, desk, client);
  const line = useConnection().state;
  // biome-ignore lint/correctness/useExhaustiveDependencies: with the line comes what is missing
  useEffect(() => place.scrolled(), [place, line, isPresent]);
  useFocus(place, desk, rows);
  return (
    <div className="stage">
      <div
        className="scroller"
        role="region"
        aria-label={`Messages with ${peer}`}
        // biome-ignore lint/a11y/noNoninteractiveTabindex: the keys scroll it
        tabIndex={0}
        ref={(node) => {
          place.scroller = node;
        }}
        onScroll={() => place.scrolled()}
        onWheel={() => place.taken()}
        onTouchMove={() => place.taken()}
        onKeyDown={(event) => walk(event, place, desk, peer, rows)}
        onFocus={(event) => {
          const node = (event.target as HTMLElement).closest<HTMLElement>('.message');
          if (node?.dataset.key) setStop(node.dataset.key);
        }}
      >
        <Top view={view} />
        <Rows key={life} {...{ place, rows, isShifted, stopAt, stopIndex, drawn, isAtEnd: place.isAtEnd }} />
        <p className="top loading" hidden={!view.hasNewer}>
          Getting newer messages…
        </p>
        <TypingSign peer={peer} />
      </div>
      {!place.isAtEnd && place.isSettled && (
        <IconButton icon="down" kind="down" label="Go to the latest message" act={() => place.toEnd()}>
          {view.unread > 0 && <span className="badge">{countOf(view.unread)}</span>}
        </IconButton>
      )}
    </div>
  );
}

interface RowsProps {
  place: Place;
  rows: readonly Row[];
  isShifted: boolean;
  /** The row that Tab reaches: -1 where it is the last one, and where that is. */
  stopAt: number;
  stopIndex: number;
  drawn: (row: Row, isStop: boolean) => ReactElement;
  isAtEnd: boolean;
}

/** Drawn again for other rows only: cursors move more often than messages come. */
const Rows = memo(function Rows({ place, rows, isShifted, stopAt, stopIndex, drawn, isAtEnd }: RowsProps) {
  const keepMounted = useMemo(() => {
    const from = isAtEnd && !isShifted ? place.rowAbove(BUFFER_PX) : null;
    return keptOf(from, rows.length, stopAt);
  }, [place, rows, isShifted, stopAt, isAtEnd]);
  return (
    <Following.Provider value={isAtEnd}>
      <Virtualizer
        ref={(one) => {
          place.list = one;
        }}
        as={LogList}
        item="li"
        data={rows}
        startMargin={TOP_PX}
        bufferSize={BUFFER_PX}
        shift={isShifted}
        keepMounted={keepMounted}
        onResize={() => place.measured()}
      >
        {(row: Row, i: number) => drawn(row, i === stopIndex)}
      </Virtualizer>
    </Following.Provider>
  );
});

/** Whether the log is at its end, where it follows what comes. */
const Following = createContext(false);

/**
 * While something scrolls, virtua takes the list from the pointer. A log that follows its end scrolls with each message,
 * by itself: that would cost the styles of all rows twice a message.
 */
// biome-ignore lint/suspicious/noExplicitAny: virtua's own type of a container's props
function LogList({ children, style, ref }: any) {
  const isFollowing = useContext(Following);
  return (
    <ol className="log" style={isFollowing ? { ...style, pointerEvents: undefined } : style} ref={ref}>
      {children}
    </ol>
  );
}

/**
 * The rows that stay mounted wherever the window is: the one that Tab reaches, and at the end those `from` there on. When
 * a log follows its end, virtua lets the rows above go while that scrolls, and makes them anew after it.
 */
function keptOf(from: number | null, count: number, stop: number): number[] {
  const kept = from === null ? [] : range(Math.max(from, count - KEPT_MAX), count);
  return stop < 0 ? kept : [stop, ...kept];
}

function range(from: number, to: number): number[] {
  return Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);
}

/** The rows, each the same object as long as nothing of it is another. */
function useRows(messages: MessagesHook['messages'], user: string, mark: number | null): readonly Row[] {
  const had = useRef<readonly Row[]>([]);
  const rows = useMemo(() => rowsOf(messages, user, mark, had.current), [messages, user, mark]);
  useLayoutEffect(() => {
    had.current = rows;
  });
  return rows;
}

/** The element of a row: the same one as long as nothing of it is another, so that the window passes it over. */
function useDrawn(desk: Desk, peer: string, now: number): (row: Row, isStop: boolean) => ReactElement {
  return useMemo(() => {
    const known = new WeakMap<Row, { isStop: boolean; element: ReactElement }>();
    return (row, isStop) => {
      const had = known.get(row);
      if (had?.isStop === isStop) return had.element;
      const element = <MessageRow key={row.key} desk={desk} peer={peer} row={row} isStop={isStop} now={now} />;
      known.set(row, { isStop, element });
      return element;
    };
  }, [desk, peer, now]);
}

function placeOf(desk: Desk, client: ChatClient, peer: string, changed: () => void): Place {
  const messages = client.stores.messages(peer);
  const place: Place = new Place({
    load: (way) =>
      client.load(peer, way).catch((error: ChatError) => {
        if (error.retryMs !== null) setTimeout(() => place.scrolled(), Math.max(RETRY_MS, error.retryMs));
      }),
    seen: (seq, isLast) => {
      if (!desk.attention.isHere || desk.peer.get() !== peer) return;
      const { read, messages: held } = messages.getSnapshot();
      // With the last message all that follows it was seen: edits and deletions are shown where their messages are. What
      // came since it was drawn was not.
      const isAll = isLast && held.findLast((message) => message.seq !== null)?.seq === seq;
      if (isAll) client.read(peer);
      else if (seq > read) client.read(peer, seq);
    },
    read: () => messages.getSnapshot().read,
    isOnline: () => client.stores.line.getSnapshot().state === 'online',
    changed,
  });
  return place;
}

/**
 * What the window gets. It knows rows by their places, so that it must be told where the list grew: at its start
 * (`isShifted`), at its end, or it is another list (`life`). Where it grew at both, the end comes in the next turn
 * (`isCut`).
 */
function useWindowed(all: readonly Row[]): { rows: readonly Row[]; isShifted: boolean; life: number; isCut: boolean } {
  const had = useRef<{ rows: readonly Row[]; life: number }>({ rows: [], life: 0 });
  const before = had.current.rows;
  const first = before[0]?.key;
  const at = first === undefined ? 0 : all.findIndex(({ key }) => key === first);
  const isTrimmed = at < 0 && before.some(({ key }) => key === all[0]?.key);
  const isShifted = at > 0 || isTrimmed;
  const life = at < 0 && !isTrimmed ? had.current.life + 1 : had.current.life;
  const lastKey = before.at(-1)?.key;
  const last = isShifted ? all.findIndex(({ key }) => key === lastKey) : -1;
  const isCut = last >= 0 && last < all.length - 1;
  const rows = isCut ? all.slice(0, last + 1) : all;
  useLayoutEffect(() => {
    had.current = { rows, life };
  });
  return { rows, isShifted, life, isCut };
}

function useEvents(place: Place, desk: Desk, client: ChatClient): void {
  useEffect(() => {
    const sized = new ResizeObserver(() => place.resized());
    if (place.scroller) sized.observe(place.scroller);
    const leaves = [
      client.on('synced', () => {
        place.isStale = true;
        place.scrolled();
      }),
      desk.toEnd.subscribe(() => {
        place.divider.remove();
        place.toEnd();
      }),
    ];
    return () => {
      sized.disconnect();
      for (const leave of leaves) leave();
    };
  }, [place, desk, client]);
}

/** Where a message is asked to get the focus: after a question about it. */
function useFocus(place: Place, desk: Desk, rows: readonly Row[]): void {
  const key = useCell(desk.focusOn);
  const latest = useRef(rows);
  latest.current = rows;
  useEffect(() => {
    if (key !== null) focusOn(place, latest.current, key);
  }, [place, key]);
}

function focusOn(place: Place, rows: readonly Row[], key: string | undefined): void {
  const index = rows.findIndex((row) => row.key === key);
  if (key === undefined || index < 0) return;
  if (!place.nodeOf(key)) place.list?.scrollToIndex(index, { align: 'nearest' });
  let left = FRAMES_MAX;
  const focus = () => {
    const node = place.nodeOf(key);
    if (node) {
      node.scrollIntoView({ block: 'nearest' });
      place.taken();
      place.scrolled(); // before the focus draws again, or the log would go on to follow its end
      node.focus({ preventScroll: true });
      return;
    }
    left -= 1;
    if (left > 0) requestAnimationFrame(focus);
  };
  focus();
}

/** Up and down walk through the messages; Enter edits, Delete deletes. */
function walk(event: KeyboardEvent, place: Place, desk: Desk, peer: string, rows: readonly Row[]): void {
  const target = event.target as HTMLElement;
  const node = target.closest<HTMLElement>('.message');
  if (!node) {
    place.taken();
    return;
  }
  const at = rows.findIndex(({ key }) => key === node.dataset.key);
  const row = rows[at];
  const to: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 };
  const next = to[event.key];
  if (next !== undefined) focusOn(place, rows, rows[next]?.key);
  else if (target !== node || !row) return;
  else if (event.key === 'Enter' && row.own) desk.edit(peer, row.message);
  else if (event.key === 'Delete' && row.own) desk.delete(peer, row.message);
  else if (event.key === 'Escape') document.querySelector<HTMLElement>('.writing')?.focus();
  else return;
  event.preventDefault();
}

function Top({ view: { hasOlder, messages } }: { view: MessagesHook }) {
  const first = messages.find(({ seq }) => seq !== null)?.seq ?? null;
  const beginning =
    first !== null && first > 1 ? 'Older messages have passed the time they are kept.' : 'This is the beginning.';
  const words = hasOlder
    ? 'Getting older messages…'
    : messages.length === 0
      ? 'Nothing said yet. Say hello!'
      : beginning;
  return <p className={`top${hasOlder ? ' loading' : ''}`}>{words}</p>;
}

function TypingSign({ peer }: { peer: string }) {
  const [isTyping] = useTyping(peer);
  return (
    <div className="typing" aria-hidden="true" hidden={!isTyping}>
      <span />
      <span />
      <span />
    </div>
  );
}
