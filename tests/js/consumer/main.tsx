/** The smallest application: one conversation, by what the packed `@chatd/client` exports. The query says who and where. */
import { ChatClient } from '@chatd/client';
import { browser } from '@chatd/client/browser';
import { indexedDb } from '@chatd/client/indexeddb';
import { ChatProvider, useConnection, useMessages, useSend } from '@chatd/client/react';
import { tabs } from '@chatd/client/tabs';
import { type FormEvent, StrictMode } from 'react';
import { createRoot } from 'react-dom/client';

const query = new URLSearchParams(location.search);
const user = query.get('user') ?? '';
const peer = query.get('peer') ?? '';
const client = new ChatClient({
  url: `ws://${location.host}/ws`,
  token: async () => query.get('token'),
  user,
  store: indexedDb(),
  tabs: tabs(),
  platform: browser(),
});

function Chat() {
  const { state } = useConnection();
  const { messages } = useMessages(peer);
  const send = useSend(peer);
  const submit = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const text = String(new FormData(event.currentTarget).get('text'));
    event.currentTarget.reset();
    void send(text);
  };
  return (
    <main>
      <output>{state}</output>
      <ol>
        {messages.map(({ key, from, body, state: how }) => (
          <li key={key} className={how}>
            {from}: {body}
          </li>
        ))}
      </ol>
      <form onSubmit={submit}>
        <input name="text" aria-label="Text" />
        <button type="submit">Send</button>
      </form>
    </main>
  );
}

const root = document.getElementById('root');
if (root) {
  createRoot(root).render(
    <StrictMode>
      <ChatProvider client={client}>
        <Chat />
      </ChatProvider>
    </StrictMode>,
  );
}
