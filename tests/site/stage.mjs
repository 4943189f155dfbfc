// A document without a browser, and a client of a chatd in memory: what the React code of the docs is rendered on.
import { ChatClient } from '@chatd/client';
import { FakeChatd } from '@chatd/client/testing';
import { Window } from 'happy-dom';

export const window = new Window();
Object.assign(globalThis, { window, document: window.document, navigator: window.navigator });
const { createRoot } = await import('react-dom/client');

export const chatd = new FakeChatd();
export const client = new ChatClient({
  url: chatd.url,
  token: async () => chatd.token('alice'),
  webSocket: chatd.WebSocket,
});

export async function until(holds) {
  for (let tries = 0; !holds(); tries++) {
    if (tries === 1000) throw new Error(`not seen: ${holds}; shown: ${document.body.textContent}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export const shows = (text) => until(() => document.body.textContent.includes(text));

/** Render it, and wait for the line. */
export async function render(element) {
  const root = document.createElement('div');
  document.body.append(root);
  createRoot(root).render(element);
  await until(() => client.stores.line.getSnapshot().state === 'online');
}

/** Type into an input as a user does; gives the input. */
export function type(text, selector = 'input') {
  const input = document.querySelector(selector);
  Object.getOwnPropertyDescriptor(window.HTMLInputElement.prototype, 'value').set.call(input, text);
  input.dispatchEvent(new window.Event('input', { bubbles: true }));
  return input;
}
