-- Raise the floors of the next $2 conversations after $1 that have entries in PARTITION, which is about to go: to the highest seq in it + 1.
-- Gives the last conversation of this step, null when there was none: go on after it. Counters are locked in order of id, as everywhere.
-- Index (conv, seq, ts) of the partition alone, each part of it once over all steps.
WITH step AS MATERIALIZED (
    SELECT p.conv, max(p.seq) + 1 AS floor FROM PARTITION p WHERE p.conv > $1 GROUP BY p.conv ORDER BY p.conv LIMIT $2
), locked AS MATERIALIZED (
    SELECT v.id FROM conversations v WHERE v.id = ANY (ARRAY(SELECT conv FROM step)) ORDER BY v.id FOR NO KEY UPDATE
), raised AS (
    UPDATE conversations v SET floor = s.floor FROM step s JOIN locked l ON l.id = s.conv WHERE v.id = s.conv AND v.floor < s.floor
)
SELECT max(conv) FROM step
