/** One conversation: who it is with, the messages, what waits without a message of its own, the composer. */

import type { Waiting } from '@chatd/client';
import { useChat, useMessages, usePresence, useTyping } from '@chatd/client/react';
import { useMemo, useSyncExternalStore } from 'react';
import { faultOf } from '../pure/rows';
import { lastSeen } from '../pure/times';
import type { Desk } from '../state/desk';
import { Composer } from './composer';
import { Log } from './log';
import { FaultLine } from './message';
import { Face, Icon, IconButton } from './parts';

export interface PaneProps {
  desk: Desk;
  peer: string;
  now: number;
  back: () => void;
}

export function Pane({ desk, peer, now, back }: PaneProps) {
  return (
    <section className="pane" aria-label="Conversation">
      <Head desk={desk} peer={peer} now={now} back={back} />
      <Log key={peer} desk={desk} peer={peer} now={now} />
      <Stray desk={desk} peer={peer} />
      <Composer key={`to ${peer}`} desk={desk} peer={peer} />
    </section>
  );
}

export function NoPane() {
  return (
    <section className="pane nobody">
      <Icon name="chat" />
      <p>Choose a conversation, or type a name to start one.</p>
    </section>
  );
}

const STATES: Readonly<Record<string, string>> = { online: 'online', away: 'away' };

function Head({ desk, peer, now, back }: PaneProps) {
  const isSelf = peer === desk.user;
  const presence = usePresence(peer);
  const [isTyping] = useTyping(peer);
  const words = presence === null ? '' : (STATES[presence.state] ?? lastSeen(presence.seen, now));
  return (
    <header className="pane-head">
      <IconButton icon="back" kind="plain back" label="Back to the conversations" act={back} />
      <Face user={peer} isSelf={isSelf} state={isSelf ? 'unknown' : (presence?.state ?? 'unknown')} />
      <span className="who">
        <h2>
          <bdi className="name">{isSelf ? `${peer} (you)` : peer}</bdi>
        </h2>
        <span className={`state${isTyping ? ' typing-text' : ''}`}>
          {isSelf ? 'Notes to yourself' : isTyping ? 'typing…' : words}
        </span>
      </span>
    </header>
  );
}

/** Failed changes of messages that are not there: their words are nowhere else. */
function Stray({ desk, peer }: { desk: Desk; peer: string }) {
  const client = useChat();
  const { outbox } = client.stores;
  const waiting = useSyncExternalStore(outbox.subscribe, outbox.getSnapshot, outbox.getSnapshot);
  const { messages } = useMessages(peer);
  const stray = useMemo(() => {
    const changes = waiting.filter((one: Waiting) => one.peer === peer && one.kind !== 'message');
    if (changes.length === 0) return changes;
    const shown = new Set(messages.filter(({ body }) => body !== null).map((message) => message.waiting?.cid));
    return changes.filter(({ cid }) => !shown.has(cid));
  }, [waiting, messages, peer]);
  const faults = stray.map((one) => ({ cid: one.cid, fault: faultOf(one) }));
  return (
    <div className="strays">
      {faults.map(({ cid, fault }) => fault?.isFailed && <FaultLine key={cid} desk={desk} cid={cid} fault={fault} />)}
    </div>
  );
}
