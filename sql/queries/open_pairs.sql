-- Which of the pairs of users ($1, $2: a, b) have both sent, by place from 1: each may see the
-- other's presence. Index scan on conversations_pair.
SELECT p.n FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS p (a, b, n)
CROSS JOIN LATERAL (SELECT c.na, c.nb FROM conversations c WHERE c.a = p.a AND c.b = p.b LIMIT 1) v
WHERE v.na > 0 AND v.nb > 0
