-- Limits of a key; NULL is no limit. Times are Unix seconds.
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
-- Disabled is not revoked: it can be undone.
ALTER TABLE api_keys ADD COLUMN disabled_at INTEGER;
-- JSON array of the ids that the key may ask for; an empty one stands for all.
ALTER TABLE api_keys ADD COLUMN models TEXT NOT NULL DEFAULT '[]';
ALTER TABLE api_keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
ALTER TABLE api_keys ADD COLUMN tokens_per_minute INTEGER CHECK (tokens_per_minute > 0);
ALTER TABLE api_keys ADD COLUMN concurrent_requests INTEGER CHECK (concurrent_requests > 0);
ALTER TABLE api_keys ADD COLUMN monthly_tokens INTEGER CHECK (monthly_tokens > 0);

-- What each key used of each model on each day in UTC. No reference to the key: a bill outlives it.
CREATE TABLE usage (
    key_id INTEGER NOT NULL,
    -- YYYY-MM-DD.
    day TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    -- Part of the prompt's.
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    -- Part of the completion's.
    reasoning_tokens INTEGER NOT NULL,
    PRIMARY KEY (key_id, day, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_day ON usage (day);

-- The last batch of each ledger that writes here, so that one sent again is not counted again.
CREATE TABLE usage_writers (
    writer TEXT NOT NULL PRIMARY KEY,
    batch INTEGER NOT NULL,
    written_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
