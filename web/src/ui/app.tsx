/** Who is here: the sign-in, or the chat of somebody, which is loaded meanwhile (room.tsx). */

import { useEffect, useMemo, useRef, useState } from 'react';
import type { Desk } from '../state/desk';
import { Host } from '../state/host';
import { Keep, storage } from '../state/keep';
import { SignIn, type Who } from '../state/signin';
import type { Room } from './room';
import { type Asked, HostScreen, SignInScreen } from './signin';

type Screen = { what: 'nothing' } | { what: 'signin'; asked: Asked } | { what: 'chat'; room: Room; desk: Desk };

/** What the sign-in shows without it: a script of its own, and most of the page. */
const load = () => import('./room');

/** One page of one tab. */
export class Page {
  readonly keep = new Keep(storage('sessionStorage'));
  readonly signIn = new SignIn((url, init) => fetch(url, init), document.documentElement.dataset.login);
  #room: Room | null = null;

  /** Rejects where its script cannot be had. */
  async room(): Promise<Room> {
    const { Room } = await load();
    this.#room ??= new Room(this.keep, this.signIn);
    return this.#room;
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

export function App({ page }: { page: Page }) {
  const [screen, setScreen] = useState<Screen>({ what: 'nothing' });
  const acts = useMemo(() => actsOf(page, setScreen), [page]);
  const isBegun = useRef(false);
  useEffect(() => {
    if (!isBegun.current) void acts.begin();
    isBegun.current = true;
  }, [acts]);
  if (screen.what === 'nothing') return <Splash />;
  if (screen.what === 'signin') {
    const { asked } = screen;
    return asked.mode === 'host' ? (
      <HostScreen asked={asked} again={acts.again} />
    ) : (
      <SignInScreen asked={asked} enter={acts.enter} />
    );
  }
  const { desk, room } = screen;
  const leave = page.signIn.known === 'host' ? null : () => acts.leave(desk);
  return <room.Screen key={desk.user} desk={desk} leave={leave} refused={acts.refused} />;
}

/** As in index.html. */
function Splash() {
  return (
    <div className="splash" role="status" aria-label="Loading">
      <img className="logo" src="icon.svg" alt="" width={56} height={56} />
    </div>
  );
}

function actsOf(page: Page, show: (screen: Screen) => void) {
  const { signIn } = page;
  let desk: Desk | null = null;
  const enterAs = async (user: string, who: Who | null) => {
    page.remember(who);
    const room = await page.room().catch(() => null);
    if (room === null) return ask({ fault: 'The page could not be loaded. Reload it once the server answers.' });
    desk = room.session(user);
    show({ what: 'chat', room, desk });
  };
  const ask = (asked: Partial<Asked> = {}) => {
    show({ what: 'signin', asked: { mode: signIn.mode, ...asked } });
    page.room().catch(() => {}); // it is there when somebody has typed a name
  };
  /** Goes on as the host's user. False: the page is in no frame, or the host gives no token. */
  const enterByHost = async (renew: string | null) => {
    const host = Host.of(window);
    const token = await host?.token(renew).catch(() => null);
    if (!host || !token) return false;
    await enterAs(signIn.embedded(host, token), null);
    return true;
  };
  const enter = async (who: Who) => {
    const name = 'name' in who ? who.name : '';
    show({ what: 'signin', asked: { mode: 'name' in who ? 'name' : 'token', isBusy: true, name } });
    const { fault, mode, user } = await signIn.enter(who);
    if (fault === null) await enterAs(user, 'name' in who ? { name: user } : who);
    else ask({ mode, fault, name });
  };
  const end = async () => {
    const ended = desk;
    desk = null;
    ended?.close();
    await ended?.client.stop();
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
    ask();
    await forgotten;
  };
  return {
    enter: (who: Who) => void enter(who),
    leave: (left: Desk) => askToLeave(left, () => void goodbye(left)),
    refused: (reason: string) => {
      const wasIn = desk?.isKnown.get() === true;
      const { known } = signIn;
      const ended = known === 'host' ? 'Your access has ended.' : 'Your access has ended. Sign in again to go on.';
      const fault = wasIn ? ended : `This ${known === 'name' ? 'name' : 'token'} is refused: ${reason}.`;
      const name = page.keep.get('name') ?? '';
      void end().then(() => ask({ mode: known, fault, name }));
    },
    again: async () => {
      show({ what: 'signin', asked: { mode: 'host', isBusy: true } });
      if (!(await enterByHost('unauthorized')))
        ask({ mode: 'host', fault: 'The application gives you no access to this chat.' });
    },
    begin: async () => {
      const { who } = page;
      if (await enterByHost(null)) return;
      if (who === null) ask();
      else await enterAs(signIn.resume(who), who);
    },
  };
}

/** `go`: nothing is lost by it, or the user has said so. */
function askToLeave(desk: Desk, go: () => void): void {
  const waiting = desk.client.stores.outbox.getSnapshot().length;
  if (waiting === 0) {
    go();
    return;
  }
  const what = waiting === 1 ? 'One message or change is' : `${waiting} messages or changes are`;
  desk.ask({
    text: `${what} not sent yet and will be lost.`,
    label: 'Leave anyway',
    stands: () => true,
    confirmed: go,
  });
}
