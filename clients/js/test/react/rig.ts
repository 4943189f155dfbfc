/** React components over a client and a chatd in memory, and how often each was rendered. */

import { Window } from 'happy-dom';
import { act, createElement, type ReactElement, StrictMode } from 'react';
import { createRoot, hydrateRoot, type Root } from 'react-dom/client';
import { ChatClient } from '../../src/index.js';
import { ChatProvider } from '../../src/react.js';
import { FakeChatd, TestClock } from '../../src/testing/index.js';

export const window = new Window();
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true });

export class Rig {
  readonly clock = new TestClock();
  readonly chatd = new FakeChatd({ clock: this.clock });
  readonly errors: unknown[] = [];
  readonly client = this.make('alice');
  /** Component -> renders. */
  readonly renders: Record<string, number> = {};
  readonly box = window.document.createElement('div') as unknown as HTMLElement;
  root: Root | undefined;

  make(user: string): ChatClient {
    const client = new ChatClient({
      url: this.chatd.url,
      clock: this.clock,
      random: () => 0,
      webSocket: this.chatd.WebSocket,
      token: async () => this.chatd.token(user),
    });
    client.on('error', (error) => this.errors.push(error));
    return client;
  }

  count(component: string): void {
    this.renders[component] = (this.renders[component] ?? 0) + 1;
  }

  /** What was rendered since the last call. */
  counted(): Record<string, number> {
    const renders = { ...this.renders };
    for (const key of Object.keys(this.renders)) delete this.renders[key];
    return renders;
  }

  tree(children: ReactElement, isStrict = false): ReactElement {
    const tree = createElement(ChatProvider, { client: this.client }, children);
    return isStrict ? createElement(StrictMode, null, tree) : tree;
  }

  async render(children: ReactElement, isStrict = false): Promise<void> {
    await act(async () => {
      this.root ??= createRoot(this.box);
      this.root.render(this.tree(children, isStrict));
    });
    await this.pass(1000);
  }

  async hydrate(children: ReactElement, onRecoverableError: (error: unknown) => void): Promise<void> {
    await act(async () => {
      this.root = hydrateRoot(this.box, this.tree(children), { onRecoverableError });
    });
  }

  /** Time passes, and what follows from it is rendered. */
  async pass(ms = 100): Promise<void> {
    await act(() => this.clock.pass(ms));
  }

  async end(): Promise<void> {
    await act(async () => this.root?.unmount());
    await this.client.stop();
  }
}
