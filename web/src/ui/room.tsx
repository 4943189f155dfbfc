/** The chat of somebody, and what it needs: the client, and all of the page but the sign-in. */

import { ChatClient, type Platform } from '@chatd/client';
import { browser } from '@chatd/client/browser';
import { indexedDb } from '@chatd/client/indexeddb';
import { ChatProvider } from '@chatd/client/react';
import { tabs } from '@chatd/client/tabs';
import { Attention, attend } from '../state/attention';
import { Bell } from '../state/bell';
import { Desk } from '../state/desk';
import { type Keep, storage } from '../state/keep';
import type { SignIn } from '../state/signin';
import { Chat } from './chat';

interface ScreenProps {
  desk: Desk;
  leave: (() => void) | null;
  refused: (reason: string) => void;
}

/** Of one tab. Each session has a client of its own. */
export class Room {
  readonly #bell = new Bell(storage('localStorage'));
  readonly #keep: Keep;
  readonly #signIn: SignIn;

  constructor(keep: Keep, signIn: SignIn) {
    this.#keep = keep;
    this.#signIn = signIn;
  }

  session(user: string): Desk {
    const attention = new Attention(
      () => performance.now(),
      document.visibilityState === 'visible',
      document.hasFocus(),
    );
    const client = new ChatClient({
      url: address(),
      user,
      token: (renew) => this.#signIn.token(renew),
      store: indexedDb(),
      tabs: tabs(),
      platform: platformOf(attention),
    });
    const desk = new Desk(client, user, attention, this.#keep);
    this.#bell.ring(client, attention, (peer) => desk.open(peer));
    return desk;
  }

  readonly Screen = ({ desk, leave, refused }: ScreenProps) => (
    <ChatProvider client={desk.client}>
      <Chat desk={desk} bell={this.#bell} leave={leave} refused={refused} />
    </ChatProvider>
  );
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
