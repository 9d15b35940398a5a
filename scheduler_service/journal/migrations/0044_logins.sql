-- What reviews found in 0038: a login that comes while nothing can be said of logins closes what the one before had
-- opened, too; and a key that one effect brought slows down nobody who is seen to work with another one.

-- What was last said of a login stays in `before` while a check says nothing of it: the program is looked at for the first
-- time of a start, or is not there.
CREATE FUNCTION keep_logins() RETURNS trigger
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
BEGIN
    NEW.harness_checks := (
        SELECT coalesce(jsonb_agg(CASE WHEN login_of(n) IS NOT NULL THEN n - 'before'
                                       ELSE n || field('before', coalesce(login_of(o), o->'before')) END ORDER BY i), '[]')
        FROM jsonb_array_elements(NEW.harness_checks) WITH ORDINALITY t(n, i)
             LEFT JOIN LATERAL (SELECT c FROM jsonb_array_elements(OLD.harness_checks) c WHERE c->>'name' = n->>'name'
                                LIMIT 1) k(o) ON true);
    RETURN NEW;
END
$$;

-- What a check says of a login; NULL: nothing.
CREATE FUNCTION login_of(p_check jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
SET search_path = backburner, pg_temp AS $$
    SELECT nullif(field('login', p_check->'login') || field('account', p_check->'account')
                  || field('login_id', p_check->'login_id'), '{}')
$$;

-- See 0038.
CREATE OR REPLACE FUNCTION close_refused_logins() RETURNS trigger
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    names text[] := ARRAY(
        SELECT n->>'name' FROM jsonb_array_elements(NEW.harness_checks) n
        JOIN jsonb_array_elements(OLD.harness_checks) o ON o->>'name' = n->>'name'
        WHERE login_of(n) <> coalesce(login_of(o), o->'before'));
BEGIN
    IF EXISTS (SELECT FROM provider_breakers b WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names)) THEN
        LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
        DELETE FROM provider_breakers b
            WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names) AND b.reason = 'AUTHENTICATION';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER executors_logins_kept BEFORE UPDATE OF harness_checks ON executors FOR EACH ROW
    WHEN (OLD.harness_checks IS DISTINCT FROM NEW.harness_checks) EXECUTE FUNCTION keep_logins();

-- See 0038. A success of an executor with the account that it says it has also closes a half-open breaker of an account
-- that no executor says it has: it was stopped only because that was not known.
CREATE OR REPLACE FUNCTION note_provider_news(news jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    n record; at timestamptz;
BEGIN
    LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
    at := clock_timestamp();
    FOR n IN SELECT t.item->>'account' AS account, i.*, p.breaker
             FROM jsonb_array_elements(news) WITH ORDINALITY t(item, o),
                  jsonb_to_record(t.item) AS i(namespace text, harness text, executor_id text, reason text, message text,
                                               dispatched_at timestamptz, reset_s double precision)
                  LEFT JOIN failure_policies() p ON p.failure = i.reason
             ORDER BY t.o
    LOOP
        IF n.reason IS NULL THEN
            DELETE FROM provider_breakers b
                WHERE b.namespace = n.namespace AND b.harness = n.harness AND b.executor_id IN ('', n.executor_id)
                  AND b.failed_at <= n.dispatched_at
                  AND (n.account = '' OR b.account IN ('', n.account) OR b.executor_id = n.executor_id
                       OR (NOT b.selective AND NOT b.reset_known AND b.until <= n.dispatched_at
                           AND account_on(n.executor_id, n.harness) = n.account));
            CONTINUE;
        END IF;
        INSERT INTO provider_breakers AS b (namespace, harness, account, executor_id, reason, message, opened_at, failed_at,
                                            until, reset_known, failures, selective)
            VALUES (n.namespace, n.harness, n.account, CASE n.breaker WHEN 'EXECUTOR' THEN n.executor_id ELSE '' END,
                    n.reason, coalesce(n.message, ''), at, at,
                    at + make_interval(secs => coalesce(n.reset_s, breaker_guess(1))), n.reset_s IS NOT NULL, 1,
                    is_account_told(n.namespace, n.harness, n.account))
            ON CONFLICT (namespace, harness, account, executor_id) DO UPDATE SET
                reason = excluded.reason, message = excluded.message, failed_at = at, probe_until = NULL,
                selective = b.selective OR excluded.selective,
                failures = b.failures + (b.until <= at)::int,
                reset_known = excluded.reset_known OR (b.reset_known AND b.until > at),
                until = CASE WHEN excluded.reset_known AND b.reset_known THEN greatest(b.until, excluded.until)
                             WHEN excluded.reset_known THEN excluded.until
                             WHEN b.until > at THEN b.until
                             ELSE at + make_interval(secs => breaker_guess(b.failures + 1)) END;
    END LOOP;
    DELETE FROM provider_breakers b WHERE b.until < at - interval '7 days' OR b.ctid IN (
        SELECT o.ctid FROM provider_breakers o ORDER BY o.opened_at DESC OFFSET breakers_max());
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
