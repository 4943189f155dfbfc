/** Who is here: the sign-in, or the chat of somebody, which is loaded meanwhile (room.tsx). */

import { useEffect, useMemo, useRef, useState } from 'react';
import type { Desk } from '../state/desk';
import { Host } from '../state/host';
import { Keep, storage } from '../state/keep';
import { SignIn, type Who } from '../state/signin';
import type { Room } from './room';
import { type Asked, SignInScreen } from './signin';

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
  if (screen.what === 'signin') return <SignInScreen asked={screen.asked} enter={acts.enter} />;
  const { desk, room } = screen;
  return <room.Screen key={desk.user} desk={desk} leave={() => acts.leave(desk)} refused={acts.refused} />;
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
  const ask = async (asked: Partial<Asked> = {}) => {
    show({ what: 'signin', asked: { mode: asked.mode ?? (await signIn.mode()), ...asked } });
    page.room().catch(() => {}); // it is there when somebody has typed a name
  };
  const enter = async (who: Who) => {
    const name = 'name' in who ? who.name : '';
    show({ what: 'signin', asked: { mode: 'name' in who ? 'name' : 'token', isBusy: true, name } });
    const { fault, mode, user } = await signIn.enter(who);
    if (fault === null) await enterAs(user, 'name' in who ? { name: user } : who);
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
      if (host && token) await enterAs(signIn.embedded(host, token), null);
      else if (who === null) await ask();
      else await enterAs(signIn.resume(who), who);
    },
  };
}
