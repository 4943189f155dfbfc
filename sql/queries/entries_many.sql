-- Resync and gap fill: for each conversation of $1 the entries after $2 up to $3 in order, at most
-- $4 rows of each. One query for many conversations.
-- Index entries_seq, once for each conversation and once for each edit.
SELECT w.conv, e.seq, (extract(epoch FROM e.ts) * 1000)::bigint, e.side, e.kind, e.cid::text, CASE e.kind WHEN 1 THEN (
        SELECT t.body FROM entries t WHERE t.conv = e.conv AND t.seq = e.ref AND t.ts >= e.ref_ts AND t.ts <= e.ref_ts ORDER BY t.ts LIMIT 1
    ) ELSE e.body END, e.ref, e.rev,
    (extract(epoch FROM e.changed) * 1000)::bigint, e.na, e.nb
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w (conv, after, upto)
CROSS JOIN LATERAL (
    SELECT * FROM entries p WHERE p.conv = w.conv AND p.seq > w.after AND p.seq <= w.upto ORDER BY p.seq LIMIT $4
) e
ORDER BY w.conv, e.seq
