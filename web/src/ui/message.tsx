/** One row of the log: the day, the line above the new messages, a message with what is said beside it. */

import type { Message } from '@chatd/client';
import { useChat } from '@chatd/client/react';
import { memo, type ReactNode, useState } from 'react';
import { type Fault, faultOf, type Row, type Tick, tickOf } from '../pure/rows';
import { isJumbo, isLong, isRightToLeft, isSeen, pieces } from '../pure/text';
import { clock, dayName, fullTime } from '../pure/times';
import type { Desk } from '../state/desk';
import { canDelete, canEdit } from '../state/target';
import { Icon, IconButton } from './parts';

export const TICK_WORDS: Readonly<Record<Tick, string>> = {
  none: '',
  sending: 'Sending',
  waiting: 'Waiting to be sent',
  failed: 'Not sent',
  sent: 'Sent',
  delivered: 'Delivered',
  read: 'Read',
};

export function TickMark({ tick }: { tick: Tick }) {
  if (tick === 'none') return <span className="tick none" />;
  const name = {
    sending: 'sending',
    waiting: 'sending',
    failed: 'failed',
    sent: 'sent',
    delivered: 'both',
    read: 'both',
  } as const;
  return (
    <span className={`tick ${tick}`} role="img" aria-label={TICK_WORDS[tick]} title={TICK_WORDS[tick]}>
      <Icon name={name[tick]} />
    </span>
  );
}

export interface MessageRowProps {
  desk: Desk;
  peer: string;
  row: Row;
  /** Tab reaches it. */
  isStop: boolean;
  now: number;
}

/** Drawn again only where something of it is another: the log has many of them, and is drawn for each message. */
export const MessageRow = memo(function MessageRow({ desk, peer, row, isStop, now }: MessageRowProps) {
  return (
    <>
      {row.day !== null && (
        <div className="day" role="separator">
          <span>{dayName(row.day, now)}</span>
        </div>
      )}
      {row.isFirstNew && (
        <div className="new" role="separator">
          <span>New messages</span>
        </div>
      )}
      <Bubble desk={desk} peer={peer} row={row} isStop={isStop} now={now} />
    </>
  );
});

/** The text as it is to stand: an edit that waits is shown at once. */
function bodyOf({ body, waiting }: Message): string | null {
  return body !== null && waiting?.kind === 'edit' && waiting.state === 'sending' ? waiting.body : body;
}

function Bubble({ desk, peer, row, isStop, now }: MessageRowProps) {
  const { message, own, first, last } = row;
  const { waiting } = message;
  const body = bodyOf(message);
  const changing = waiting && waiting.kind !== 'message' && waiting.state === 'sending' ? waiting.kind : null;
  const fault = waiting && message.body !== null ? faultOf(waiting) : null;
  const tick = tickOf(message, peer === desk.user);
  const kind = body === null ? ' gone' : isJumbo(body) ? ' jumbo' : '';
  const state = `${changing ? ' changing' : ''}${message.seq === null && tick === 'failed' ? ' failed' : ''}`;
  const words =
    changing === 'delete' ? 'deleting…' : changing === 'edit' ? 'saving…' : message.edited !== null ? 'edited' : '';
  return (
    <div
      className={`message ${own ? 'own' : 'theirs'}${first ? ' first' : ''}${last ? ' last' : ''}${kind}${state}`}
      data-key={row.key}
      data-seq={message.seq ?? undefined}
      // They are walked through by the arrow keys.
      tabIndex={isStop ? 0 : -1}
    >
      <div className="bubble" dir={body !== null && isRightToLeft(body) ? 'rtl' : 'ltr'}>
        <div className="words">
          <span className="vh">{own ? 'You: ' : `${peer}: `}</span>
          <Body own={own} body={body} />
          <span className="meta" dir="ltr">
            <span className="edited">{body === null ? '' : words}</span>
            <time title={fullTime(message.ts)}>{clock(message.ts)}</time>
            <TickMark tick={tick} />
          </span>
        </div>
        <Actions desk={desk} peer={peer} message={message} body={body} now={now} />
      </div>
      {fault && waiting && <FaultLine desk={desk} cid={waiting.cid} fault={fault} />}
    </div>
  );
}

function Body({ own, body }: { own: boolean; body: string | null }) {
  const [isUnfolded, setUnfolded] = useState(false);
  if (body === null) return <div className="text">{own ? 'You deleted this message' : 'This message was deleted'}</div>;
  if (!isSeen(body)) return <div className="text unseen">(nothing to be seen)</div>;
  const isFolded = isLong(body) && !isUnfolded;
  return (
    <>
      <div className={isFolded ? 'text folded' : 'text'} dir="auto">
        {linked(body)}
      </div>
      {isLong(body) && (
        <button type="button" className="fold" aria-expanded={!isFolded} onClick={() => setUnfolded(!isUnfolded)}>
          {isFolded ? 'Show all of it' : 'Show less'}
        </button>
      )}
    </>
  );
}

function linked(body: string): ReactNode {
  const all = pieces(body);
  if (all.every(({ href }) => href === null)) return body;
  return all.map(({ text, href }, i) =>
    href === null ? (
      text
    ) : (
      // biome-ignore lint/suspicious/noArrayIndexKey: the pieces of a text do not move
      <a key={i} href={href} target="_blank" rel="noopener noreferrer nofollow">
        {text}
      </a>
    ),
  );
}

interface ActionsProps {
  desk: Desk;
  peer: string;
  message: Message;
  body: string | null;
  now: number;
}

function Actions({ desk, peer, message, body, now }: ActionsProps) {
  const client = useChat();
  const isOwn = message.from === desk.user;
  if (body === null) return null;
  const copy = () => {
    navigator.clipboard?.writeText(body).then(
      () => desk.notice('Copied.'),
      () => desk.notice('This browser does not let the page copy.'),
    );
  };
  return (
    <div className="actions">
      {navigator.clipboard && <IconButton icon="copy" label="Copy" act={copy} />}
      {isOwn && canEdit(message, now, client.limits.edit_ms) && (
        <IconButton icon="edit" label="Edit" act={() => desk.edit(peer, message)} />
      )}
      {isOwn && canDelete(message) && <IconButton icon="trash" label="Delete" act={() => desk.delete(peer, message)} />}
    </div>
  );
}

/** What is said beside something that waits or failed. Words that are nowhere else can be taken into the draft. */
export function FaultLine({ desk, cid, fault }: { desk: Desk; cid: string; fault: Fault }) {
  const { text, isFailed, canAgain, canDiscard, words } = fault;
  return (
    <div className={`fault ${isFailed ? 'failed' : 'waiting'}`}>
      <span>{text}</span>
      {words !== null && <q className="kept-words">{words}</q>}
      {canAgain && (
        <button type="button" onClick={() => void desk.client.again(cid)}>
          Try again
        </button>
      )}
      {words !== null && (
        <button type="button" onClick={() => desk.takeWords(cid, words)}>
          Use as draft
        </button>
      )}
      {canDiscard && (
        <button type="button" onClick={() => void desk.client.cancel(cid)}>
          Discard
        </button>
      )}
    </div>
  );
}
