-- The feed since a snapshot. One row with kind null has the snapshot to ask with next, and the time
-- in ms; the other rows have kind and data, see sql/migrations/0003_pre_feed.sql. $1: the snapshot
-- of the last answer, null at the start. $2: past this time (ms) only the next snapshot is given:
-- the feed has grown too long (and feed_prune may have deleted rows). $3: bits by conversation id,
-- modulo their number, which is a power of two; empty: all rows are wanted.
-- New is what snapshot $1 does not see: all transactions from its xmax on, and those that it saw
-- running. So every row is read exactly once, in whatever order transactions commit, and a
-- transaction that runs for hours costs nothing (from xmin on, all rows since its start would be
-- read).
-- A row of one or two conversations is left out where none of them has its bit. That costs no more
-- here than to send it (0.5 us), and spares the node 2.3 us. Longer rows go to all nodes: a node takes
-- 0.4 us for a conversation in them, and to look at each here would cost more (measured, PostgreSQL
-- 15). A row with the first entry of a conversation (negative) goes to all nodes, too.
-- Index feed_xid, for both.
WITH asked AS MATERIALIZED (
    SELECT $1::text::pg_snapshot AS seen, (extract(epoch FROM statement_timestamp()) * 1000)::bigint AS now_ms
), since AS (
    SELECT kind, data FROM feed
    WHERE xid >= (SELECT pg_snapshot_xmax(seen) FROM asked WHERE now_ms <= $2::bigint)
    UNION ALL
    SELECT kind, data FROM feed
    WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(seen) FROM asked WHERE now_ms <= $2::bigint))
)
SELECT pg_current_snapshot()::text, now_ms, NULL::smallint, NULL::bigint[] FROM asked
UNION ALL
SELECT NULL, NULL, kind, data FROM since
WHERE octet_length($3::bytea) = 0 OR CASE cardinality(data) / CASE kind WHEN 0 THEN 2 ELSE 5 END
    WHEN 1 THEN data[1] < 0 OR get_bit($3, (data[1] & (octet_length($3) * 8 - 1))::integer) = 1
    WHEN 2 THEN data[1] < 0 OR get_bit($3, (data[1] & (octet_length($3) * 8 - 1))::integer) = 1
        OR data[2] < 0 OR get_bit($3, (data[2] & (octet_length($3) * 8 - 1))::integer) = 1
    ELSE true END
