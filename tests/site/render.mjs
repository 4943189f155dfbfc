// The application of docs/guides/react.md, rendered.
//
//     node render.mjs    beside the compiled app.js; prints what it saw
import { createElement } from 'react';
import { chatd, client, render, shows, type, window } from './stage.mjs';

const { App } = await import('./app.js');

await render(createElement(App, { client }));
chatd.say('bob', 'alice', 'hello alice');
await shows('bob 1');
document.querySelector('li button').click();
await shows('bob: hello alice');

type('hello bob');
document.querySelector('form').dispatchEvent(new window.Event('submit', { bubbles: true, cancelable: true }));
await shows('alice: hello bob sent');
console.log('bob wrote, alice answered');
process.exit(0);
