/**
 * The side with the conversations: who I am, the box that searches and starts chats, the list by last entry.
 *
 * Only the rows in reach are made: a user may have thousands of conversations. Enter opens the first that was found; a
 * new person is a choice of its own.
 */

import { type ConversationView, cleanUser } from '@chatd/client';
import { useChat, useConnection, useConversations, usePresence, useTyping } from '@chatd/client/react';
import { type KeyboardEvent, memo, useEffect, useMemo, useRef, useState } from 'react';
import { preview } from '../pure/rows';
import { fullTime, shortTime } from '../pure/times';
import { useCell } from '../state/cell';
import type { Desk } from '../state/desk';
import { Previews } from '../state/previews';
import { TickMark } from './message';
import { Face, Icon, IconButton } from './parts';

const ROWS_STEP = 60;
const REACH_PX = 400;

export interface ListProps {
  desk: Desk;
  open: (peer: string) => void;
  leave: (() => void) | null;
  bell: { isOn: boolean; toggle: () => void } | null;
  now: number;
}

export function List({ desk, open, leave, bell, now }: ListProps) {
  const client = useChat();
  const all = useConversations();
  const line = useConnection().state;
  const peer = useCell(desk.peer);
  const isKnown = useCell(desk.isKnown);
  const [typed, setTyped] = useState('');
  const [rowsMax, setRowsMax] = useState(ROWS_STEP);
  const previews = useMemo(() => new Previews(client), [client]);
  const list = useRef<HTMLOListElement>(null);
  const { found, isNew, user, warning } = search(all, typed, desk.user);
  const shown = found.filter((one) => isWanted(one, peer)).slice(0, rowsMax);
  const blank = shown.flatMap((one) => (one.isBlank ? [one.peer] : [])).join('\n');
  // biome-ignore lint/correctness/useExhaustiveDependencies: with the line comes what is missing
  useEffect(() => previews.want(blank === '' ? [] : blank.split('\n')), [previews, blank, line]);
  const choose = (who: string) => {
    setTyped('');
    open(who);
  };
  const press = (event: KeyboardEvent) => {
    if ((event.nativeEvent ?? event).isComposing) return;
    const [top] = shown;
    if (event.key === 'Enter' && typed.trim() !== '' && top)
      choose(found.find((one) => one.peer === user)?.peer ?? top.peer);
    else if (event.key === 'Enter' && isNew && user) choose(user);
    else if (event.key === 'Escape') setTyped('');
    else if (event.key === 'ArrowDown') list.current?.querySelector('button')?.focus();
    else return;
    event.preventDefault();
  };
  return (
    <nav className="side" aria-label="Chats">
      <Me desk={desk} leave={leave} bell={bell} />
      <div className="search-box">
        <Icon name="search" />
        <input
          type="search"
          id="search"
          className="search"
          placeholder="Search or start a chat"
          autoComplete="off"
          spellCheck={false}
          autoCapitalize="none"
          maxLength={128}
          aria-label="Search conversations, or type a name to start a chat"
          value={typed}
          onInput={(event) => setTyped(event.currentTarget.value)}
          onKeyDown={press}
        />
      </div>
      <div
        className="list-scroller"
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          if (scrollHeight - scrollTop - clientHeight < REACH_PX && found.length > rowsMax)
            setRowsMax(rowsMax + ROWS_STEP);
        }}
      >
        {isNew && user !== null && (
          <button type="button" className="start" onClick={() => choose(user)}>
            <Icon name="chat" />
            <span>
              Start a chat with <bdi>{user === desk.user ? `${user} (notes to yourself)` : user}</bdi>
              {warning !== '' && <span className="warning">{warning}</span>}
            </span>
          </button>
        )}
        <ol ref={list} className="conversations" aria-label="Conversations" onKeyDown={walk}>
          {shown.map((one) => (
            <ConversationRow
              key={one.peer}
              one={one}
              user={desk.user}
              isCurrent={one.peer === peer}
              minute={now}
              choose={choose}
            />
          ))}
        </ol>
        {shown.length === 0 && !isNew && <Nothing isSearch={typed.trim() !== ''} isKnown={isKnown} />}
      </div>
    </nav>
  );
}

function Nothing({ isSearch, isKnown }: { isSearch: boolean; isKnown: boolean }) {
  const none = 'No conversations yet. Type a name above to start one; your own name makes notes to yourself.';
  const words = isSearch ? 'Nobody by that name.' : isKnown ? none : 'Getting your conversations…';
  return <p className="empty">{words}</p>;
}

/** Nobody has written in it, and nobody looks at it: then it is not shown. */
function isWanted({ c, last, peer }: ConversationView, shown: string | null): boolean {
  return c !== null || last !== null || peer === shown;
}

function search(all: readonly ConversationView[], typed: string, me: string) {
  const sought = typed.trim().normalize('NFC').toLocaleLowerCase();
  const found = all.filter(({ peer }) => sought === '' || peer.toLocaleLowerCase().includes(sought));
  const user = cleanUser(typed);
  const isNew = user !== null && !all.some(({ peer }) => peer === user);
  const alike = all.find(({ peer }) => peer.toLocaleLowerCase().replace(/\s+/g, ' ') === sought.replace(/\s+/g, ' '));
  const unknown = 'You have not written to each other. Is the name exactly right?';
  const warning = !isNew || user === me ? '' : alike ? `Somebody else than ${alike.peer}, whom you know.` : unknown;
  return { found, user, isNew, warning };
}

function Me({ desk, leave, bell }: Pick<ListProps, 'desk' | 'leave' | 'bell'>) {
  const isOnline = useConnection().state === 'online';
  const isAway = useCell(desk.attention.isAway);
  return (
    <header className="side-head">
      <Face user={desk.user || '?'} />
      <span className="who">
        <bdi className="name">{desk.user}</bdi>
        <span className="state">{!isOnline ? 'not connected' : isAway ? 'away' : 'online'}</span>
      </span>
      {bell && (
        <IconButton
          icon={bell.isOn ? 'bell' : 'silent'}
          label="Notifications while this page is open"
          pressed={bell.isOn}
          act={bell.toggle}
        />
      )}
      {leave && <IconButton icon="leave" label="Use another name" act={leave} />}
    </header>
  );
}

interface RowProps {
  one: ConversationView;
  user: string;
  isCurrent: boolean;
  /** Its text is another after a minute. */
  minute: number;
  choose: (peer: string) => void;
}

const ConversationRow = memo(
  function ConversationRow({ one, user, isCurrent, minute, choose }: RowProps) {
    const { peer, unread } = one;
    const isSelf = peer === user;
    const presence = usePresence(peer)?.state;
    const state = isSelf ? undefined : presence;
    const [isTyping] = useTyping(peer);
    const { text, kind, tick, ts } = preview(one, user);
    return (
      <li>
        <button
          type="button"
          className={`conversation${unread > 0 ? ' has-unread' : ''}`}
          aria-current={isCurrent ? 'true' : undefined}
          onClick={() => choose(peer)}
        >
          <Face user={peer} isSelf={isSelf} state={state ?? 'unknown'} />
          <span className="lines">
            <span className="line">
              <bdi className="name">{isSelf ? `${peer} (you)` : peer}</bdi>
              {ts !== null && (
                <time className="time" title={fullTime(ts)}>
                  {shortTime(ts, minute)}
                </time>
              )}
            </span>
            <span className="line">
              <span className="preview">
                <TickMark tick={isTyping ? 'none' : tick} />
                <span className={`preview-text ${isTyping ? 'typing-text' : `is-${kind}`}`} dir="auto">
                  {isTyping ? 'typing…' : text}
                </span>
              </span>
              {unread > 0 && (
                <span className="badge" aria-hidden="true">
                  {unread > 99 ? '99+' : unread}
                </span>
              )}
              <span className="vh">{`${state ? `, ${state}` : ''}${unread > 0 ? `, ${unread} unread` : ''}`}</span>
            </span>
          </span>
        </button>
      </li>
    );
  },
  (a, b) => a.one === b.one && a.isCurrent === b.isCurrent && a.minute === b.minute && a.user === b.user,
);

/** Up and down, to the first and the last; up from the first one leads to the search. */
function walk(event: KeyboardEvent<HTMLOListElement>): void {
  const buttons = [...event.currentTarget.querySelectorAll('button')];
  const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
  const places: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 };
  const to = places[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  if (to < 0) document.getElementById('search')?.focus();
  else buttons[Math.min(to, buttons.length - 1)]?.focus();
}
