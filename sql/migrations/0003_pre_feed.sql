-- The feed: what changed lately, one row per batch and per flush of cursors, for nodes that heard nothing of it from each other.

-- A node asks once a second for the rows that its last snapshot did not see (feed_since.sql): so each row comes once, whatever the order of commits.
-- data, by kind: 0 entries: n conversations, then their n heads; a conversation is negative if its first entry is among these.
--     1 cursors: n conversations, n a_delivered, n a_read, n b_delivered, n b_read, as the table has them afterwards.
-- One array, by columns: two to five of them cost a header of 24 bytes and a decoding each. It may be long (a flush has no bound): then it lies in
-- the TOAST table, uncompressed; up to a page it stays in the row.
-- Written only where the session says `chatd.feed = on`, as lanes and reads of a node among others do; read by nodes; gone after a minute
-- (feed_prune.sql). Rows come and go by the thousand a second, and vacuum must keep up; it must not cut the file short, as that locks out every send.
CREATE TABLE feed (
    xid   xid8 NOT NULL DEFAULT pg_current_xact_id(),
    kind  smallint NOT NULL,
    data  bigint[] NOT NULL
) WITH (
    toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = false, toast.vacuum_truncate = false
);
ALTER TABLE feed ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX feed_xid ON feed (xid);                              -- feed_since, feed_prune
