-- Raise the floors of the next $2 conversations after $1 that have entries in PARTITION, which is
-- about to be dropped: to the highest seq in it + 1. a_gone, b_gone: the messages of each side up
-- to there (sql/migrations/0010_pre_gone.sql), from the last entry that is dropped.
-- Gives the last conversation of this step, to continue after it; null when there was none. Rows
-- are locked in order of id, as everywhere.
-- Index (conv, seq, ts) of the partition alone (the inner ORDER BY leaves no other), each part of
-- it once over all steps.
WITH step AS MATERIALIZED (
    SELECT p.conv, max(p.seq) + 1 AS floor FROM (SELECT e.conv, e.seq FROM PARTITION e WHERE e.conv > $1 ORDER BY e.conv, e.seq) p
    GROUP BY p.conv ORDER BY p.conv LIMIT $2
), locked AS MATERIALIZED (
    SELECT s.conv, s.floor, e.na, e.nb FROM step s
    CROSS JOIN LATERAL (SELECT c.id FROM conversations c WHERE c.id = s.conv LIMIT 1 FOR NO KEY UPDATE) v
    CROSS JOIN LATERAL (SELECT p.na, p.nb FROM PARTITION p WHERE p.conv = s.conv AND p.seq = s.floor - 1 ORDER BY p.ts LIMIT 1) e
), raised AS (
    UPDATE conversations v SET floor = l.floor, a_gone = l.na, b_gone = l.nb FROM locked l WHERE v.id = ANY (ARRAY[l.conv]) AND v.floor < l.floor
)
SELECT max(conv) FROM step
