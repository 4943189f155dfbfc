/** Notifications while the page is open and nobody looks at it. Off until the user turns them on, in this browser. */

import type { ChatClient } from '@chatd/client';
import type { Attention } from './attention';
import { Cell } from './cell';

const KEY = 'chatd.bell';
const BODY_CHARS = 140;

export class Bell {
  readonly isOn: Cell<boolean>;
  readonly isThere = 'Notification' in window;
  readonly #local: Storage | null;

  constructor(local: Storage | null) {
    this.#local = local;
    this.isOn = new Cell(this.isThere && Notification.permission === 'granted' && this.#kept() === 'on');
  }

  /** Gives what is in the way, in words; null: it is done. */
  async toggle(): Promise<string | null> {
    const isOn = !this.isOn.get();
    if (isOn && (await Notification.requestPermission()) !== 'granted') {
      return 'The browser does not let this page notify you. Its settings for this site may.';
    }
    this.isOn.set(isOn);
    try {
      this.#local?.setItem(KEY, isOn ? 'on' : 'off');
    } catch {
      // it holds for this page, then
    }
    return null;
  }

  /** Rings for this client's messages; gives what ends that. */
  ring(client: ChatClient, attention: Attention, open: (peer: string) => void): () => void {
    return client.on('message', ({ peer, body }) => {
      if (!this.isOn.get() || attention.isHere) return;
      try {
        // The same tag in each tab: the last message of a person is one notification.
        const shown = new Notification(peer, {
          body: (body ?? '').slice(0, BODY_CHARS),
          tag: `chatd/${peer}`,
          icon: 'icon.svg',
        });
        shown.onclick = () => {
          window.focus();
          open(peer);
          shown.close();
        };
      } catch {
        // some browsers have the class and allow none of it
      }
    });
  }

  #kept(): string | null {
    try {
      return this.#local?.getItem(KEY) ?? null;
    } catch {
      return null;
    }
  }
}
