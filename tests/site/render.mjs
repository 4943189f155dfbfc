// The application of docs/guides/react.md in a document without a browser, over a chatd in memory.
//
//     node render.mjs    beside the compiled app.js; prints what it saw
import { ChatClient } from '@chatd/client';
import { FakeChatd } from '@chatd/client/testing';
import { Window } from 'happy-dom';
import { createElement } from 'react';

const window = new Window();
Object.assign(globalThis, { window, document: window.document, navigator: window.navigator });
const { createRoot } = await import('react-dom/client');
const { App } = await import('./app.js');

const until = async (holds) => {
  for (let tries = 0; !holds(); tries++) {
    if (tries === 1000) throw new Error(`not seen: ${holds}; shown: ${document.body.textContent}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
};
const shows = (text) => until(() => document.body.textContent.includes(text));

const chatd = new FakeChatd();
const client = new ChatClient({
  url: chatd.url,
  token: async () => chatd.token('alice'),
  webSocket: chatd.WebSocket,
});
const root = document.createElement('div');
document.body.append(root);
createRoot(root).render(createElement(App, { client }));

await until(() => client.stores.line.getSnapshot().state === 'online');
chatd.say('bob', 'alice', 'hello alice');
await shows('bob 1');
document.querySelector('li button').click();
await shows('bob: hello alice');

const input = document.querySelector('input');
Object.getOwnPropertyDescriptor(window.HTMLInputElement.prototype, 'value').set.call(input, 'hello bob');
input.dispatchEvent(new window.Event('input', { bubbles: true }));
document.querySelector('form').dispatchEvent(new window.Event('submit', { bubbles: true, cancelable: true }));
await shows('alice: hello bob sent');
console.log('bob wrote, alice answered');
process.exit(0);
