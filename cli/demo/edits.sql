-- What the demo does to its table, as an application would, and how it looks at the vectors.

-- name: watch
SELECT evervec.watch(
  'items', '{name,description,category,type,status}',
  required => '{name,description}', active => 'active', model => 'bundled:use-multilingual-v3'
);

-- name: update
UPDATE items SET description = 'Hinge replaced, works again. Cuts curves and straight lines, three blades in the box.'
WHERE name = 'Stichsäge';

-- name: insert
INSERT INTO items (name, description, category, type, status) VALUES
  ('Raised bed from old window frames', 'Two metres long, lettuce lives in it until May. Bring a second pair of hands.',
   'garden', 'give', 'available');

-- name: copy
COPY items (name, description, category, type, status) FROM STDIN;

-- name: delete
DELETE FROM items WHERE name = 'Slow cooker, family size';

-- name: touch
UPDATE items SET description = description WHERE name = 'Dehumidifier';

-- name: other_column
UPDATE items SET views = views + 1;

-- name: change
UPDATE items SET name = name || ' (reserved)' WHERE name = 'Schubkarre';

-- name: revert
UPDATE items SET name = 'Schubkarre' WHERE name = 'Schubkarre (reserved)';

-- name: before
SELECT clock_timestamp() AS now, count(*) AS items FROM items;

-- name: waiting
SELECT count(*) AS waiting FROM evervec.outbox;

-- name: since
SELECT count(*) FILTER (WHERE embedded_at >= %(now)s) AS embedded, count(*) AS items FROM items;

-- name: coverage
SELECT s.total, s.eligible, s.fresh, s.failed, f.filling
FROM evervec.status s JOIN evervec.source f ON f.name = s.source WHERE s.source = 'items';
