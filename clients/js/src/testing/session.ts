/**
 * One connection at the fake server: what arrived, what was answered, and the hands of a test on the line.
 */
import type { AnyFrame } from './fields.js';
import { type FrameRate, Told } from './rates.js';
import type { Line } from './socket.js';

/** One connection. `FakeChatd.sessions` has those that said `hello`. */
export class Session {
  /** Its user; '' before `hello`. */
  user = '';
  /** Its device; '' before `hello`. */
  device = '';
  /** The `hello` that was taken. */
  hello: AnyFrame | undefined;
  /** All requests, as they came. */
  readonly requests: AnyFrame[] = [];
  /** What this device says of itself. */
  state: 'online' | 'away' = 'online';
  /** Whom it watches. */
  watched: string[] = [];
  /** Conversation -> the cid that must come again before any other. */
  readonly blocked = new Map<string, string>();
  /** When the token ends, by the server's clock. */
  exp = 0;
  /** @internal */ lastId = 0;
  /** @internal */ unreadable = 0;
  /** @internal The number of its last message among all. */ heardAt = 0;
  /** @internal */ rate: FrameRate | undefined;
  /** @internal */ readonly told = new Told();
  /** @internal */ timer: unknown;
  /** @internal Nothing leaves any more: the answer to a request whose fault is `cut after` or `swallow after`. */
  isMuted = false;
  readonly #line: Line;
  readonly #onGone: (session: Session) => void;

  /** @internal */
  constructor(line: Line, onGone: (session: Session) => void) {
    this.#line = line;
    this.#onGone = onGone;
  }

  /** The connection is there. */
  get isOpen(): boolean {
    return this.#line.isOpen;
  }

  /** Pushes a frame, of whatever kind. */
  push(frame: AnyFrame | object): void {
    if (!this.isMuted) this.#line.send(JSON.stringify(frame));
  }

  /** Sends this text as it is. */
  pushText(text: string): void {
    this.#line.send(text);
  }

  /** Closes with this code, after what was sent before. */
  close(code: number, reason = ''): void {
    this.#line.close(code, reason);
    this.#onGone(this);
  }

  /** Cuts the line at once: what is under way, both ways, is lost. The client sees a close with 1006. */
  cut(): void {
    this.#line.cut(true);
    this.#onGone(this);
  }

  /** The line dies and nobody is told: the client must find out. */
  fallSilent(): void {
    this.#line.cut(false);
    this.#onGone(this);
  }

  /** @internal The client closed it. */
  ended(): void {
    this.#line.isOpen = false;
    this.#onGone(this);
  }
}
