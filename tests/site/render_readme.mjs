// The component of README.md, rendered below a provider.
//
//     node render_readme.mjs    beside the compiled chat.js; prints what it saw
import { ChatProvider } from '@chatd/client/react';
import { createElement } from 'react';
import { chatd, client, render, shows, type, window } from './stage.mjs';

const { Chat } = await import('./chat.js');

await render(createElement(ChatProvider, { client }, createElement(Chat, { peer: 'bob' })));
chatd.say('bob', 'alice', 'hello alice');
await shows('bob: hello alice (received)');

type('hello bob').dispatchEvent(new window.KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
await shows('alice: hello bob (sent)');
console.log('bob wrote, alice answered');
process.exit(0);
