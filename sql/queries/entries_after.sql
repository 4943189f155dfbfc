-- History, forwards, and gap fill: $1 conversation, $2 seq (exclusive), $3 highest seq, $4 rows.
-- Index entries_seq, for the edited message, too.
SELECT e.seq, (extract(epoch FROM e.ts) * 1000)::bigint, e.side, e.kind, e.cid::text, CASE e.kind WHEN 1 THEN (
        SELECT t.body FROM entries t WHERE t.conv = e.conv AND t.seq = e.ref AND t.ts >= e.ref_ts AND t.ts <= e.ref_ts ORDER BY t.ts LIMIT 1
    ) ELSE e.body END, e.ref, e.rev,
    (extract(epoch FROM e.changed) * 1000)::bigint, e.na, e.nb
FROM (
    SELECT * FROM entries p WHERE p.conv = $1 AND p.seq > $2 AND p.seq <= $3 ORDER BY p.seq LIMIT $4
) e
ORDER BY e.seq
