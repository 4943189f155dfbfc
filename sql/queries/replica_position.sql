-- Up to where of the log this server shows what was committed, in bytes from the beginning of WAL.
-- A statement that begins after this one sees all of that. In one statement with a read it would
-- not do: the read's snapshot is older (docs/decisions/0060).
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint
