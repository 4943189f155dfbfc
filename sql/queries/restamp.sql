-- A dump that is restored in another cluster has ids of that cluster's transactions. Ids ahead of
-- this cluster's would be listed at each hello until this cluster has reached them. This is one
-- step of the repair: of the next $1 conversations after `meta.restamp`, rows with such an id get
-- this transaction's id. Safe beside senders: what this id replaces was committed while this
-- transaction ran, so no mark that lacks the change is above it. A row that another transaction
-- holds is skipped: that transaction writes an id of its own, or the row is listed needlessly.
-- Gives whether there may be more; no row if there is nothing to do, or another node is at work.
-- Index scans on the primary keys.
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
