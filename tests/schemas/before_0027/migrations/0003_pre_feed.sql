-- The feed: what changed lately, one row per batch and per flush of cursors, for nodes that heard nothing of it from each other.
-- depends: 0002_pre_append

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

-- append as in 0002_pre_append.sql, where its law is written; new is only what it tells the feed: one row for the messages of a call, in the
-- statement that inserts them and from the rows it has at hand, and one for edits and deletes.
CREATE OR REPLACE FUNCTION append(
    m_conv bigint[], m_side smallint[], m_cid uuid[], m_body text[], m_flags smallint[],
    x_conv bigint[], x_side smallint[], x_cid uuid[], x_body text[], x_kind smallint[], x_ref bigint[],
    edit_window interval
) RETURNS TABLE (ord integer, conv bigint, seq bigint, ts bigint, note text)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    t        timestamptz;
    newest   timestamptz;
    skip     integer[] := '{}';
    r        record;
    c        conversations%ROWTYPE;
    target   record;
    probing  boolean := 1 = ANY (m_flags) OR 3 = ANY (m_flags);
    again    boolean := 2 = ANY (m_flags) OR 3 = ANY (m_flags);
    feeding  boolean := coalesce(current_setting('chatd.feed', true) = 'on', false);
    x_moved  bigint[] := '{}';
    x_heads  bigint[] := '{}';
BEGIN
    SELECT max(v.last_ts) INTO newest FROM (
        SELECT v.last_ts FROM conversations v WHERE v.id = ANY (m_conv || x_conv) ORDER BY v.id FOR NO KEY UPDATE
    ) v;
    t := clock_timestamp();
    newest := greatest(newest, t);  -- later than t only if the clock went back

    FOR r IN
        SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
        FROM unnest(m_conv, m_side, m_cid) WITH ORDINALITY AS m (conv, side, cid, ord)
        CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
            WHERE e.conv = m.conv AND e.cid = m.cid AND e.side = m.side AND e.ts >= t - interval '2 days' AND e.ts <= newest LIMIT 1) e
    LOOP
        skip := skip || r.ord;
        RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
    END LOOP;
    IF again THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
            FROM unnest(m_conv, m_side, m_cid, m_flags) WITH ORDINALITY AS m (conv, side, cid, flags, ord)
            CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
                WHERE e.conv = m.conv AND e.cid = m.cid AND e.side = m.side AND e.ts < t - interval '2 days' LIMIT 1) e
            WHERE m.flags >= 2 AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
        END LOOP;
    END IF;
    IF probing THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv
            FROM unnest(m_conv, m_flags) WITH ORDINALITY AS m (conv, flags, ord)
            WHERE m.flags IN (1, 3) AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, NULL::bigint, NULL::bigint, 'limited';
        END LOOP;
    END IF;

    RETURN QUERY
        WITH m AS MATERIALIZED (
            SELECT m.conv, m.side, m.cid, m.body, m.ord,
                row_number() OVER w AS n, count(*) FILTER (WHERE m.side = 0) OVER w AS n0
            FROM unnest(m_conv, m_side, m_cid, m_body) WITH ORDINALITY AS m (conv, side, cid, body, ord)
            WHERE skip = '{}' OR m.ord - 1 <> ALL (skip)
            WINDOW w AS (PARTITION BY m.conv ORDER BY m.ord)
        ), k AS (
            SELECT m.conv, max(m.n) AS n, max(m.n0) AS n0 FROM m GROUP BY m.conv
        ), u AS (
            UPDATE conversations v
            SET head = v.head + k.n, na = v.na + k.n0, nb = v.nb + (k.n - k.n0),
                last_ts = greatest(v.last_ts, t), xid = pg_current_xact_id()
            FROM k WHERE v.id = k.conv
            RETURNING v.id, v.head, v.head - k.n AS base, v.na - k.n0 AS na, v.nb - (k.n - k.n0) AS nb, v.last_ts
        ), i AS (
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)
            SELECT m.conv, u.base + m.n, u.last_ts, m.cid, u.na + m.n0, u.nb + (m.n - m.n0), m.side, 0, m.body
            FROM m JOIN u ON u.id = m.conv
        ), f AS (
            INSERT INTO feed (kind, data)
            SELECT 0, array_agg(CASE u.base WHEN 0 THEN -u.id ELSE u.id END) || array_agg(u.head) FROM u WHERE feeding HAVING count(*) > 0
        )
        SELECT NULL::integer, u.id, u.base + 1, (extract(epoch FROM u.last_ts) * 1000)::bigint, NULL::text FROM u;

    -- Edits and deletes come after this batch's messages: the lane cuts a batch where that would change an order.
    FOR i IN 1 .. coalesce(array_length(x_conv, 1), 0) LOOP
        SELECT e.seq, e.ts INTO r FROM entries e
            WHERE e.conv = x_conv[i] AND e.cid = x_cid[i] AND e.side = x_side[i] LIMIT 1;
        IF FOUND THEN
            RETURN QUERY SELECT -i, x_conv[i], r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
            CONTINUE;
        END IF;
        IF x_kind[i] < 0 THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'limited';
            CONTINUE;
        END IF;
        SELECT * INTO c FROM conversations v WHERE v.id = x_conv[i];
        SELECT e.seq, e.ts, e.side, e.body INTO target FROM entries e
            WHERE e.conv = x_conv[i] AND e.seq = x_ref[i] AND e.kind = 0 AND e.seq >= c.floor;
        IF NOT FOUND THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'no_message';
        ELSIF target.side <> x_side[i] THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'not_author';
        ELSIF target.body IS NULL THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'deleted';
        ELSIF x_kind[i] = 1 AND t > target.ts + edit_window THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'too_late';
        ELSE
            UPDATE conversations v SET head = c.head + 1, last_ts = greatest(c.last_ts, t), xid = pg_current_xact_id()
                WHERE v.id = c.id RETURNING v.last_ts INTO c.last_ts;
            UPDATE entries e SET body = CASE x_kind[i] WHEN 1 THEN x_body[i] END, rev = c.head + 1, changed = c.last_ts
                WHERE e.conv = c.id AND e.seq = x_ref[i] AND e.ts = target.ts;
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, ref, ref_ts)
                VALUES (c.id, c.head + 1, c.last_ts, x_cid[i], c.na, c.nb, x_side[i], x_kind[i], x_ref[i], target.ts);
            RETURN QUERY SELECT -i, c.id, c.head + 1, (extract(epoch FROM c.last_ts) * 1000)::bigint, NULL::text;
            x_moved := x_moved || c.id;
            x_heads := x_heads || (c.head + 1);
        END IF;
    END LOOP;
    IF feeding AND x_moved <> '{}' THEN
        INSERT INTO feed (kind, data) VALUES (0, x_moved || x_heads);
    END IF;
END $$;
