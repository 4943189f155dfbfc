/** Who is here: the sign-in, or the chat of somebody. Each session has a client of its own. */

import { ChatClient, type Platform } from '@chatd/client';
import { browser } from '@chatd/client/browser';
import { indexedDb } from '@chatd/client/indexeddb';
import { ChatProvider } from '@chatd/client/react';
import { tabs } from '@chatd/client/tabs';
import { useEffect, useMemo, useRef, useState } from 'react';
import { Attention, attend } from '../state/attention';
import { Bell } from '../state/bell';
import { Desk } from '../state/desk';
import { Host } from '../state/host';
import { Keep, storage } from '../state/keep';
import { SignIn, type Who } from '../state/signin';
import { Chat } from './chat';
import { type Asked, SignInScreen } from './signin';

type Screen = { what: 'nothing' } | { what: 'signin'; asked: Asked } | { what: 'chat'; desk: Desk };

/** One page of one tab. */
export class Page {
  readonly keep = new Keep(storage('sessionStorage'));
  readonly bell = new Bell(storage('localStorage'));
  readonly signIn = new SignIn((url, init) => fetch(url, init));

  session(user: string): Desk {
    const attention = new Attention(
      () => performance.now(),
      document.visibilityState === 'visible',
      document.hasFocus(),
    );
    const client = new ChatClient({
      url: address(),
      user,
      token: (renew) => this.signIn.token(renew),
      store: indexedDb(),
      tabs: tabs(),
      platform: platformOf(attention),
    });
    const desk = new Desk(client, user, attention, this.keep);
    this.bell.ring(client, attention, (peer) => desk.open(peer));
    return desk;
  }

  /** Who this tab was. */
  get who(): Who | null {
    const name = this.keep.get('name');
    const token = this.keep.get('token');
    return name !== null ? { name } : token !== null ? { token } : null;
  }

  remember(who: Who | null): void {
    this.keep.set('name', who && 'name' in who ? who.name : null);
    this.keep.set('token', who && 'token' in who ? who.token : null);
  }
}

/** Beside the page, whatever prefix it has. */
function address(): string {
  const url = new URL('ws', location.href);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  url.search = url.hash = '';
  return url.href;
}

/** What the client hears of the browser, the page hears, too. */
function platformOf(attention: Attention): Platform {
  return (hooks) => {
    const unattended = attend(attention);
    const away = (isAway: boolean) => {
      attention.away(isAway);
      hooks.away(isAway);
    };
    const leave = browser()({ ...hooks, away });
    return () => {
      leave();
      unattended();
    };
  };
}

export function App({ page }: { page: Page }) {
  const [screen, setScreen] = useState<Screen>({ what: 'nothing' });
  const acts = useMemo(() => actsOf(page, setScreen), [page]);
  const isBegun = useRef(false);
  useEffect(() => {
    if (!isBegun.current) void acts.begin();
    isBegun.current = true;
  }, [acts]);
  if (screen.what === 'nothing') return null;
  if (screen.what === 'signin') return <SignInScreen asked={screen.asked} enter={acts.enter} />;
  const { desk } = screen;
  return (
    <ChatProvider key={desk.user} client={desk.client}>
      <Chat desk={desk} bell={page.bell} leave={() => acts.leave(desk)} refused={acts.refused} />
    </ChatProvider>
  );
}

function actsOf(page: Page, show: (screen: Screen) => void) {
  const { signIn } = page;
  let desk: Desk | null = null;
  const enterAs = (user: string, who: Who | null) => {
    page.remember(who);
    desk = page.session(user);
    show({ what: 'chat', desk });
  };
  const ask = async (asked: Partial<Asked> = {}) =>
    show({ what: 'signin', asked: { mode: asked.mode ?? (await signIn.mode()), ...asked } });
  const enter = async (who: Who) => {
    const name = 'name' in who ? who.name : '';
    show({ what: 'signin', asked: { mode: 'name' in who ? 'name' : 'token', isBusy: true, name } });
    const { fault, mode, user } = await signIn.enter(who);
    if (fault === null) enterAs(user, 'name' in who ? { name: user } : who);
    else await ask({ mode, fault, name });
  };
  const end = async () => {
    const ended = desk;
    desk = null;
    ended?.close();
    await ended?.client.stop();
  };
  const leave = (left: Desk) => {
    const waiting = left.client.stores.outbox.getSnapshot().length;
    const go = () => void goodbye(left);
    if (waiting === 0) go();
    else {
      const what = waiting === 1 ? 'One message or change is' : `${waiting} messages or changes are`;
      left.ask({
        text: `${what} not sent yet and will be lost.`,
        label: 'Leave anyway',
        stands: () => true,
        confirmed: go,
      });
    }
  };
  const goodbye = async (left: Desk) => {
    desk = null;
    left.close();
    page.remember(null);
    page.keep.set('open', null);
    if (history.state?.peer) history.replaceState(null, '');
    signIn.leave();
    document.title = 'chatd';
    const forgotten = left.client.forget();
    await ask();
    await forgotten;
  };
  return {
    enter: (who: Who) => void enter(who),
    leave,
    refused: (reason: string) => {
      const wasIn = desk?.isKnown.get() === true;
      const named = signIn.isNamed ? 'name' : 'token';
      const fault = wasIn ? 'Your access has ended. Sign in again to go on.' : `This ${named} is refused: ${reason}.`;
      const name = page.keep.get('name') ?? '';
      void end().then(() => ask({ mode: named, fault, name }));
    },
    begin: async () => {
      const { who } = page;
      const host = Host.of(window);
      const token = await host?.token(null).catch(() => null);
      if (host && token) enterAs(signIn.embedded(host, token), null);
      else if (who === null) await ask();
      else enterAs(signIn.resume(who), who);
    },
  };
}
