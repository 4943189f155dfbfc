-- A page of history from a server that may be behind, with what proves how far it is: whether this
-- is the log with epoch $5 and the server still what it was ($8: a standby), the conversation's head
-- and floor in the snapshot of the page, and up to where of the log the server was soon after that.
-- No row where the conversation is not there; one row without an entry where the page is empty or
-- was not read. It is not read where the head is below $6 or the floor below $7.
-- PAGE: entries_before.sql or entries_after.sql with their $1 to $4; its LIMIT is `s.rows`.
-- Primary keys of meta and conversations, then the index of PAGE. One row on the outer side: the
-- order is that of PAGE.
SELECT s.is_log, s.head, s.floor, s.position, x.*
FROM (
    SELECT h.*, CASE WHEN h.is_log AND h.head >= $6::bigint AND h.floor >= $7::bigint THEN $4::bigint ELSE 0 END AS rows
    FROM (
        SELECT m.epoch = $5::text AND pg_is_in_recovery() = $8::boolean AS is_log, v.head, v.floor,
            (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn)::bigint AS position
        FROM meta m CROSS JOIN LATERAL (SELECT c.head, c.floor FROM conversations c WHERE c.id = $1 LIMIT 1) v
        WHERE m.only_row
    ) h
) s LEFT JOIN LATERAL (
PAGE
) x ON true
