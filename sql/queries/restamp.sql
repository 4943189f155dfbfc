-- A dump that is restored in another cluster brings along ids of that one's transactions. Those that are ahead of this one's would be listed at each
-- hello until it has got there. A step of putting that right: of the next $1 conversations after `meta.restamp`, rows with such an id get this
-- transaction's. Safe beside senders: what this id replaces was committed while this transaction ran, so no mark is above it that lacks the change.
-- What another transaction holds is passed over: it writes an id of its own, or the row is listed for nothing. Gives whether there may be more; no row
-- if there is nothing to do, or another node is at it. Index scans on the primary keys.
WITH place AS MATERIALIZED (
    SELECT m.restamp FROM meta m WHERE m.only_row AND m.restamp IS NOT NULL FOR UPDATE SKIP LOCKED
), step AS MATERIALIZED (
    SELECT v.id FROM place p CROSS JOIN LATERAL (SELECT c.id FROM conversations c WHERE c.id > p.restamp ORDER BY c.id LIMIT $1::bigint) v
), convs AS MATERIALIZED (
    SELECT v.id FROM step s CROSS JOIN LATERAL (
        SELECT c.id FROM conversations c WHERE c.id = s.id AND c.xid >= pg_snapshot_xmax(pg_current_snapshot()) LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ) v
), moved AS MATERIALIZED (
    SELECT k.conv FROM step s CROSS JOIN LATERAL (
        SELECT c.conv FROM cursors c WHERE c.conv = s.id AND c.xid >= pg_snapshot_xmax(pg_current_snapshot()) LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
    ) k
), stamped AS (
    UPDATE conversations v SET xid = pg_current_xact_id() FROM convs c WHERE v.id = ANY (ARRAY[c.id])
), stamped_too AS (
    UPDATE cursors k SET xid = pg_current_xact_id(), a_xid = pg_current_xact_id(), b_xid = pg_current_xact_id() FROM moved r WHERE k.conv = ANY (ARRAY[r.conv])
), went_on AS (
    UPDATE meta m SET restamp = (SELECT max(s.id) FROM step s) FROM place WHERE m.only_row RETURNING m.restamp
)
SELECT w.restamp IS NOT NULL FROM went_on w
