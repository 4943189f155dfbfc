/** What the fake server goes by: the names are those of the real one's settings, in the habit of this language. */

/** Settings of the fake server; what is left out is as the real one has it. */
export interface FakeSettings {
  /** The log's name. Another one tells clients that all they hold is void. */
  epoch: string;
  /** Bytes of a frame. */
  frameBytesMax: number;
  /** Bytes of a text. */
  bodyBytesMax: number;
  /** Messages of a user in any `ratePerMs`. */
  rateMessages: number;
  ratePerMs: number;
  /** How often somebody may come too early before they are cut off. */
  ratePenaltiesMax: number;
  /** Frames of a connection: so many a second, `framesBurst` at once. */
  framesPerS: number;
  framesBurst: number;
  /** New conversations that a user may begin in an hour. */
  newConversationsPerHour: number;
  /** Time to edit a message. */
  editWindowMs: number;
  /** Names in a `watch`. */
  watchMax: number;
  /** Most messages in a page. */
  historyMax: number;
  /** Entries of one conversation that a resync sends; more are left to `history`. */
  resyncEntriesMax: number;
  /** Conversations in one page of `welcome`. */
  welcomeItems: number;
  /** Devices of a user. */
  devicesMax: number;
  /** Time for the first frame. */
  helloMs: number;
  heartbeatMs: number;
  /** How long somebody stays online after their last connection went. */
  offlineGraceMs: number;
  /** How long a token may be valid. */
  tokenTtlMaxMs: number;
  /** Whether a message may go to somebody who never was here. */
  unknownRecipients: 'accept' | 'refuse';
}

/** As the real server has them. */
export const SETTINGS: Readonly<FakeSettings> = {
  epoch: 'epoch-1',
  frameBytesMax: 16_384,
  bodyBytesMax: 2_048,
  rateMessages: 10,
  ratePerMs: 5_000,
  ratePenaltiesMax: 10,
  framesPerS: 100,
  framesBurst: 400,
  newConversationsPerHour: 1_000,
  editWindowMs: 900_000,
  watchMax: 200,
  historyMax: 100,
  resyncEntriesMax: 500,
  welcomeItems: 100,
  devicesMax: 10,
  helloMs: 5_000,
  heartbeatMs: 20_000,
  offlineGraceMs: 500,
  tokenTtlMaxMs: Number.POSITIVE_INFINITY,
  unknownRecipients: 'accept',
};
