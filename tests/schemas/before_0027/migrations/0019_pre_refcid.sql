-- Edits and deletes may name their message by its cid.
-- depends: 0010_pre_gone 0013_pre_plans

-- As in 0013_pre_plans.sql, its law in 0002_pre_append.sql. New is x_cid: behind the cids of the changes may stand, one a change, the cids of the messages
-- that they change (null: named by seq alone). Such a message must be the author's own, in this conversation, still kept, and, where x_ref is not 0,
-- at that seq; else 'no_message'. It may be one of this very batch. The note of what was done so is 'ref ' and the seq that was found: the live entry
-- tells it. A client that comes from another epoch can say no seq, for another message of its user may stand there now.
-- Index entries_cid, in every partition, as for the cid of the change itself.
CREATE OR REPLACE FUNCTION append(
    m_conv bigint[], m_cid uuid[], m_body text[], m_flags integer[],
    x_conv bigint[], x_side smallint[], x_cid uuid[], x_body text[], x_kind smallint[], x_ref bigint[],
    x_check integer[], edit_window interval, fence text, convs integer
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
    flags    integer := (SELECT bit_or(f) FROM unnest(m_flags) AS f);
    probing  boolean := flags & 1 <> 0;
    again    boolean := flags & 2 <> 0;
    feeding  boolean := coalesce(current_setting('chatd.feed', true) = 'on', false);
    x_moved  bigint[] := '{}';
    x_heads  bigint[] := '{}';
    locked   integer;
    counted  integer;
    changes  integer := coalesce(array_length(x_conv, 1), 0);
    named    uuid;
BEGIN
    IF fence IS DISTINCT FROM (
        SELECT m.epoch || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '/' || m.tableoid FROM meta m WHERE m.only_row
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'CH001', MESSAGE = 'the log is not the one that this batch was made for';
    END IF;
    SELECT max(v.last_ts), count(*) INTO newest, locked FROM (
        SELECT v.last_ts FROM conversations v WHERE v.id = ANY (m_conv || x_conv) ORDER BY v.id FOR NO KEY UPDATE
    ) v;
    IF locked <> convs THEN
        RAISE EXCEPTION USING ERRCODE = 'CH002', MESSAGE = 'a conversation of this batch is not in the log';
    END IF;
    t := clock_timestamp();
    newest := greatest(newest, t);  -- later than t only if the clock went back

    FOR r IN
        SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
        FROM unnest(m_conv, m_cid, m_flags) WITH ORDINALITY AS m (conv, cid, flags, ord)
        CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
            WHERE e.conv = m.conv AND e.cid >= m.cid AND e.cid <= m.cid AND e.side = m.flags >> 2 & 1
                AND e.ts >= t - interval '2 days' AND e.ts <= newest
            ORDER BY e.cid LIMIT 1) e
    LOOP
        skip := skip || r.ord;
        RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
    END LOOP;
    IF again THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv, e.seq, e.ts
            FROM unnest(m_conv, m_cid, m_flags) WITH ORDINALITY AS m (conv, cid, flags, ord)
            CROSS JOIN LATERAL (SELECT e.seq, e.ts FROM entries e
                WHERE e.conv = m.conv AND e.cid >= m.cid AND e.cid <= m.cid AND e.side = m.flags >> 2 & 1
                    AND e.ts < t - interval '2 days'
                ORDER BY e.cid LIMIT 1) e
            WHERE m.flags & 2 <> 0 AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
        END LOOP;
    END IF;
    IF probing THEN
        FOR r IN
            SELECT m.ord::integer - 1 AS ord, m.conv
            FROM unnest(m_conv, m_flags) WITH ORDINALITY AS m (conv, flags, ord)
            WHERE m.flags & 1 <> 0 AND m.ord - 1 <> ALL (skip)
        LOOP
            skip := skip || r.ord;
            RETURN QUERY SELECT r.ord, r.conv, NULL::bigint, NULL::bigint, 'limited';
        END LOOP;
    END IF;

    RETURN QUERY
        WITH k AS (
            SELECT m.conv, min(m.ord) AS ord, max(m.n) AS n, max(m.n0) AS n0, array_agg(m.ord ORDER BY m.ord) AS ords, array_agg(m.n0 ORDER BY m.ord) AS n0s
            FROM (
                SELECT m.conv, m.ord::integer AS ord, row_number() OVER w AS n, count(*) FILTER (WHERE m.flags & 4 = 0) OVER w AS n0
                FROM unnest(m_conv, m_flags) WITH ORDINALITY AS m (conv, flags, ord)
                WHERE skip = '{}' OR m.ord - 1 <> ALL (skip)
                WINDOW w AS (PARTITION BY m.conv ORDER BY m.ord)
            ) m
            GROUP BY m.conv
        ), u AS (
            UPDATE conversations v
            SET head = v.head + k.n, na = v.na + k.n0, nb = v.nb + (k.n - k.n0),
                last_ts = greatest(v.last_ts, t), xid = pg_current_xact_id()
            FROM k WHERE v.id = ANY (ARRAY[k.conv]) AND pair_check(v.a, v.b) = m_flags[k.ord] >> 3
            RETURNING v.id, v.head, v.head - k.n AS base, v.na - k.n0 AS na, v.nb - (k.n - k.n0) AS nb, v.last_ts, k.ords, k.n0s
        ), i AS (
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, body)
            SELECT u.id, u.base + m.n, u.last_ts, m_cid[m.ord], u.na + m.n0, u.nb + (m.n - m.n0), m_flags[m.ord] >> 2 & 1, 0, m_body[m.ord]
            FROM u CROSS JOIN LATERAL unnest(u.ords, u.n0s) WITH ORDINALITY AS m (ord, n0, n)
        ), f AS (
            INSERT INTO feed (kind, data)
            SELECT 0, array_agg(CASE u.base WHEN 0 THEN -u.id ELSE u.id END) || array_agg(u.head) FROM u WHERE feeding HAVING count(*) > 0
        )
        SELECT NULL::integer, u.id, u.base + 1, (extract(epoch FROM u.last_ts) * 1000)::bigint, NULL::text FROM u;
    GET DIAGNOSTICS counted = ROW_COUNT;
    IF skip <> '{}' OR x_conv <> '{}' THEN  -- or each conversation of the batch has a message to write
        locked := (SELECT count(DISTINCT m.conv) FROM unnest(m_conv) WITH ORDINALITY AS m (conv, ord) WHERE m.ord - 1 <> ALL (skip));
    END IF;
    IF counted <> locked THEN
        RAISE EXCEPTION USING ERRCODE = 'CH002', MESSAGE = 'a conversation of this batch is between others';
    END IF;

    -- Edits and deletes come after this batch's messages: the lane cuts a batch where that would change an order.
    FOR i IN 1 .. changes LOOP
        SELECT e.seq, e.ts INTO r FROM entries e
            WHERE e.conv = x_conv[i] AND e.cid >= x_cid[i] AND e.cid <= x_cid[i] AND e.side = x_side[i] ORDER BY e.cid LIMIT 1;
        IF FOUND THEN
            RETURN QUERY SELECT -i, x_conv[i], r.seq, (extract(epoch FROM r.ts) * 1000)::bigint, 'dup';
            CONTINUE;
        END IF;
        IF x_kind[i] < 0 THEN
            RETURN QUERY SELECT -i, x_conv[i], NULL::bigint, NULL::bigint, 'limited';
            CONTINUE;
        END IF;
        SELECT * INTO c FROM conversations v WHERE v.id = x_conv[i];
        IF c.id IS NULL OR pair_check(c.a, c.b) <> x_check[i] THEN
            RAISE EXCEPTION USING ERRCODE = 'CH002', MESSAGE = 'a conversation of this batch is between others';
        END IF;
        named := x_cid[changes + i];
        IF named IS NULL THEN
            SELECT e.ctid AS place, e.seq, e.ts, e.side, e.body INTO target FROM entries e
                WHERE e.conv = x_conv[i] AND e.seq = x_ref[i] AND e.kind = 0 AND e.seq >= c.floor ORDER BY e.ts LIMIT 1;
        ELSE
            SELECT e.ctid AS place, e.seq, e.ts, e.side, e.body INTO target FROM entries e
                WHERE e.conv = x_conv[i] AND e.cid >= named AND e.cid <= named AND e.side = x_side[i] AND e.kind = 0 AND e.seq >= c.floor
                    AND x_ref[i] IN (0, e.seq)
                ORDER BY e.cid LIMIT 1;
        END IF;
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
                WHERE e.ctid = target.place AND e.ts = target.ts;  -- ts finds its partition. Nothing moves the row: its counter is locked
            INSERT INTO entries (conv, seq, ts, cid, na, nb, side, kind, ref, ref_ts)
                VALUES (c.id, c.head + 1, c.last_ts, x_cid[i], c.na, c.nb, x_side[i], x_kind[i], target.seq, target.ts);
            RETURN QUERY SELECT -i, c.id, c.head + 1, (extract(epoch FROM c.last_ts) * 1000)::bigint,
                CASE WHEN named IS NOT NULL THEN 'ref ' || target.seq END;
            x_moved := x_moved || c.id;
            x_heads := x_heads || (c.head + 1);
        END IF;
    END LOOP;
    IF feeding AND x_moved <> '{}' THEN
        INSERT INTO feed (kind, data) VALUES (0, x_moved || x_heads);
    END IF;
END $$;
