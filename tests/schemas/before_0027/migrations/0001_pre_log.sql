-- The log: conversations, their entries in daily partitions, cursors, users.
-- depends:

-- One row per database: what all nodes must agree on.
-- epoch: a client drops what it holds when this changes (docs/operations.md, restoring a backup).
CREATE TABLE meta (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch        text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
    partition_s  integer NOT NULL DEFAULT 86400 CHECK (partition_s > 0)
);
INSERT INTO meta DEFAULT VALUES;

-- Who has been here. `seen_ms`: last seen, in ms since 1970 by the database's clock.
CREATE TABLE users (
    id       text COLLATE "C" PRIMARY KEY,
    seen_ms  bigint NOT NULL
) WITH (fillfactor = 80);

-- One row per pair of users, made by the first send and never deleted, so that a seq never starts again.
-- It is the authority of the order: `head` is raised under this row's lock by the transaction that inserts the entry.
-- a <= b by bytes; side 0 is a, side 1 is b. na, nb: number of messages by each side up to head (unread without counting).
-- last_ts: ts of the head; it never falls. floor: lowest seq that is kept. xid: last transaction that changed the head (`since`).
-- Nothing that a send changes is indexed, and pages keep room: all updates are HOT.
CREATE TABLE conversations (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,      -- append, history
    a        text COLLATE "C" NOT NULL,
    b        text COLLATE "C" NOT NULL,
    head     bigint NOT NULL DEFAULT 0,
    floor    bigint NOT NULL DEFAULT 1,
    na       integer NOT NULL DEFAULT 0,
    nb       integer NOT NULL DEFAULT 0,
    last_ts  timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid      xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CHECK (a <= b)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX conversations_pair ON conversations (a, b);   -- resolve; list_conversations (side a)
CREATE INDEX conversations_b ON conversations (b) WHERE a <> b;   -- list_conversations (side b)

-- Delivered and read cursors of both sides: written behind, coalesced, never by a send.
-- *_read_n: number of the peer's messages up to that side's read cursor; unread = the peer's na/nb minus it.
CREATE TABLE cursors (
    conv         bigint PRIMARY KEY,
    a_delivered  bigint NOT NULL DEFAULT 0,
    a_read       bigint NOT NULL DEFAULT 0,
    a_read_n     integer NOT NULL DEFAULT 0,
    b_delivered  bigint NOT NULL DEFAULT 0,
    b_read       bigint NOT NULL DEFAULT 0,
    b_read_n     integer NOT NULL DEFAULT 0,
    xid          xid8 NOT NULL
) WITH (fillfactor = 50);

-- The log itself. kind: 0 message, 1 edit, 2 delete. side: who made it. na, nb: running numbers of messages by each side.
-- A message's row holds its text as it stands now: an edit changes `body` and sets rev (the edit's seq) and changed;
-- a delete makes body null. Edit and delete rows hold no text, only ref (seq of the message) and ref_ts (finds its partition).
-- A unique index must hold the partition key, so (conv, seq) is unique per partition and by the counter row over all of them.
CREATE TABLE entries (
    conv     bigint NOT NULL,
    seq      bigint NOT NULL,
    ts       timestamptz NOT NULL,
    cid      uuid NOT NULL,
    na       integer NOT NULL,
    nb       integer NOT NULL,
    side     smallint NOT NULL,
    kind     smallint NOT NULL,
    body     text,
    ref      bigint,
    ref_ts   timestamptz,
    rev      bigint,
    changed  timestamptz
) PARTITION BY RANGE (ts);
CREATE UNIQUE INDEX entries_seq ON entries (conv, seq, ts);       -- history, resync, gap fill, floors
CREATE INDEX entries_cid ON entries (conv, cid);                  -- the duplicate check of append
