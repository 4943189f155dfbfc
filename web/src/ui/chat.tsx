/** The screen of somebody who is signed in: list and conversation, side by side or, on a phone, one of them. */

import { useChat, useConnection, useConversations } from '@chatd/client/react';
import { useEffect, useState } from 'react';
import { isSignInNeeded } from '../pure/banner';
import type { Bell } from '../state/bell';
import { useCell } from '../state/cell';
import type { Desk } from '../state/desk';
import { Asking, LineBanner, Notices, Spoken } from './frame';
import { List } from './list';
import { NoPane, Pane } from './pane';

const NAME = 'chatd';
/** "5 min ago" and the like are drawn anew so often. */
const MINUTE_MS = 30000;
/** A message that is seen as it comes is unread for a frame or two: the title does not tell that. */
const TITLE_DELAY_MS = 50;

export interface ChatProps {
  desk: Desk;
  bell: Bell;
  /** Another name, please. Null where the host application says who the user is. */
  leave: (() => void) | null;
  /** The server wants another token. */
  refused: (reason: string) => void;
}

export function Chat({ desk, bell, leave, refused }: ChatProps) {
  const client = useChat();
  const line = useConnection();
  const peer = useCell(desk.peer);
  const isKnown = useCell(desk.isKnown);
  const isBellOn = useCell(bell.isOn);
  const now = useMinute(() => client.now());
  const isRefused = isSignInNeeded(line);
  useEffect(() => {
    if (isRefused) refused(line.msg ?? line.reason);
  }, [isRefused, line.reason, line.msg, refused]);
  useHistory(desk);
  const open = (who: string) => {
    desk.open(who);
    pushed(who);
    document.querySelector<HTMLElement>(isTouch() ? '.nothing' : '.writing')?.focus();
  };
  const back = () => (history.state?.peer ? history.back() : desk.open(null));
  const toggle = () => void bell.toggle().then((problem) => problem && desk.notice(problem));
  return (
    <>
      <Title />
      <LineBanner client={client} line={line} isFirst={!isKnown} />
      <main className="screen">
        <h1 className="vh">{NAME}</h1>
        <div className={peer === null ? 'chat' : 'chat shows-pane'}>
          <List
            desk={desk}
            open={open}
            leave={leave}
            bell={bell.isThere ? { isOn: isBellOn, toggle } : null}
            now={now}
          />
          <div className="main">
            <div className="place">
              {peer === null ? <NoPane /> : <Pane desk={desk} peer={peer} now={now} back={back} />}
            </div>
          </div>
        </div>
      </main>
      <Notices desk={desk} />
      <Spoken desk={desk} />
      <Asking desk={desk} />
    </>
  );
}

function Title() {
  const unread = useConversations((all) => all.reduce((sum, one) => sum + one.unread, 0));
  useEffect(() => {
    const timer = setTimeout(() => {
      const title = unread > 0 ? `(${unread}) ${NAME}` : NAME;
      if (document.title !== title) document.title = title;
    }, TITLE_DELAY_MS);
    return () => clearTimeout(timer);
  }, [unread]);
  return null;
}

function useMinute(now: () => number): number {
  const [at, setAt] = useState(now);
  useEffect(() => {
    const timer = setInterval(() => setAt(now()), MINUTE_MS);
    return () => clearInterval(timer);
  });
  return at;
}

const isTouch = () => matchMedia('(pointer: coarse)').matches;
const isNarrow = () => matchMedia('(max-width: 720px)').matches;

/** On a narrow screen the pane is a page of its own. */
function pushed(peer: string): void {
  if (!isNarrow()) return;
  if (history.state?.peer) history.replaceState({ peer }, '');
  else history.pushState({ peer }, '');
}

/** The browser's Back and Forward, and the key to the search. */
function useHistory(desk: Desk): void {
  useEffect(() => {
    const ended = new AbortController();
    const { signal } = ended;
    window.addEventListener(
      'popstate',
      ({ state }) => desk.open(typeof state?.peer === 'string' ? state.peer || null : null),
      {
        signal,
      },
    );
    window.addEventListener('pagehide', () => desk.keepDrafts(), { signal });
    window.addEventListener(
      'keydown',
      (event) => {
        if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== 'k') return;
        event.preventDefault();
        if (isNarrow()) desk.open(null);
        const search = document.getElementById('search') as HTMLInputElement | null;
        search?.focus();
        search?.select();
      },
      { signal },
    );
    return () => ended.abort();
  }, [desk]);
}
