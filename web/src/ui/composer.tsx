/** Where messages are written and edited. It measures as the server does and never cuts anything off. */

import { bodyBytes, cleanBody } from '@chatd/client';
import { useChat, useConversations, useTyping } from '@chatd/client/react';
import { type KeyboardEvent, useLayoutEffect, useRef } from 'react';
import { charactersLeft, isSeen } from '../pure/text';
import { useCell } from '../state/cell';
import type { Desk } from '../state/desk';
import { Icon, IconButton } from './parts';

/** With fewer bytes left than that, the counter shows. */
const COUNTER_BYTES = 256;
const HEIGHT_MAX_PX = 200;

export function Composer({ desk, peer }: { desk: Desk; peer: string }) {
  const client = useChat();
  const isOpen = useConversations((all) => all.some((one) => one.peer === peer && one.open));
  const [, sayTyping] = useTyping(peer);
  const { text, editing } = useCell(desk.composing.writing);
  const area = useRef<HTMLTextAreaElement>(null);
  // On a phone the Return key is the only way to a new line.
  const isTouch = matchMedia('(pointer: coarse)').matches;
  const body = cleanBody(text);
  const bytesMax = client.limits.body_bytes;
  const room = bytesMax - bodyBytes(body);
  const canSubmit = room >= 0 && isSeen(body);
  const label = peer === desk.user ? 'Write a note' : `Message to ${peer}`;
  // biome-ignore lint/correctness/useExhaustiveDependencies: its height follows what is in it
  useLayoutEffect(() => resize(area.current), [text]);
  const target = editing?.target;
  useLayoutEffect(() => {
    if (!target && isTouch) return;
    area.current?.focus({ preventScroll: true });
    if (target) area.current?.setSelectionRange(area.current.value.length, area.current.value.length);
  }, [target, isTouch]);
  const type = (typed: string) => {
    desk.composing.type(typed);
    if (!editing && isOpen && peer !== desk.user && typed.trim() !== '') sayTyping();
  };
  const submit = () => {
    if (!canSubmit) return;
    if (editing) {
      if (body === editing.body || desk.save(editing.target, body)) desk.composing.endEdit();
    } else {
      desk.composing.type('');
      desk.send(peer, body);
    }
    area.current?.focus({ preventScroll: true });
  };
  const press = (event: KeyboardEvent) => {
    const { isComposing, keyCode } = event.nativeEvent ?? event;
    if (isComposing || keyCode === 229) return;
    const isSubmit = event.key === 'Enter' && !event.shiftKey && !event.altKey && (!isTouch || event.ctrlKey);
    if (isSubmit) submit();
    else if (event.key === 'Escape' && editing) desk.composing.endEdit();
    else if (event.key === 'ArrowUp' && text === '' && !editing) desk.editLast();
    else return;
    event.preventDefault();
  };
  return (
    <div className="composer">
      <div className="edit-bar" hidden={!editing}>
        <Icon name="edit" />
        <span>Editing a message</span>
        <IconButton icon="close" label="Cancel the edit" act={() => desk.composing.endEdit()} />
      </div>
      <div className="writing-line">
        <textarea
          ref={area}
          className="writing"
          rows={1}
          dir="auto"
          placeholder={label}
          aria-label={label}
          aria-describedby="room"
          aria-invalid={room < 0 ? 'true' : undefined}
          enterKeyHint={isTouch ? 'enter' : 'send'}
          value={text}
          onInput={(event) => type(event.currentTarget.value)}
          onKeyDown={press}
        />
        <span id="room" className={`counter${room < 0 ? ' over' : ''}`} role="status">
          {room < COUNTER_BYTES ? roomWords(charactersLeft(body, bytesMax, bodyBytes)) : ''}
        </span>
        <IconButton icon="send" kind="send" label={editing ? 'Save' : 'Send'} act={submit} isDisabled={!canSubmit} />
      </div>
    </div>
  );
}

function roomWords(left: number): string {
  const count = Math.abs(left);
  const characters = count === 1 ? '1 character' : `${count} characters`;
  return left < 0 ? `${characters} too long` : `${characters} left`;
}

function resize(area: HTMLTextAreaElement | null): void {
  if (!area) return;
  area.style.height = 'auto';
  area.style.height = `${Math.min(area.scrollHeight, HEIGHT_MAX_PX)}px`;
}
