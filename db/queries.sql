-- The SQL that Python needs, in named blocks. What touches a watched table is a function in triggers.sql.

-- name: instance_id
-- Keeps the workflows of two databases on one Temporal namespace apart.
SELECT evervec.instance_id() AS id;

-- name: try_lead
-- One listener leads: a session lock, gone with its connection.
SELECT pg_try_advisory_lock(7310312410226385252) AS leads;

-- name: give_up_on_silence
-- A session whose client is gone, or stopped and reads no more, keeps the leader's lock and holds up the notification
-- queue of the whole cluster; by itself PostgreSQL would keep it for hours.
SELECT set_config('tcp_user_timeout', %(milliseconds)s::text, false), set_config('tcp_keepalives_idle', '10', false),
       set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false);

-- name: be_seen
-- Every listener holds this lock, so that evervec.listeners() sees it.
SELECT pg_try_advisory_lock_shared(731031244, 0) AS seen;

-- name: pending_items
SELECT source, item_key, content_hash, version
FROM evervec.pending_items(%(after_source)s, %(after_key)s, %(limit)s);

-- name: waiting_items
SELECT source, item_key, content_hash, version, throttled FROM evervec.waiting_items(%(limit)s);

-- name: newest_items
SELECT source, item_key, content_hash, version
FROM evervec.newest_items(%(source)s, make_interval(secs => %(seconds)s), %(limit)s);

-- name: pending_among
SELECT source, item_key, content_hash, version
FROM evervec.pending_among(%(sources)s::text[], %(item_keys)s::text[]);

-- name: hush
SELECT evervec.hush(make_interval(secs => %(seconds)s)) AS silenced;

-- name: fill_page
SELECT source, scanned, enqueued, done FROM evervec.fill_page(%(limit)s);

-- name: census_page
SELECT source, scanned, enqueued, done FROM evervec.census_page(%(limit)s, %(small)s);

-- name: count_outbox
SELECT evervec.count_outbox() AS long;

-- name: outbox_depth
SELECT source, pending, failed, oldest_pending_seconds, paused FROM evervec.outbox_depth();

-- name: notification_queue_usage
SELECT pg_notification_queue_usage() AS usage;

-- name: models
SELECT name, revision, dimension, prompt FROM evervec.models();

-- name: read_items
SELECT * FROM evervec.read_items(%(source)s, %(item_keys)s::text[]);

-- name: write_back
SELECT item_key, outcome
FROM evervec.write_back(%(source)s, %(item_keys)s::text[], %(versions)s::bigint[], %(hashes)s::text[], %(vectors)s);

-- name: record_failures
SELECT item_key FROM evervec.record_failures(
  %(source)s, %(item_keys)s::text[], %(versions)s::bigint[], %(errors)s::text[], %(max_attempts)s) AS item_key;

-- name: note_errors
SELECT evervec.note_errors(%(source)s, %(item_keys)s::text[], %(versions)s::bigint[], %(error)s);

-- name: sweep_page
SELECT item_keys, paused, rate, wait_seconds
FROM evervec.sweep_page(%(source)s, %(after)s, %(limit)s, %(quiet)s, %(longest)s);

-- name: sources_waiting
SELECT source FROM evervec.sources_waiting(%(age)s) AS source;

-- name: record_work
SELECT evervec.record_work(%(sources)s::text[], %(embedded)s::bigint[], %(skipped)s::bigint[], %(failed)s::bigint[],
                           %(latency)s::bigint[]);

-- name: watch
SELECT evervec.watch(
  relation => %(relation)s::regclass, text_columns => %(text_columns)s::name[], required => %(required)s::name[],
  active => %(active)s, key => %(key)s::name, source => %(source)s, model => %(model)s,
  dimension => %(dimension)s::int, prompt => %(prompt)s, revision => %(revision)s, destination => %(destination)s,
  embedding => %(embedding)s::name, overwrite => %(overwrite)s
) AS source;

-- name: plan_watch
SELECT * FROM evervec.plan_watch(
  %(relation)s::regclass, %(text_columns)s::name[], %(required)s::name[], %(active)s, %(key)s::name, %(source)s, %(model)s,
  %(dimension)s::int, %(prompt)s, %(revision)s, %(destination)s, %(embedding)s::name, %(overwrite)s, %(exact)s, %(texts)s);

-- name: dimension
-- The dimension of a model's vectors, where the database knows it; of a model that a source has, it does.
SELECT coalesce(evervec.known_dimension(%(model)s), (
  SELECT s.dimension FROM evervec.source s WHERE s.model = %(model)s AND s.revision = %(revision)s LIMIT 1)) AS dimension;

-- name: unwatch
SELECT evervec.unwatch(%(source)s);

-- name: uninstall
SELECT evervec.uninstall();

-- name: server
-- What anybody may know of the server, and of what is installed in its database: catalogs and settings only.
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_name,
       clock_timestamp() AS now, current_user::text AS role, d.oid || '@' || c.system_identifier AS home,
       pg_is_in_recovery() AS in_recovery, current_setting('transaction_read_only')::boolean AS read_only,
       (SELECT x.extversion FROM pg_extension x WHERE x.extname = 'vector') AS vector,
       n.oid IS NOT NULL AS installed, coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use,
       coalesce(pg_has_role(n.nspowner, 'USAGE'), false) AS owns, pg_get_userbyid(n.nspowner)::text AS owner,
       ARRAY(SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = n.oid) AS functions,
       ARRAY(SELECT p.proname::text FROM pg_proc p
             WHERE p.pronamespace = n.oid AND has_function_privilege(p.oid, 'EXECUTE')) AS callable,
       ARRAY(SELECT r FROM unnest(ARRAY['evervec_listener', 'evervec_worker', 'evervec_viewer']) AS r
             WHERE to_regrole(r) IS NULL) AS missing_roles,
       ARRAY(SELECT t.relname::text FROM pg_class t
             WHERE t.relnamespace = n.oid AND t.relkind = 'r' AND t.relpersistence = 'u' ORDER BY 1) AS unlogged,
       EXISTS (SELECT FROM pg_class t, pg_options_to_table(t.reloptions) AS o
               WHERE t.relnamespace = n.oid AND t.relname = 'outbox' AND o.option_name = 'autovacuum_enabled'
                 AND NOT o.option_value::boolean) AS unvacuumed,
       current_setting('autovacuum')::boolean AS autovacuum, current_setting('track_counts')::boolean AS track_counts,
       pg_notification_queue_usage() AS queue_usage, current_setting('max_notify_queue_pages', true)::int AS queue_pages
FROM pg_database d CROSS JOIN pg_control_system() AS c LEFT JOIN pg_namespace n ON n.nspname = 'evervec'
WHERE d.datname = current_database();

-- name: listeners
-- Whether listeners are on this database, and one of them has the leader's lock (see try_lead).
SELECT EXISTS (SELECT FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'evervec listener') AS connected,
       EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                 AND (l.classid::bigint << 32) + l.objid::bigint = 7310312410226385252) AS led;

-- name: diagnose
SELECT instance, schema_version, last_version FROM evervec.diagnose();

-- name: diagnose_sources
SELECT * FROM evervec.diagnose_sources(%(until)s);

-- name: session
SELECT pg_backend_pid() AS pid;

-- name: listen_for_doctor
LISTEN evervec_doctor;

-- name: ring_for_doctor
SELECT pg_notify('evervec_doctor', %(token)s);

-- name: source
-- The model of a source, as a worker sees it.
SELECT model, revision, dimension, prompt, paused, filling, rate FROM evervec.source WHERE name = %(source)s;

-- name: source_names
SELECT name FROM evervec.source WHERE %(source)s::text IS NULL OR name = %(source)s ORDER BY name;

-- name: known_keys
SELECT item_key FROM evervec.read_items(%(source)s, %(item_keys)s::text[]) WHERE row_exists;

-- name: wait_briefly
-- Nobody waits for a page that waits for a user's transaction.
SET LOCAL lock_timeout = '100ms';

-- name: refire_page
-- The rate in the same transaction: earlier it would be lifted, since nothing waits yet, and later a sweep may have begun.
SELECT last_key, scanned, enqueued,
       CASE WHEN %(rate)s::real IS NOT NULL AND enqueued > 0 THEN evervec.throttle(%(source)s, %(rate)s::real) END AS throttled
FROM evervec.refire_page(%(source)s, %(predicate)s, %(force)s, %(after)s, %(limit)s);

-- name: refire_keys
SELECT evervec.refire_keys(%(source)s, %(item_keys)s::text[], %(force)s) AS enqueued;

-- name: throttle
SELECT evervec.throttle(%(source)s, %(rate)s::real);

-- name: pause
SELECT evervec.pause(%(source)s);

-- name: resume
SELECT evervec.resume(%(source)s);

-- name: retry
SELECT evervec.retry(%(source)s, %(item_keys)s::text[]) AS retried;

-- name: status
SELECT source, total, eligible, fresh, stale, pending, failed, coverage, oldest_pending_seconds, model, dimension, paused
FROM evervec.status WHERE %(source)s::text IS NULL OR source = %(source)s ORDER BY source;

-- name: last_version
-- The version of the latest enqueue: what is enqueued from now on has a higher one.
SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS version FROM evervec.outbox_version;

-- name: waiting
-- What a --wait waits for, of the versions in (after, until]: cheap, unlike status. filling counts as waiting, its items
-- are on their way to the outbox. No row when there is no such source.
SELECT count(*) FILTER (WHERE o.state = 'pending') AS pending, count(*) FILTER (WHERE o.state = 'failed') AS failed,
       s.filling, s.paused, min(o.last_error) FILTER (WHERE o.state = 'pending') AS reason
FROM evervec.source s
LEFT JOIN evervec.outbox o ON o.source = s.name
  AND o.version > %(after)s AND (%(until)s::bigint IS NULL OR o.version <= %(until)s)
  AND (%(item_keys)s::text[] IS NULL OR o.item_key = ANY (%(item_keys)s))
WHERE s.name = %(source)s GROUP BY s.name;

-- name: failures
SELECT source, item_key AS key, attempts, last_error AS error, failed_at FROM evervec.failures
WHERE %(source)s::text IS NULL OR source = %(source)s ORDER BY source, item_key;

-- name: failed_count
SELECT count(*) AS failed FROM evervec.failures WHERE source = %(source)s;

-- name: work_history
SELECT source, minute, embedded, skipped, failed, latency FROM evervec.work_history
WHERE %(source)s::text IS NULL OR source = %(source)s ORDER BY source, minute;

-- name: count_page
SELECT last_key, total, eligible, fresh FROM evervec.count_page(%(source)s, %(after)s, %(limit)s);

-- name: orphan_count
SELECT count(*) AS orphaned FROM evervec.orphans(%(source)s);

-- name: drop_orphans
-- By version: an item that is inserted meanwhile has enqueued itself anew.
WITH seen AS MATERIALIZED (
  SELECT o.item_key, o.version FROM evervec.outbox o JOIN evervec.orphans(%(source)s) AS x USING (item_key)
  WHERE o.source = %(source)s
), dropped AS (
  DELETE FROM evervec.outbox o USING seen
  WHERE o.source = %(source)s AND o.item_key = seen.item_key AND o.version = seen.version RETURNING 1
)
SELECT count(*) AS dropped FROM dropped;

-- name: sample_page
SELECT item_key, content, embedding FROM evervec.sample_page(%(source)s, %(after)s, %(limit)s, %(wanted)s);

-- name: explain_item
SELECT * FROM evervec.explain_item(%(source)s, %(item_key)s);

-- name: search
SELECT item_key AS key, distance, content FROM evervec.search(%(source)s, %(vector)s, %(limit)s);

-- name: neighbours
SELECT item_key AS key, distance, content FROM evervec.neighbours(%(source)s, %(item_key)s, %(limit)s);

-- name: item_page
SELECT item_key AS key, state, attempts, last_error, queued_at, embedded_at, content
FROM evervec.item_page(%(source)s, %(after)s, %(limit)s);

-- name: outbox_page
SELECT item_key AS key, state, attempts, last_error, queued_at, failed_at, due_at, go_on_after
FROM evervec.outbox_page(%(source)s, %(state)s, %(after)s, %(limit)s, %(reach)s);

-- name: item_content
SELECT left(content, %(limit)s) AS beginning, length(content) AS length
FROM evervec.read_items(%(source)s, ARRAY[%(item_key)s::text]);

-- name: failure_groups
SELECT source, last_error AS error, count(*) AS items, min(failed_at) AS first, max(failed_at) AS last
FROM evervec.failures GROUP BY source, last_error ORDER BY count(*) DESC, source, last_error LIMIT %(limit)s;

-- name: failed_page
SELECT item_key AS key, attempts, failed_at FROM evervec.failures
WHERE source = %(source)s AND last_error IS NOT DISTINCT FROM %(error)s AND item_key > %(after)s
ORDER BY item_key LIMIT %(limit)s;

-- name: call_off_page
SELECT last_key, called_off FROM evervec.call_off_page(%(source)s, %(after)s, %(limit)s);

-- name: source_details
SELECT name, relation::text AS relation, key_column, key_type, text_columns, required_columns, active, destination,
       embedding_column, side_table::text AS side_table, model, model_label, revision, dimension, prompt, paused, filling,
       rate, created_at
FROM evervec.source WHERE %(source)s::text IS NULL OR name = %(source)s ORDER BY name;

-- name: counted_at
-- When the counts were made that evervec.status does not make at each look: of a large source's rows, of a long outbox.
SELECT s.name AS source, large.large, b.counted_at AS waiting, CASE WHEN large.large THEN (
  SELECT t.counted_at FROM evervec.total t, evervec.changes(s) AS c WHERE t.source = s.name AND t.files = c.files
  ORDER BY t.done DESC LIMIT 1) END AS rows
FROM evervec.source s
CROSS JOIN LATERAL (SELECT CASE WHEN evervec.is_sound(s) THEN evervec.is_large(s) ELSE false END AS large) AS large
LEFT JOIN evervec.backlog b ON b.source = s.name AND evervec.backlog_is_known();

-- name: listener_sessions
SELECT pid, leads FROM evervec.listeners();

-- name: server_facts
SELECT current_setting('server_version') AS version, current_database() AS database,
       pg_notification_queue_usage() AS queue_usage, pg_is_in_recovery() AS standby;
